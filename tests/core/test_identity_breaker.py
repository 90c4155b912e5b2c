"""Laws of the breaker above all lanes, with time and answers as data."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.breaker import BreakerState
from engine.core.identity_breaker import EGRESS, IdentityBreaker, Organisation, operator, organisation


def who(number: int) -> Organisation:
    """A site of an organisation of its own."""
    return organisation(f"mx.site-{number}.example", f"10.{number // 256}.{number % 256}.1")


def answer(breaker: IdentityBreaker, number: int, cause: str = "", named: str = "", now: float = 0.0) -> bool:
    return breaker.answered(f"site-{number}", who(number), now, 0.0, cause=cause, named=named)


def test_three_organisations_in_a_row_that_refuse_us_stop_the_identity():
    """Two do not, and one that lets us ask in between begins the row anew."""
    breaker = IdentityBreaker()
    opened = [answer(breaker, n, cause) for n, cause in enumerate(["ip_blocked"] * 2 + [""] + ["ip_blocked"] * 2)]
    assert not any(opened)
    assert answer(breaker, 9, "ip_blocked")
    assert breaker.stops
    assert breaker.breaker.cause == "ip_blocked"


def test_five_of_the_last_25_sites_stop_the_identity():
    """Spread among 20 that do not refuse us; spread thinner they do not."""
    dense = IdentityBreaker()
    assert any(answer(dense, n, "ip_blocked" if n % 5 == 0 else "") for n in range(25))
    thin = IdentityBreaker()
    assert not any(answer(thin, n, "ip_blocked" if n % 7 == 0 else "") for n in range(500))


def test_three_that_name_the_same_list_stop_the_identity():
    """Under whatever name of it; three lists are three opinions."""
    same = IdentityBreaker()
    lists = {0: "zen.spamhaus.org", 6: "www.spamhaus.org", 12: "spamhaus"}
    assert [n for n in range(20) if answer(same, n, "ip_blocklisted" if n in lists else "", lists.get(n, ""))] == [12]
    various = IdentityBreaker()
    lists = {0: "zen.spamhaus.org", 6: "bl.spamcop.net", 12: "b.barracudacentral.org"}
    assert not any(answer(various, n, "ip_blocklisted" if n in lists else "", lists.get(n, "")) for n in range(20))


def test_one_organisation_is_one_opinion():
    """Many hosts under one registrable domain, or in one /24, count once."""
    by_name, by_network = IdentityBreaker(), IdentityBreaker()
    for n in range(50):
        one = organisation(f"mx{n}.host.example", f"10.0.{n}.1")
        other = organisation(f"mx.site-{n}.example", f"10.9.9.{n}")
        assert not by_name.answered(f"a{n}", one, 0.0, 0.0, cause="ip_blocked", named="zen.spamhaus.org")
        assert not by_network.answered(f"b{n}", other, 0.0, 0.0, cause="ip_blocked", named="zen.spamhaus.org")


def test_a_site_counts_by_its_last_answer():
    """Who relents no longer counts, and who repeats himself counts once."""
    breaker = IdentityBreaker()
    for _ in range(10):
        assert not answer(breaker, 1, "rate_limited")
    answer(breaker, 2, "ip_blocked")
    answer(breaker, 1)
    answer(breaker, 2)
    assert not answer(breaker, 3, "ip_blocked")
    assert not answer(breaker, 4, "ip_blocked")


@pytest.mark.parametrize("seed", range(5))
def test_a_run_of_20_000_sites_is_not_stopped_by_chance(seed):
    """0.5 % of the sites refuse everybody and 3 % are dead: nothing opens, and hardly any witness is asked."""
    breaker, dice, doubts = IdentityBreaker(), random.Random(seed), 0
    for n in range(20_000):
        kind = dice.random()
        if kind < 0.03:
            doubts += breaker.timed_out(f"site-{n}")
            continue
        breaker.connected(f"site-{n}", "lane")
        assert not answer(breaker, n, "ip_blocklisted" if kind < 0.035 else "", dice.choice(["a.example", "b.example"]))
    assert doubts == 0
    assert not breaker.stops


def test_forty_in_a_hundred_stop_it_soon():
    """Sites that begin to name one list: it opens at the third such reply."""
    breaker, dice, refusals = IdentityBreaker(), random.Random(7), 0
    for n in range(2000):
        refuses = dice.random() < 0.4
        refusals += refuses
        if answer(breaker, n, "ip_blocklisted" if refuses else "", "zen.spamhaus.org" if refuses else ""):
            break
    assert refusals == 3


def test_open_time_doubles_to_six_hours_and_an_answer_closes_it():
    """A half-open session decides; old refusals do not open it again."""
    breaker, now, gaps = IdentityBreaker(), 0.0, []
    for n in range(3):
        answer(breaker, n, "ip_blocked", now=now)
    for _ in range(7):
        gaps.append(breaker.breaker.until - now)
        now = breaker.breaker.until
        breaker.breaker.attempt(now)
        breaker.tried(now, 0.0, cause="ip_blocked")
    assert gaps == [900, 1800, 3600, 7200, 14400, 21600, 21600]
    now = breaker.breaker.until
    breaker.breaker.attempt(now)
    breaker.tried(now, 0.0, cause="")
    assert not breaker.stops
    assert not answer(breaker, 50, "ip_blocked", now=now)


def test_late_answers_move_nothing_while_it_is_open():
    """Sessions that were in flight neither lengthen nor end it."""
    breaker = IdentityBreaker()
    for n in range(3):
        answer(breaker, n, "ip_blocked")
    until = breaker.breaker.until
    assert not any(answer(breaker, n, "ip_blocked" if n % 2 else "", now=5.0) for n in range(10, 60))
    assert (breaker.breaker.until, breaker.breaker.state) == (until, BreakerState.OPEN)


def test_a_row_of_timeouts_is_a_doubt_and_the_witnesses_decide():
    """20 in a row at 5 sites raise it; one site alone, or a connection among them, does not."""
    breaker = IdentityBreaker()
    for n in range(5):
        breaker.connected(f"alive-{n}", f"lane-{n}")
    assert [n for n in range(1, 41) if breaker.timed_out(f"dead-{n}")] == [20, 40]
    assert breaker.witnesses == [("alive-4", "lane-4"), ("alive-3", "lane-3"), ("alive-2", "lane-2")]
    assert not any(breaker.timed_out("alone") for _ in range(100))
    spoken = IdentityBreaker()
    for n in range(200):
        assert not spoken.timed_out(f"dead-{n}")
        if n % 19 == 0:
            spoken.refused()
    assert breaker.egress_closed(0.0, 0.0)
    assert breaker.breaker.cause == EGRESS


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), max_size=80))
@settings(max_examples=150, deadline=None)
def test_nothing_opens_below_the_numbers_of_its_rule(course):
    """Whatever the order: it opens only at a refusal, with three that refuse us among the last answers."""
    breaker, last = IdentityBreaker(), {}
    for number, refuses, names in course:
        last.pop(number, None)
        last[number] = refuses
        opened = answer(breaker, number, "ip_blocked" if refuses else "", "zen.spamhaus.org" if names else "")
        if opened:
            assert refuses
            assert sum(list(last.values())[-25:]) >= 3
            return
    values = list(last.values())[-25:]
    assert sum(values) < 5
    assert len(values) < 3 or not all(values[-3:])


def test_a_restart_keeps_it_closed_to_us_and_the_row_that_began():
    """Memory is plain JSON; the time away counts, a clock set back does not open it."""
    breaker = IdentityBreaker()
    breaker.connected("site-2", "lane-2")
    for n in range(3):
        answer(breaker, n, "ip_blocked", now=100.0)
    kept = json.loads(json.dumps(breaker.memory(200.0)))
    again = IdentityBreaker()
    again.recall(kept, 5000.0, 300.0)
    assert again.breaker.until == pytest.approx(5000.0 + 800.0 - 300.0)
    assert list(again.last.items()) == [("site-2", "lane-2")]
    half = IdentityBreaker()
    answer(half, 1, "ip_blocked")
    answer(half, 2, "ip_blocked")
    third = IdentityBreaker()
    third.recall(json.loads(json.dumps(half.memory(0.0))), 0.0, 60.0)
    assert answer(third, 3, "ip_blocked")


@pytest.mark.parametrize(
    ("name", "owner"),
    [("zen.spamhaus.org", "spamhaus"), ("spamhaus", "spamhaus"), ("bl.spamcop.net", "spamcop"), ("l.x.co.uk", "x")],
)
def test_a_list_is_known_by_its_operator(name, owner):
    """Zones and pages of one operator are one list."""
    assert operator(name) == owner


def refuse_three(breaker: IdentityBreaker, now: float) -> None:
    for number in range(3):
        answer(breaker, number, "ip_blocked", now=now)


def test_who_is_refused_again_soon_after_a_friendly_trial_stays_away_for_longer():
    """The half-open session may meet the one site that never refused us: the others get more peace each time."""
    breaker, now, away = IdentityBreaker(100.0, 900.0), 0.0, []
    for _ in range(6):
        refuse_three(breaker, now)
        away.append(breaker.breaker.until - now)
        now = breaker.breaker.until
        breaker.breaker.attempt(now)
        breaker.tried(now, 0.0, cause="")
        assert not breaker.stops
        now += 5.0
    assert away == [100.0, 200.0, 400.0, 800.0, 900.0, 900.0]


def test_who_was_let_in_for_long_begins_anew():
    """As long as it would have stayed away: then the next refusal is another story."""
    breaker = IdentityBreaker(100.0, 900.0)
    refuse_three(breaker, 0.0)
    breaker.breaker.attempt(100.0)
    breaker.tried(100.0, 0.0, cause="")
    refuse_three(breaker, 300.0)
    assert breaker.breaker.until == 400.0
