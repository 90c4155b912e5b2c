"""Verdicts: each law is a mistake that some block list checker makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.listing import Severity, Status
from engine.reputation.blocklist import Effect, Kind
from engine.reputation.registry import load_registry
from engine.reputation.verdict import Answer, judge

ZEN = load_registry().named("spamhaus-zen")


@pytest.mark.parametrize("answer", [Answer("NXDOMAIN"), Answer("NOERROR")])
def test_no_record_is_clean(blocklist, answer: Answer) -> None:
    """NXDOMAIN, and a name without an address."""
    assert judge(blocklist(), answer).status is Status.CLEAN


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "FORMERR", "NOTIMP", "NOTAUTH", "BADVERS"])
def test_an_error_is_never_clean(blocklist, rcode: str) -> None:
    """A server that fails has not said that the target is unlisted."""
    verdict = judge(blocklist(), Answer(rcode))
    assert (verdict.status, verdict.detail) == (Status.ERROR, rcode)


@pytest.mark.parametrize("failure", ["timed out", "truncated", "malformed", "lame"])
def test_silence_is_never_clean(blocklist, failure: str) -> None:
    """Nor has one that gave no answer."""
    verdict = judge(blocklist(), Answer("", failure=failure))
    assert (verdict.status, verdict.detail) == (Status.ERROR, failure)


def test_a_documented_code_is_a_listing(blocklist) -> None:
    """With sublist, code, severity and meaning out of the list's table."""
    verdict = judge(blocklist(), Answer(records=("127.0.0.2",)))
    assert verdict.status is Status.LISTED
    (listing,) = verdict.listings
    assert (listing.sublist, listing.code, listing.severity, listing.meaning) == (
        "bl", "127.0.0.2", Severity.HIGH, "sends spam")  # fmt: skip


@pytest.mark.parametrize("stranger", ["203.0.113.5", "10.0.0.1", "0.0.0.0", "126.255.255.255", "128.0.0.1"])
def test_an_address_outside_127_is_suspect(blocklist, stranger: str) -> None:
    """A parked domain or a rewriting resolver, even beside a true-looking code."""
    for records in ((stranger,), (stranger, "127.0.0.2")):
        verdict = judge(blocklist(), Answer(records=records))
        assert verdict.status is Status.SUSPECT
        assert stranger in verdict.detail
        assert not verdict.listings


@pytest.mark.parametrize(("last", "word"), [(252, "mistyped"), (254, "public"), (255, "too many"), (7, "refuses")])
def test_127_255_255_is_a_refusal_for_every_list(blocklist, code, last: int, word: str) -> None:
    """Spamhaus' error codes are no reputation, even for a list whose table would take them in."""
    greedy = blocklist("bl.example", code("127.0.0.0", "127.255.255.255"))
    for records in ((f"127.255.255.{last}",), (f"127.255.255.{last}", "127.0.0.2")):
        verdict = judge(greedy, Answer(records=records))
        assert verdict.status is Status.REFUSED
        assert word in verdict.detail
        assert not verdict.listings


def test_a_refusal_of_the_lists_own_is_one(blocklist, code) -> None:
    """127.0.1.255 of the DBL: it was asked about an address."""
    dbl = blocklist("dbl.example", code("127.0.1.2"), code("127.0.1.255", effect=Effect.REFUSED, means="knows no IPs"))
    verdict = judge(dbl, Answer(records=("127.0.1.255",)))
    assert (verdict.status, verdict.detail) == (Status.REFUSED, "knows no IPs (127.0.1.255)")


def test_127_0_0_1_is_no_listing(blocklist) -> None:
    """It is what sinkholes answer, and no list may list by it (RFC 5782 section 5)."""
    verdict = judge(blocklist(), Answer(records=("127.0.0.1",)))
    assert (verdict.status, verdict.detail) == (Status.SUSPECT, "answers 127.0.0.1, which is no listing")


