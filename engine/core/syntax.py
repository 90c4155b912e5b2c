"""SG1 in full: any text against email-validator, and why a text is no address. The rules stand in `core.address`."""

from __future__ import annotations

import re
import unicodedata

import email_validator
import idna

from engine.core.address import MAX_ADDRESS, MAX_DOMAIN, MAX_LABEL, MAX_LOCAL, RESERVED, SPACE, Address, BadAddress

_MAX_EXPLAINED = 4096  # characters; what a longer text suffers from shows before that
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)
# Of ASCII what may not stand there; what lies beyond it is judged by its category.
_NOT_ATEXT = re.compile(r"(?=[\x00-\x7f])[^A-Za-z0-9!#$%&'*+\-/=?^_`{|}~.]")
_NOT_HOST = re.compile(r"(?=[\x00-\x7f])[^A-Za-z0-9.\-]")


def parse_fully(text: str) -> Address | BadAddress:
    """`core.address.parse` without its short cut."""
    bare = text.strip(SPACE)
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
    if labels[-1] in RESERVED:
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
