"""Laws of SG1: what is an address, how it is written, and why a text is none."""

from __future__ import annotations

import email_validator
import pytest
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.address import ANY_CASE, DETAILS, MAX_ADDRESS, RESERVED, Address, BadAddress, parse
from engine.core.syntax import parse_fully

REFUSED = [
    ("", "syntax_invalid", "empty"),
    (" \t\r\n", "syntax_invalid", "empty"),
    ("ann", "syntax_invalid", "missing_at"),
    ("ann.example.org", "syntax_invalid", "missing_at"),
    ("ann＠example.org", "syntax_invalid", "fullwidth_at"),
    ("ann@@example.org", "syntax_invalid", "multiple_at"),
    ("ann@example.org@example.net", "syntax_invalid", "multiple_at"),
    ("@example.org", "syntax_invalid", "empty_local"),
    ('""@example.org', "syntax_invalid", "empty_local"),
    ("ann@", "syntax_invalid", "empty_domain"),
    ("ann@[192.0.2.1]", "syntax_invalid", "domain_literal"),
    ("ann@[IPv6:2001:db8::1]", "syntax_invalid", "domain_literal"),
    ("<ann@example.org>", "syntax_invalid", "display_name"),
    ("Ann Lee <ann@example.org>", "syntax_invalid", "display_name"),
    ('"Lee, Ann" <ann@example.org>', "syntax_invalid", "display_name"),
    ('"ann@example.org', "syntax_invalid", "bad_quoting"),
    ('"ann"lee@example.org', "syntax_invalid", "bad_quoting"),
    ('ann"lee"@example.org', "syntax_invalid", "bad_quoting"),
    ("ann\r\nRCPT TO:<eve@example.org>", "syntax_invalid", "control_character"),
    ("ann\x00@example.org", "syntax_invalid", "control_character"),
    ("ann@example.org\x7f", "syntax_invalid", "control_character"),
    ('"ann\x07"@example.org', "syntax_invalid", "control_character"),
    ("ann\x85@example.org", "syntax_invalid", "control_character"),
    ("ann lee@example.org", "syntax_invalid", "whitespace"),
    ("ann@exam ple.org", "syntax_invalid", "whitespace"),
    ("ann\u00a0lee@example.org", "syntax_invalid", "whitespace"),
    ("ann@example.org\u200b", "syntax_invalid", "invisible_character"),
    ("\u202eann@example.org", "syntax_invalid", "invisible_character"),
    ("ann,lee@example.org", "syntax_invalid", "bad_character"),
    ("mailto:ann@example.org", "syntax_invalid", "bad_character"),
    ("ann@exam_ple.org", "syntax_invalid", "bad_character"),
    ("ann\u037elee@example.org", "syntax_invalid", "bad_character"),  # NFC makes it a semicolon
    ("ann\ud800@example.org", "syntax_invalid", "bad_character"),
    (".ann@example.org", "syntax_invalid", "dot_placement"),
    ("ann.@example.org", "syntax_invalid", "dot_placement"),
    ("ann..lee@example.org", "syntax_invalid", "dot_placement"),
    ("ann@.example.org", "syntax_invalid", "dot_placement"),
    ("ann@example..org", "syntax_invalid", "dot_placement"),
    ("ann@example.org.", "syntax_invalid", "dot_placement"),
    ("ann@-example.org", "syntax_invalid", "label_hyphen"),
    ("ann@example-.org", "syntax_invalid", "label_hyphen"),
    ("ann@ab--example.org", "syntax_invalid", "label_reserved"),
    ("ann@" + "x" * 64 + ".org", "syntax_invalid", "label_too_long"),
    ("x" * 65 + "@example.org", "syntax_invalid", "local_too_long"),
    ("é" * 33 + "@example.org", "syntax_invalid", "local_too_long"),
    ('"' + " " * 63 + '"@example.org', "syntax_invalid", "local_too_long"),
    ("ann@" + ".".join(["x" * 50] * 5) + ".org", "syntax_invalid", "domain_too_long"),
    ("x" * 60 + "@" + ".".join(["x" * 48] * 4) + ".org", "syntax_invalid", "address_too_long"),
    ("ann@localdomain", "syntax_invalid", "no_dot"),
    ("ann@192.0.2.1", "syntax_invalid", "numeric_tld"),
    ("ann@☃.org", "idn_invalid", "idn_character"),
    ("ann@xn--n3h.org", "idn_invalid", "idn_character"),
    ("ann@a·b.org", "idn_invalid", "idn_context"),
    ("ann@1.אב.org", "idn_invalid", "idn_bidi"),
    ("ann@xn--zzzzzz99999999.org", "idn_invalid", "idn_punycode"),
    ("ann@example.\u0301x", "idn_invalid", "idn_label"),
    ("ann@" + "ü" * 60 + ".org", "idn_invalid", "label_too_long"),
    ("ann@host.test", "domain_reserved", "special_use"),
    ("ann@mail.host.INVALID", "domain_reserved", "special_use"),
    ("ann@printer.local", "domain_reserved", "special_use"),
    ("root@localhost", "domain_reserved", "special_use"),
    ("ann@abc.onion", "domain_reserved", "special_use"),
    ("ann@2.0.192.in-addr.arpa", "domain_reserved", "special_use"),
]

