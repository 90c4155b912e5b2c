"""Laws of the rota: every pair has its turn, none twice at once, and what is urgent comes first."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reputation.rota import SPREAD_S, Rota

PAIRS = {("192.0.2.1", "a"): 900.0, ("192.0.2.1", "b"): 3600.0, ("192.0.2.2", "a"): 900.0}


def turns(rota, until, answer_s=1.0, now=0.0):
    """(when, pair) of every turn, each answered so many seconds later."""
    found, flying = [], []
    while now <= until:
        for at, pair in [each for each in flying if each[0] <= now]:
            flying.remove((at, pair))
            rota.asked(pair, now)
        while (pair := rota.take(now)) is not None:
            found.append((now, pair))
            flying.append((now + answer_s, pair))
        moments = [each[0] for each in flying] + ([rota.next_at] if rota.next_at is not None else [])
        now = max(now, min(moments))
    return found


@given(st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_each_pair_is_asked_at_its_interval_give_or_take_a_tenth(random):
    """Over a day, from the first turn on."""
    rota = Rota(random.random)
    rota.put(PAIRS, 0.0)
    found = turns(rota, 86_400.0)
    for pair, interval_s in PAIRS.items():
        mine = [at for at, each in found if each == pair]
        assert mine[0] <= SPREAD_S
        gaps = [later - sooner for sooner, later in pairwise(mine)]
        assert min(gaps) >= 0.9 * interval_s
        assert max(gaps) <= 1.1 * interval_s + 1.1


def test_a_pair_that_is_in_flight_is_due_to_nobody_else():
    """Until it is answered."""
    rota = Rota(lambda: 0.0)
    rota.put({("192.0.2.1", "a"): 60.0}, 0.0)
    assert rota.take(0.0) == ("192.0.2.1", "a")
    assert rota.take(1e6) is None
    rota.asked(("192.0.2.1", "a"), 5.0)
    assert rota.next_at == 5.0 + 54.0


def test_what_is_urgent_is_asked_at_its_moment_and_not_later():
    """Waiting or in flight; a later moment changes nothing, and a pair that left stays away."""
    pair = ("192.0.2.1", "a")
    rota = Rota(lambda: 0.5)
    rota.put({pair: 3600.0}, 0.0)
    rota.bring_forward(pair, 3.0)
    rota.bring_forward(pair, 9000.0)
    assert rota.next_at == 3.0
    assert rota.take(3.0) == pair
    rota.bring_forward(pair, 303.0)
    rota.asked(pair, 4.0)
    assert rota.next_at == 303.0
    rota.put({}, 5.0)
    rota.bring_forward(pair, 6.0)
    assert rota.next_at is None


def test_pairs_that_stay_keep_their_turn():
    """A reload neither asks all of them at once nor forgets when they were asked."""
    rota = Rota(lambda: 0.0)
    rota.put(PAIRS, 0.0)
    while (pair := rota.take(0.0)) is not None:
        rota.asked(pair, 0.0)
    due = rota.next_at
    rota.put(PAIRS | {("192.0.2.3", "a"): 900.0}, 100.0)
    assert rota.take(100.0) == ("192.0.2.3", "a")
    assert rota.next_at == due
