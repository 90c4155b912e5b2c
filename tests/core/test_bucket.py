"""Laws of limits: no window ever holds more starts than its rate allows, and nothing refused spends anything."""

from __future__ import annotations

import heapq
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.bucket import Gate, SlidingCount, TokenBucket

STEPS = st.lists(st.integers(0, 40).map(lambda tenths: tenths / 10), min_size=1, max_size=120)


@given(STEPS, st.integers(1, 50), st.integers(1, 600), st.integers(1, 6), st.integers(1, 300))
@settings(max_examples=150, deadline=None)
def test_no_half_open_window_holds_more_starts_than_the_rate_allows(steps, number, period_s, burst, window_s):
    """At most ceil(B - 1 + N*T/P) starts in every half-open window of length T."""
    bucket, now, starts = TokenBucket(number / period_s, burst), 0.0, []
    for step in steps:
        now += step
        if bucket.take(now):
            starts.append(now)
    allowed = math.ceil(burst - 1 + number * window_s / period_s + 1e-9)
    for first in starts:
        assert sum(first <= at < first + window_s for at in starts) <= allowed


@given(STEPS, st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_waiting_until_the_named_moment_always_suffices(steps, burst, tokens):
    """`take` at `ready_at` succeeds, and a moment earlier it spends nothing."""
    bucket, now, tokens = TokenBucket(0.7, burst), 0.0, min(tokens, burst)
    for step in steps:
        now += step
        due = bucket.ready_at(now, tokens)
        if due > now:
            assert not bucket.take(now, tokens)
        assert bucket.ready_at(now, tokens) == due
        now = due
        assert bucket.take(now, tokens)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 90).map(lambda tenths: tenths / 10)), min_size=1, max_size=60),
    st.integers(1, 12),
    st.integers(1, 60),
)
@settings(max_examples=150, deadline=None)
def test_what_is_put_off_on_its_way_leaves_within_the_law_too(granted, per_s, window_s):
    """Each grant leaves some seconds after it was given, one sooner than another: no window holds more all the same."""
    gate, now, burst, leaving = Gate(per_s / 10, 3), 0.0, 3, []
    for number, (tokens, late_s) in enumerate(granted):
        now = gate.ready_at(now, tokens)
        assert gate.take(now, tokens)
        heapq.heappush(leaving, (now + late_s, number, tokens))
    left = []
    while leaving:
        now, number, tokens = heapq.heappop(leaving)
        due = gate.leaves_at(now, tokens)
        if due > now:
            assert not gate.leave(now, tokens)
            heapq.heappush(leaving, (due, number, tokens))
        else:
            assert gate.leave(now, tokens)
            left += [now] * tokens
    assert len(left) == sum(tokens for tokens, _ in granted)
    allowed = math.ceil(burst - 1 + per_s / 10 * window_s + 1e-9)
    for first in left:
        assert sum(first <= at < first + window_s for at in left) <= allowed


def test_nothing_is_put_off_where_all_of_it_takes_equally_long():
    """A constant delay between grant and departure costs no time."""
    gate = Gate(2.0, 1)
    for number in range(20):
        assert gate.take(number / 2)
        assert gate.leaves_at(number / 2 + 7.0) == number / 2 + 7.0
        assert gate.leave(number / 2 + 7.0)


def test_a_saturated_bucket_reaches_its_rate():
    """While work waits, the mean rate is the policy's, not less."""
    bucket, now, starts = TokenBucket(20 / 60, 2), 0.0, 0
    while (now := bucket.ready_at(now)) < 3600:
        assert bucket.take(now)
        starts += 1
    assert 1200 <= starts <= 1202


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3), st.booleans()), max_size=80), st.integers(1, 10))
@settings(max_examples=150, deadline=None)
def test_a_sliding_count_never_passes_its_limit_in_any_window(plan, limit):
    """Every window of 60 s holds at most `limit` tokens that were not given back."""
    count, now, kept = SlidingCount(limit, 60.0), 0.0, []
    for step, tokens, give_back in plan:
        now += step
        if count.room(now) >= tokens:
            entry = count.spend(now, tokens)
            if give_back:
                count.give_back(entry, tokens)
            else:
                kept.append((now, tokens))
    for first, _ in kept:
        assert sum(tokens for at, tokens in kept if first <= at < first + 60.0) <= limit


