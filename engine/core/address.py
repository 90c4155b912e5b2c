"""SG1: is this text an address, and how is it written on the wire.

1. Whether it is one is email-validator's verdict (RFC 5321, RFC 6531, IDNA 2008 with the mapping of UTS 46), without
   DNS. One rule is ours: RFC 5321 section 4.5.3.1.1 counts a local part in octets, as written on the wire.
2. A plain ASCII address takes a short cut that gives the same answer; a test holds the two together.
3. Why it is none is read from the text itself, in the fixed order of `_explain`; a library's sentences are never read.
4. A quoted local part is an address (RFC 5321 section 4.1.2); quotes that aren't needed go, those that are stay.
   A domain literal, a display name and angle brackets are refused: a list holds addresses, not headers.
5. Special-use names are those that email-validator refuses: arpa, invalid, local, localhost, onion, test and what is
   below them. `example` and `example.com|net|org` pass: RFC 6761 asks applications not to treat them specially, and
   DNS answers for them (a null MX, or no such name). `lab` is not reserved and passes.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import email_validator
import idna
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES

MAX_ADDRESS = 254  # octets: RFC 5321 section 4.5.3.1.3 less the angle brackets (RFC 3696 erratum 1690)
MAX_LOCAL = 64  # octets: RFC 5321 section 4.5.3.1.1
MAX_DOMAIN = 253  # octets: RFC 1035 section 2.3.4 less the root label, as written with dots
MAX_LABEL = 63  # octets: RFC 1035 section 2.3.1

DETAILS: dict[str, str] = {
    "empty": "There is no text",
    "control_character": "A control character, CR, LF or NUL",
    "display_name": "Angle brackets or a display name around the address",
    "bad_quoting": "A quote that is not closed, or that does not enclose the whole local part",
    "missing_at": "There is no @",
    "fullwidth_at": "A full-width or small @ (U+FF20, U+FE6B) in place of @",
    "multiple_at": "More than one @ outside quotes",
    "empty_local": "Nothing before the @",
    "empty_domain": "Nothing after the @",
    "domain_literal": "An IP address in brackets in place of a domain",
    "local_too_long": "More than 64 octets before the @",
    "domain_too_long": "More than 253 octets after the @",
    "address_too_long": "More than 254 octets altogether",
    "whitespace": "White space inside the address",
    "invisible_character": "A character that can't be seen, for example a zero width space",
    "bad_character": "A character that may not stand where it stands",
    "dot_placement": "A dot at the start or the end of local part or domain, or two in a row",
    "label_hyphen": "A label of the domain that starts or ends with a hyphen",
    "label_reserved": "A label with hyphens in third and fourth place that is no A-label (RFC 5891 section 4.2.3.1)",
    "label_too_long": "A label of the domain with more than 63 octets",
    "no_dot": "The domain has one label only",
    "numeric_tld": "The last label of the domain does not end with a letter, as all top-level domains do",
    "idn_character": "A character that IDNA 2008 does not allow in a domain",
    "idn_context": "A character that IDNA 2008 does not allow in this place",
    "idn_bidi": "Left-to-right and right-to-left characters mixed against RFC 5893",
    "idn_punycode": "An xn-- label that is not the A-label of any name",
    "idn_label": "A label that starts with a combining mark, or is against IDNA 2008 in another way",
    "special_use": "A top-level domain that is set aside and never receives mail",
}


@dataclass(frozen=True, slots=True)
class Address:
    """An address: `raw` as it was given, `local` as it goes on the wire (NFC, quoted where needed), `domain` in
    lower-case A-labels. The names of RFC 2142 are lower case in `local`: they mean the same in any case."""

    raw: str
    local: str
    domain: str

    @property
    def normalized(self) -> str:
        """The form that duplicates share and that is asked at RCPT."""
        return f"{self.local}@{self.domain}"

    @property
    def eai(self) -> bool:
        """Whether the local part is not ASCII, so that a host must offer SMTPUTF8 (RFC 6531)."""
        return not self.local.isascii()


@dataclass(frozen=True, slots=True)
class BadAddress:
    """No address: `reason` is syntax_invalid, idn_invalid or domain_reserved; `detail` a key of `DETAILS`."""

    raw: str
    reason: str
    detail: str


_SPACE = " \t\r\n\f\v"  # what a cell may have around its address
_MAX_EXPLAINED = 4096  # characters; what a longer text suffers from shows before that
_RESERVED = frozenset(email_validator.SPECIAL_USE_DOMAIN_NAMES)
_ANY_CASE = frozenset(CASE_INSENSITIVE_MAILBOX_NAMES)
_ATEXT = r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]"
_LABEL = r"[A-Za-z0-9]++(?:-++[A-Za-z0-9]++)*+"
_PLAIN = re.compile(rf"({_ATEXT}++(?:\.{_ATEXT}++)*+)@((?:{_LABEL}\.)++({_LABEL}))")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NOT_ATEXT = re.compile(r"[^A-Za-z0-9!#$%&'*+\-/=?^_`{|}~.\u0080-\U0010ffff]")
_NOT_HOST = re.compile(r"[^A-Za-z0-9.\-\u0080-\U0010ffff]")


def parse(text: str) -> Address | BadAddress:
    """The address that this text is, or why it is none. ASCII white space around it does not count."""
    plain = _PLAIN.fullmatch(text.strip(_SPACE))
    if plain is not None:
        local, domain, top = plain.groups()
        # Short enough that no label can be too long, and without "--" there is no A-label to look into.
        if len(local) <= MAX_LOCAL and len(domain) <= MAX_LABEL and "--" not in domain:
            top = top.lower()
            if top in _RESERVED:
                return BadAddress(text, "domain_reserved", "special_use")
            if not top[-1].isdigit():
                lower = local.lower()
                return Address(text, lower if lower in _ANY_CASE else local, domain.lower())
    return parse_fully(text)


def parse_fully(text: str) -> Address | BadAddress:
    """`parse` without its short cut."""
    bare = text.strip(_SPACE)
    if _octets(bare) > MAX_ADDRESS:  # email-validator would refuse it too, but look at all of it first
        return BadAddress(text, *_explain(bare[:_MAX_EXPLAINED]))
    try:
        found = email_validator.validate_email(
            bare,
            allow_smtputf8=True,
            allow_quoted_local=True,
            allow_empty_local=False,
            allow_domain_literal=False,
            allow_display_name=False,
            check_deliverability=False,
            globally_deliverable=True,
            test_environment=False,
            strict=False,
        )
    except email_validator.EmailNotValidError:
        return BadAddress(text, *_explain(bare))
    local, domain = found.local_part, found.ascii_domain
    if _octets(local) > MAX_LOCAL:
        return BadAddress(text, "syntax_invalid", "local_too_long")
    return Address(text, local, domain)


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _first(*faults: tuple[str, bool]) -> str:
    """The first detail that is true, or empty."""
    return next((detail for detail, found in faults if found), "")


def _explain(bare: str) -> tuple[str, str]:
    """Reason and detail of a text that is no address."""
    quoted = _QUOTED.match(bare)
    quote = quoted.group() if quoted else ""
    rest = bare[len(quote) :]
    before, at, domain = rest.partition("@")
    detail = (
        _first(
            ("empty", not bare),
            ("control_character", any(unicodedata.category(c) == "Cc" for c in bare)),
            ("display_name", "<" in rest or ">" in rest),
            ("bad_quoting", '"' in rest or bool(quote and before)),
            ("fullwidth_at", not at and ("\uff20" in rest or "\ufe6b" in rest)),
            ("missing_at", not at),
            ("multiple_at", "@" in domain),
        )
        or _local_detail(quote or before, bool(quote))
        or _first(("empty_domain", not domain), ("domain_literal", domain[:1] == "["))
    )
    if detail:
        return "syntax_invalid", detail
    return _explain_domain(domain, before=_octets(bare[: -len(domain)]))


def _local_detail(local: str, quoted: bool) -> str:
    """What is wrong with a local part, as written."""
    composed = unicodedata.normalize("NFC", local)
    return (
        _first(("empty_local", local in ("", '""')), ("local_too_long", _octets(composed) > MAX_LOCAL))
        or _character_detail(composed[1:-1] if quoted else composed, spaces=quoted)
        or _first(
            ("bad_character", not quoted and bool(_NOT_ATEXT.search(composed))),
            ("dot_placement", not quoted and "" in composed.split(".")),
        )
    )


def _character_detail(text: str, *, spaces: bool = False) -> str:
    """What is wrong with single characters, whatever their place; `spaces` are well inside quotes."""
    for index, category in enumerate(map(unicodedata.category, text)):
        if category[0] == "Z" and not (spaces and category == "Zs"):
            return "whitespace"
        if category == "Cf":
            return "invisible_character"
        if category[0] == "C" or (category[0] == "M" and index == 0):
            return "bad_character"
    return ""


def _explain_domain(domain: str, *, before: int) -> tuple[str, str]:
    """Reason and detail where the fault is the domain's; `before` is the octets of all that precedes it."""
    detail = _character_detail(domain) or _first(
        ("bad_character", bool(_NOT_HOST.search(domain))),
        ("domain_too_long", len(domain) > MAX_DOMAIN),  # before IDNA, which is slow on long names
    )
    if detail:
        return "syntax_invalid", detail
    label = domain
    try:
        labels = idna.uts46_remap(domain, std3_rules=False, transitional=False).split(".")
        if detail := _labels_detail(labels):
            return "syntax_invalid", detail
        encoded = [_a_label(label := each) for each in labels]
    except idna.IDNAError as error:
        return "idn_invalid", _idn_detail(error, label)
    return _explain_name(encoded, before, _octets(domain))


