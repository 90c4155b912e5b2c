"""SG1: is this text an address, and how is it written on the wire.

1. Whether it is one is email-validator's verdict (RFC 5321, RFC 6531, IDNA 2008 with the mapping of UTS 46), without
   DNS. One rule is ours: RFC 5321 section 4.5.3.1.1 counts a local part in octets, as written on the wire.
2. A plain ASCII address takes a short cut that gives the same answer; a test holds the two together.
3. Why it is none is read from the text itself, in a fixed order (`core.syntax`); a library's sentences are never read.
4. A quoted local part is an address (RFC 5321 section 4.1.2); quotes that aren't needed go, those that are stay.
   A domain literal, a display name and angle brackets are refused: a list holds addresses, not headers.
5. Special-use names are those that email-validator refuses: arpa, invalid, local, localhost, onion, test and what is
   below them. `example` and `example.com|net|org` pass: RFC 6761 asks applications not to treat them specially, and
   DNS answers for them (a null MX, or no such name). `lab` is not reserved and passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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


SPACE = " \t\r\n\f\v"  # what a cell may have around its address
RESERVED = frozenset({"arpa", "invalid", "local", "localhost", "onion", "test"})  # rule 5
ANY_CASE = frozenset({  # RFC 2142
    "info", "marketing", "sales", "support", "abuse", "noc", "security", "postmaster", "hostmaster", "usenet", "news",
    "webmaster", "www", "uucp", "ftp",
})  # fmt: skip
_ATEXT = r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]"
_LABEL = r"[A-Za-z0-9]++(?:-++[A-Za-z0-9]++)*+"
_PLAIN = re.compile(rf"({_ATEXT}++(?:\.{_ATEXT}++)*+)@((?:{_LABEL}\.)++({_LABEL}))")


def parse(text: str) -> Address | BadAddress:
    """The address that this text is, or why it is none. ASCII white space around it does not count."""
    plain = _PLAIN.fullmatch(text.strip(SPACE))
    if plain is not None:
        local, domain, top = plain.groups()
        # Short enough that no label can be too long, and without "--" there is no A-label to look into.
        if len(local) <= MAX_LOCAL and len(domain) <= MAX_LABEL and "--" not in domain:
            top = top.lower()
            if top in RESERVED:
                return BadAddress(text, "domain_reserved", "special_use")
            if not top[-1].isdigit():
                lower = local.lower()
                return Address(text, lower if lower in ANY_CASE else local, domain.lower())
    from engine.core.syntax import parse_fully  # noqa: PLC0415 - email-validator, which a list of plain ones can spare

    return parse_fully(text)