def test_room_comes_back_when_the_oldest_spending_leaves_the_window():
    """`room_at` names the moment exactly: at it there is room, before it there is none."""
    count = SlidingCount(2, 60.0)
    count.spend(0.0, 1)
    count.spend(10.0, 1)
    assert count.room_at(20.0) == 60.0
    assert count.room(59.9) == 0
    assert count.room(60.0) == 1


def test_spending_restored_from_the_past_counts_like_any_other():
    """What an earlier run spent binds this one, in whatever order it is read back."""
    count = SlidingCount(3, 60.0)
    count.spend(0.0, 1)
    count.spend(-30.0, 2)
    assert count.room(0.0) == 0
    assert count.room_at(0.0) == 30.0


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40), st.integers(1, 5), st.booleans()), max_size=80),
    st.integers(1, 300),
)
@settings(max_examples=200, deadline=None)
def test_a_change_of_the_rate_gives_nothing_for_free(plan, window_s):
    """Whatever rates follow one another, a window holds at most ceil(B - 1 + what the rates add up to in it)."""
    bucket, now, starts, rates, bursts = TokenBucket(1.0, 5), 0.0, [], [(0.0, 1.0)], [5]
    for step, interval_s, burst, changes in plan:
        now += step
        if changes:
            bucket.set_rate(1 / interval_s, now, burst)
            rates.append((now, 1 / interval_s))
            bursts.append(burst)
        while bucket.take(now):
            starts.append(now)

    def adds_up(begin: float, end: float) -> float:
        ends = [at for at, _ in rates[1:]] + [math.inf]
        return sum(
            max(0.0, min(end, until) - max(begin, at)) * rate for (at, rate), until in zip(rates, ends, strict=True)
        )

    for first in starts:
        allowed = math.ceil(max(bursts) - 1 + adds_up(first, first + window_s) + 1e-6)
        assert sum(first <= at < first + window_s for at in starts) <= allowed


def test_a_full_bucket_that_is_slowed_down_is_not_refilled():
    """Five taken together at the fast rate are five taken at the slow one."""
    bucket = TokenBucket(1.0, 5)
    assert all(bucket.take(0.0) for _ in range(5))
    bucket.set_rate(0.1, 0.0)
    assert bucket.ready_at(0.0) == 10.0


def test_what_was_reserved_keeps_its_place_when_the_rate_rises():
    """A start promised for 10 s is one of those that the window around it may hold."""
    bucket = TokenBucket(0.1, 1)
    assert bucket.take(0.0)
    assert bucket.take(10.0)
    bucket.set_rate(1.0, 1.0)
    assert bucket.ready_at(1.0) == 11.0


def test_a_reservation_ahead_drops_nothing_that_still_counts():
    """What is spent for a moment to come leaves the entries of now where they are: no window holds more."""
    count = SlidingCount(2, 10.0)
    count.spend(0.0, 1)
    count.spend(11.0, 1)  # reserved at 9.0: the first one counts until 10.0
    assert count.room(9.0) == 0
    assert count.room_at(9.0) == 10.0


def test_entries_that_have_left_the_window_do_not_pile_up():
    """Also where the limit is never near, and nobody asks what is spent."""
    count = SlidingCount(1_000_000, 10.0)
    for second in range(5_000):
        assert count.room_at(float(second)) == second
        count.spend(float(second), 1)
    assert len(count.recent(4_999.0)) <= 20
    assert len(count._entries) <= 64