ACCEPTED = [
    ("ann@example.org", "ann", "example.org"),
    ("  ann@example.org\r\n", "ann", "example.org"),
    ("Ann.Lee+list@Example.ORG", "Ann.Lee+list", "example.org"),
    ("POSTMASTER@example.org", "postmaster", "example.org"),
    ("!#$%&'*+-/=?^_`{|}~@example.org", "!#$%&'*+-/=?^_`{|}~", "example.org"),
    ("ann@a-b--c.example.org", "ann", "a-b--c.example.org"),
    ("ann@lab.lab", "ann", "lab.lab"),
    ("ann@example.com", "ann", "example.com"),
    ("ann@mail.example", "ann", "mail.example"),
    ('"ann lee"@example.org', '"ann lee"', "example.org"),
    ('"ann"@example.org', "ann", "example.org"),
    ('"ann@home"@example.org', '"ann@home"', "example.org"),
    (r'"a\"n\n"@example.org', r'"a\"nn"', "example.org"),
    ("jürgen@bücher.example", "jürgen", "xn--bcher-kva.example"),
    ("ju\u0308rgen@example.org", "jürgen", "example.org"),
    ("ann@faß.de", "ann", "xn--fa-hia.de"),
    ("ann@BÜCHER.DE", "ann", "xn--bcher-kva.de"),
    ("ann@例え。テスト", "ann", "xn--r8jz45g.xn--zckzah"),
    ("ann@XN--BCHER-KVA.de", "ann", "xn--bcher-kva.de"),
    ("x" * 64 + "@example.org", "x" * 64, "example.org"),
    ("ann@" + "x" * 63 + ".org", "ann", "x" * 63 + ".org"),
]


@pytest.mark.parametrize(("text", "reason", "detail"), REFUSED)
def test_every_syntax_error_has_its_own_detail(text: str, reason: str, detail: str) -> None:
    """A text that is no address says why, by a stable code, and keeps the text."""
    assert parse(text) == BadAddress(text, reason, detail)


def test_every_detail_is_reached_and_told() -> None:
    """The table of details names what the examples reach, no more and no less."""
    assert {detail for _, _, detail in REFUSED} == DETAILS.keys()


@pytest.mark.parametrize(("text", "local", "domain"), ACCEPTED)
def test_an_address_is_kept_as_it_goes_on_the_wire(text: str, local: str, domain: str) -> None:
    """NFC and quoted where needed before the @, lower-case A-labels behind it."""
    assert parse(text) == Address(text, local, domain)


def test_only_a_local_part_beyond_ascii_needs_smtputf8() -> None:
    """An internationalised domain goes out in A-labels; only the local part asks for RFC 6531."""
    assert [parse(text).eai for text in ("jürgen@example.org", "ann@bücher.de")] == [True, False]  # type: ignore[union-attr]


_LABELS = st.from_regex(r"[A-Za-z0-9-]{1,6}|[a-z]{60,66}|xn--[a-z0-9]{1,8}", fullmatch=True)
_DOMAINS = st.one_of(
    st.lists(_LABELS, min_size=1, max_size=5).map(".".join),
    st.lists(st.sampled_from(["com", "test", "LOCAL", "local", "a", "xn--", "1", "", "a--b", "ab--c"]), max_size=4).map(
        ".".join
    ),
)
_LOCALS = st.one_of(
    st.from_regex(r"[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]{1,12}|[a-z]{62,66}", fullmatch=True),
    st.sampled_from(["Abuse", "INFO", "www", '"a"', '"a b"']),
)
_PADDING = st.text(" \t\r\n\f\v", max_size=2)


@settings(max_examples=300, deadline=None)
@given(st.builds("{}{}@{}{}".format, _PADDING, _LOCALS, _DOMAINS, _PADDING))
@example("a@" + ".".join(["x" * 12] * 20))
@example("a@x.com\n")
def test_the_short_cut_gives_the_same_answer(text: str) -> None:
    """Plain addresses are judged by one pattern exactly as the full way judges them."""
    assert parse(text) == parse_fully(text)


def test_the_tables_are_those_of_email_validator() -> None:
    """They are written out, so that a list of plain addresses needs no email-validator."""
    assert set(email_validator.SPECIAL_USE_DOMAIN_NAMES) == RESERVED
    assert set(CASE_INSENSITIVE_MAILBOX_NAMES) == ANY_CASE


_ANY = st.text(
    st.one_of(
        st.sampled_from('@.@."\\<>[]- +_\u00e9\u0301\u0338\u200d\u3002\uff0e\u2488\u05d0\u0660\u00b7\u00df\u037e'),
        st.characters(codec=None),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(_ANY, st.builds("{}@{}".format, _ANY, _ANY), st.builds("a@{}.com".format, _ANY)))
def test_any_text_gets_the_verdict_of_email_validator(text: str) -> None:
    """No text raises; a verdict is email-validator's but for the octets of a local part; a detail is in the table."""
    found = parse(text)
    try:
        bare = text.strip(" \t\r\n\f\v")
        email_validator.validate_email(bare, check_deliverability=False, allow_quoted_local=True)
        valid = True
    except email_validator.EmailNotValidError:
        valid = False
    if isinstance(found, BadAddress):
        assert found.detail in DETAILS
        assert not valid or found.detail == "local_too_long"
    else:
        assert valid
        assert parse(found.normalized) == Address(found.normalized, found.local, found.domain)


def test_a_long_text_is_refused_at_once() -> None:
    """A megabyte in a cell is judged by its first characters: IDNA, which is slow on long names, never sees it."""
    assert parse("a@" + "é" * 1_000_000) == BadAddress("a@" + "é" * 1_000_000, "syntax_invalid", "domain_too_long")
    assert isinstance(parse("x" * 1_000_000), BadAddress)
    assert MAX_ADDRESS == 254