def test_127_0_0_1_is_what_the_list_documents(blocklist, code) -> None:
    """Blocked (URIBL), white (hostkarma), or a bit (Sender Score): data of the list."""
    refusing = blocklist("uri.example", code(bit=1, effect=Effect.REFUSED, means="refuses"), code(bit=2))
    assert judge(refusing, Answer(records=("127.0.0.1",))).status is Status.REFUSED
    white = blocklist("hk.example", code("127.0.0.1", effect=Effect.GOOD, means="white"), code("127.0.0.2"))
    assert judge(white, Answer(records=("127.0.0.1",))).status is Status.CLEAN
    botnet = blocklist("score.example", code(bit=1, sublist="bot"))
    assert judge(botnet, Answer(records=("127.0.0.1",))).status is Status.LISTED


def test_an_undocumented_code_is_suspect(blocklist) -> None:
    """The raw answer is kept; nobody is called listed by it."""
    verdict = judge(blocklist(), Answer(records=("127.0.0.77",)))
    assert (verdict.status, verdict.detail) == (Status.SUSPECT, "answers 127.0.0.77, which it does not document")


def test_an_undocumented_code_beside_a_documented_one_is_told(blocklist) -> None:
    """The listing stands, the rest is in the detail."""
    verdict = judge(blocklist(), Answer(records=("127.0.0.2", "127.0.0.77")))
    assert verdict.status is Status.LISTED
    assert "127.0.0.77" in verdict.detail


def test_several_codes_are_several_sublists_each_told_once(blocklist, code) -> None:
    """ZEN: .4 and .5 are both XBL, .10 is PBL; the gravest stands first."""
    zen = blocklist(
        "zen.example",
        code("127.0.0.10", "127.0.0.11", sublist="pbl", severity=Severity.MEDIUM),
        code("127.0.0.4", "127.0.0.7", sublist="xbl", severity=Severity.CRITICAL),
    )
    verdict = judge(zen, Answer(records=("127.0.0.10", "127.0.0.5", "127.0.0.4")))
    assert [each.sublist for each in verdict.listings] == ["xbl", "pbl"]
    assert verdict.listings[0].code == "127.0.0.4"


def test_a_bit_mask_is_a_sublist_a_bit(blocklist, code) -> None:
    """SURBL: 127.0.0.72 is phishing (8) and abuse (64)."""
    surbl = blocklist("multi.example", code(bit=8, sublist="ph"), code(bit=64, sublist="abuse"))
    assert [each.sublist for each in judge(surbl, Answer(records=("127.0.0.72",))).listings] == ["abuse", "ph"]
    assert judge(surbl, Answer(records=("127.0.0.2",))).status is Status.SUSPECT
    assert judge(surbl, Answer(records=("127.0.1.8",))).status is Status.SUSPECT  # another octet is no mask


def test_neutral_and_good_codes_are_no_listings(blocklist, code) -> None:
    """A middling reputation is told in the detail."""
    scale = blocklist("rep.example", code("127.0.0.10"), code("127.0.0.15", effect=Effect.NEUTRAL, means="neutral"))
    verdict = judge(scale, Answer(records=("127.0.0.15",)))
    assert (verdict.status, verdict.detail) == (Status.CLEAN, "neutral (127.0.0.15)")


def test_an_entry_of_a_white_list_is_no_listing(blocklist, code) -> None:
    """Peers that ship white lists as block lists call good senders listed."""
    white = blocklist("wl.example", code("127.0.5.2", effect=Effect.GOOD, means="trusted"), kind=Kind.WHITE)
    assert judge(white, Answer(records=("127.0.5.2",))).status is Status.CLEAN


@given(st.lists(st.ip_addresses(v=4).map(str), max_size=4), st.sampled_from(["NOERROR", "NXDOMAIN", "SERVFAIL"]))
def test_whatever_comes_a_listing_is_documented(records: list[str], rcode: str) -> None:
    """Garbage gives one of the five states, and LISTED needs a code of the table and none that spoils it."""
    verdict = judge(ZEN, Answer(rcode, tuple(records)))
    assert (verdict.status is Status.LISTED) == bool(verdict.listings)
    if verdict.status is Status.LISTED:
        assert rcode != "SERVFAIL"
        assert all(record.startswith("127.") and not record.startswith("127.255.255.") for record in records)
    if verdict.status is Status.CLEAN:
        assert not records
