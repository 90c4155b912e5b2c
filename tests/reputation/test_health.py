"""The health of a list, with time as data."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.listing import Check, Status
from engine.reputation.blocklist import Family, Kind
from engine.reputation.health import FIRST_S, LAST_S, RETRY_S, Finding, Health, Probe, Role, assess, questions
from engine.reputation.registry import load_registry
from engine.reputation.verdict import Answer

GOOD = Probe(Finding.GOOD)
NOBODY = Answer("NXDOMAIN")


def bad(finding: Finding) -> Probe:
    return Probe(finding, f"it is {finding}")


def probed(blocklist, listed: Answer, unlisted: Answer = NOBODY, made_up: Answer = NOBODY) -> Probe:
    """The finding of a probe with these answers."""
    answers = {Role.LISTED: listed, Role.UNLISTED: unlisted, Role.RANDOM: made_up}
    return assess(blocklist, [(each, answers[each.role]) for each in questions(blocklist, random.Random(1))])


# --- what is asked


def test_a_probe_asks_both_test_points_and_a_random_name(blocklist) -> None:
    """For each family that the list knows; the random one is of the documentation's networks."""
    names = [each.name for each in questions(blocklist("bl.example", families=(Family.IPV4,)), random.Random(1))]
    assert names[:2] == ["2.0.0.127.bl.example", "1.0.0.127.bl.example"]
    assert names[2].endswith(".2.0.192.bl.example")
    names = [each.name for each in questions(blocklist("bl.example", families=(Family.IPV6,)), random.Random(1))]
    assert names[0].startswith("2.0.0.0.0.0.f.7.f.f.f.f.0.")
    assert names[2].endswith(".8.b.d.0.1.0.0.2.bl.example")


def test_a_random_domain_has_letters_only(blocklist) -> None:
    """Some lists' servers fail at odd labels, and that would look like a dead list."""
    uri = blocklist("uri.example", kind=Kind.DOMAIN)
    for seed in range(20):
        label, _, zone = questions(uri, random.Random(seed))[2].name.partition(".")
        assert (label.isalpha(), label.islower(), zone) == (True, True, "uri.example")


# --- what the answers say


def test_a_list_that_knows_its_test_entry_alone_is_good(blocklist) -> None:
    """The only way to be usable."""
    assert probed(blocklist(), Answer(records=("127.0.0.2",))).finding is Finding.GOOD


LISTED = Answer(records=("127.0.0.2",))


@pytest.mark.parametrize(
    ("listed", "unlisted", "made_up", "finding"),
    [
        (NOBODY, NOBODY, NOBODY, Finding.EMPTY),
        (LISTED, NOBODY, LISTED, Finding.WILDCARD),
        (LISTED, LISTED, NOBODY, Finding.WILDCARD),
        (Answer(records=("127.0.0.1",)),) * 3 + (Finding.WILDCARD,),
        (Answer(records=("203.0.113.5",)),) * 3 + (Finding.PARKED,),
        (Answer(records=("127.255.255.254",)),) * 3 + (Finding.REFUSED,),
        (Answer("SERVFAIL"),) * 3 + (Finding.SILENT,),
        (LISTED, NOBODY, Answer("", failure="timed out"), Finding.SILENT),
        (Answer(records=("127.0.0.9",)), NOBODY, NOBODY, Finding.CODE),
    ],
)
def test_each_failure_has_its_name(blocklist, listed, unlisted, made_up, finding) -> None:
    """Emptied, wildcard, sinkhole, parked, refused, dead, half dead, another code."""
    probe = probed(blocklist(), listed, unlisted, made_up)
    assert probe.finding is finding
    assert probe.detail


def test_a_blocked_clean_answer_is_no_health(blocklist) -> None:
    """Through a blocked resolver some lists know nobody: then their test entry is gone too."""
    assert probed(blocklist(), NOBODY).finding is Finding.EMPTY


def test_the_code_of_a_test_entry_is_the_lists_own(blocklist) -> None:
    """suomispam answers 127.0.0.99 at its test point; the usual code would be wrong there."""
    suomispam = load_registry().named("suomispam")
    assert probed(suomispam, Answer(records=("127.0.0.99",))).finding is Finding.GOOD
    assert probed(suomispam, Answer(records=("127.0.0.2",))).finding is Finding.CODE


def test_a_detail_quotes_no_key(blocklist) -> None:
    """What is asked holds the key; what is told does not."""
    keyed = blocklist("{key}.bl.example", key="s3cret")
    assert "s3cret" in questions(keyed, random.Random(1))[0].name
    for answer in (NOBODY, Answer("SERVFAIL"), Answer(records=("203.0.113.5",)), Answer(records=("127.0.0.9",))):
        assert "s3cret" not in probed(keyed, answer, answer, answer).detail


# --- what follows


def test_a_list_is_not_usable_before_its_first_good_probe() -> None:
    """And one good probe makes it so."""
    health = Health("bl")
    assert (health.usable, health.why, health.due) == (False, "not probed yet", float("-inf"))
    move = health.observe(GOOD, 0.0)
    assert move
    assert (health.usable, move.usable, move.doubtful_since) == (True, True, None)