def _labels_detail(labels: list[str]) -> str:
    """What is wrong with the shape of a domain's labels, after mapping and before IDNA."""
    return _first(
        ("bad_character", any(_NOT_HOST.search(label) for label in labels)),
        ("dot_placement", "" in labels),
        ("label_hyphen", any(label[:1] == "-" or label[-1:] == "-" for label in labels)),
        ("label_reserved", any(label[2:4] == "--" and label[:2] != "xn" for label in labels)),
        ("label_too_long", any(label.isascii() and len(label) > MAX_LABEL for label in labels)),
    )


def _a_label(label: str) -> str:
    """The A-label of a label, checked in both directions. Raises idna.IDNAError."""
    if label.isascii() and not label.startswith("xn--"):
        return label
    encoded = idna.alabel(label)
    idna.ulabel(encoded)
    return encoded.decode("ascii")


def _idn_detail(error: idna.IDNAError, label: str) -> str:
    """The detail of a refusal by IDNA, by its class."""
    return _first(
        ("idn_bidi", isinstance(error, idna.IDNABidiError)),
        ("idn_context", isinstance(error, idna.InvalidCodepointContext)),
        ("idn_character", isinstance(error, idna.InvalidCodepoint)),
        ("idn_punycode", label.startswith("xn--")),
        ("label_too_long", len("xn--") + len(label.encode("punycode")) > MAX_LABEL),
        ("idn_label", True),
    )


def _explain_name(labels: list[str], before: int, written: int) -> tuple[str, str]:
    """Reason and detail of a name that is well formed label by label; `written` is its octets as it was given."""
    name = ".".join(labels)
    if labels[-1] in _RESERVED:
        return "domain_reserved", "special_use"
    detail = _first(
        ("domain_too_long", len(name) > MAX_DOMAIN),
        ("address_too_long", before + max(len(name), written) > MAX_ADDRESS),
        ("no_dot", len(labels) == 1),
        ("numeric_tld", not labels[-1][-1].isalpha()),
    )
    if detail or "xn--" not in name:
        return "syntax_invalid", detail or "bad_character"
    # Each label is well by itself: what is left is the Bidi rule (RFC 5893), which one label may break for another.
    right_to_left = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in idna.decode(name))
    return "idn_invalid", "idn_bidi" if right_to_left else "idn_label"
