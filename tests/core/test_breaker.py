"""Laws of the breaker, with time as data."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.breaker import Breaker, BreakerState


def test_nothing_starts_while_it_is_open_and_one_session_after_it():
    """Open lets nobody through; when its time is over, the first one makes it half-open and is alone."""
    breaker = Breaker(10.0, 100.0)
    assert breaker.open(0.0, "ip_blocked")
    assert not breaker.allows(9.9)
    assert breaker.allows(10.0)
    breaker.attempt(10.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.allows(10.0)


def test_open_time_doubles_to_its_maximum_and_starts_small_again_after_closing():
    """Each failed half-open attempt costs twice the time."""
    breaker, now, gaps = Breaker(10.0, 60.0), 0.0, []
    for _ in range(5):
        breaker.open(now, "rate_limited")
        gaps.append(breaker.until - now)
        now = breaker.until
        breaker.attempt(now)
    assert gaps == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert breaker.close()
    breaker.open(now, "rate_limited")
    assert breaker.until - now == 10.0


def test_a_half_open_session_that_asked_nothing_leaves_its_place_to_the_next():
    """No answer is neither good nor bad news."""
    breaker = Breaker(10.0, 60.0)
    breaker.open(0.0, "ip_blocked")
    breaker.attempt(10.0)
    breaker.release(11.0)
    assert breaker.allows(11.0)


def test_giving_up_counts_one_piece_through_failed_half_open_attempts():
    """Closed to us since the first refusal; an answer in between starts anew."""
    breaker = Breaker(10.0, 60.0)
    breaker.open(0.0, "ip_blocked")
    breaker.attempt(10.0)
    breaker.open(10.0, "ip_blocked")
    assert not breaker.gives_up(99.0, 100.0)
    assert breaker.gives_up(100.0, 100.0)
    breaker.attempt(200.0)
    breaker.close()
    assert not breaker.gives_up(500.0, 100.0)


@given(st.lists(st.sampled_from(["open", "close", "attempt", "release", "wait"]), max_size=60))
def test_it_never_lets_two_half_open_sessions_through(actions):
    """Between an attempt and its outcome nobody else starts."""
    breaker, now, trying = Breaker(5.0, 40.0), 0.0, False
    for action in actions:
        now += 3.0 if action == "wait" else 0.0
        if action == "attempt" and breaker.allows(now):
            was_open = breaker.state is BreakerState.OPEN
            breaker.attempt(now)
            trying = was_open
        elif action in {"open", "close", "release"}:
            if action == "open":
                breaker.open(now, "x")
            elif action == "close":
                breaker.close()
            else:
                breaker.release(now)
            trying = trying and breaker.state is BreakerState.HALF_OPEN
        if trying:
            assert not breaker.allows(now)