def test_silence_suspends_at_the_second_time_and_throws_no_doubt() -> None:
    """A glitch of the network doesn't close what a list rightly said."""
    health = Health("bl")
    health.observe(GOOD, 0.0)
    assert health.observe(bad(Finding.SILENT), 300.0) is None
    assert health.usable
    move = health.observe(bad(Finding.SILENT), 360.0)
    assert move
    assert (health.usable, move.doubtful_since, health.status) == (False, None, Status.ERROR)


def test_one_silence_is_forgiven() -> None:
    """A good probe after it and all is well."""
    health = Health("bl")
    for at, probe in enumerate([GOOD, bad(Finding.SILENT), GOOD, bad(Finding.SILENT), GOOD]):
        health.observe(probe, at * 300.0)
    assert health.usable


@pytest.mark.parametrize("finding", [Finding.WILDCARD, Finding.PARKED, Finding.CODE, Finding.EMPTY, Finding.REFUSED])
def test_a_list_that_says_what_is_not_so_is_suspended_at_once(finding: Finding) -> None:
    """With why, and the moment of the last good probe."""
    health = Health("bl")
    health.observe(GOOD, 100.0)
    health.observe(GOOD, 400.0)
    move = health.observe(bad(finding), 1000.0)
    assert move
    assert (health.usable, move.usable, move.finding, move.doubtful_since) == (False, False, finding, 400.0)
    assert health.why == f"it is {finding}"


def test_a_wildcard_makes_listings_doubtful_and_a_refusal_clean_answers() -> None:
    """Since the last good probe, of this list, and no others: a true listing survives a rate limit."""

    def check(at: float, status: Status, name: str = "bl") -> Check:
        return Check("192.0.2.1", name, status, at)

    def move_by(finding: Finding):
        health = Health("bl")
        health.observe(GOOD, 100.0)
        return health.observe(bad(finding), 500.0)

    lying, refusing = move_by(Finding.WILDCARD), move_by(Finding.REFUSED)
    assert lying.doubts(check(200.0, Status.LISTED))
    assert not lying.doubts(check(50.0, Status.LISTED))
    assert not lying.doubts(check(200.0, Status.LISTED, "other"))
    assert not lying.doubts(check(200.0, Status.CLEAN))
    assert refusing.doubts(check(200.0, Status.CLEAN))
    assert not refusing.doubts(check(200.0, Status.LISTED))


def test_a_suspended_list_owes_two_good_probes() -> None:
    """A wildcard that comes and goes doesn't come back by one lucky answer."""
    health = Health("bl")
    health.observe(GOOD, 0.0)
    health.observe(bad(Finding.WILDCARD), 300.0)
    assert health.observe(GOOD, 360.0) is None
    assert not health.usable
    assert health.due == 360.0 + RETRY_S
    health.observe(bad(Finding.WILDCARD), 420.0)
    health.observe(GOOD, 480.0)
    move = health.observe(GOOD, 540.0)
    assert move
    assert (move.usable, health.usable, health.last_good) == (True, True, 540.0)


def test_probes_become_rarer_good_or_not() -> None:
    """5 min to 1 h while good, 1 min to 1 h while not."""
    for probe, first in ((GOOD, FIRST_S), (bad(Finding.SILENT), RETRY_S)):
        health, now, gaps = Health("bl"), 0.0, []
        for _ in range(12):
            health.observe(probe, now)
            gaps.append(health.due - now)
            now = health.due
        assert gaps[:3] == [first, 2 * first, 4 * first]
        assert gaps[-1] == LAST_S


def test_a_refused_check_suspends_without_a_probe() -> None:
    """Once: what was in flight beside it changes nothing."""
    health = Health("bl")
    health.observe(GOOD, 0.0)
    assert health.refuse("too many queries (127.255.255.255)", 10.0)
    due = health.due
    assert health.refuse("too many queries (127.255.255.255)", 11.0) is None
    assert (health.usable, health.status, health.due) == (False, Status.REFUSED, due)


def test_a_failed_check_brings_the_next_probe_nearer() -> None:
    """And never puts it off."""
    health = Health("bl")
    for at in (0.0, 300.0, 900.0):
        health.observe(GOOD, at)
    health.hasten(1000.0)
    assert health.due == 1000.0 + RETRY_S
    health.hasten(1030.0)
    assert health.due == 1000.0 + RETRY_S


@given(st.lists(st.sampled_from(Finding), max_size=40))
def test_no_list_is_usable_that_has_not_been_good(findings: list[Finding]) -> None:
    """Whatever the order: usable means a good probe lately, moves alternate, and a lie is never survived."""
    health, moves = Health("bl"), []
    for at, finding in enumerate(findings):
        moves.append(health.observe(bad(finding), float(at)))
        if health.usable:
            assert Finding.GOOD in findings[: at + 1][-2:]
        assert not (health.usable and finding not in (Finding.GOOD, Finding.SILENT))
    states = [move.usable for move in moves if move]
    assert all(one != other for one, other in itertools.pairwise(states))
