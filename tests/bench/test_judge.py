"""Laws of the judge: it finds every window that is over a limit, and no other."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.measure.judge import excess, kept, mean_rate, most_open, most_within
from engine.core.bucket import TokenBucket

MOMENTS = st.lists(st.integers(0, 400).map(lambda tenths: tenths / 10), min_size=1, max_size=40)


def over(moments: list[float], per_s: float, burst: int) -> bool:
    """Whether some half-open window holds more than ceil(B - 1 + r*T), found by trying those that could."""
    ordered = sorted(moments)
    for first, began in enumerate(ordered):
        for last in range(first, len(ordered)):
            length = ordered[last] - began  # a window just longer than this holds both
            if last - first + 1 > math.floor(burst - 1 + per_s * length + 1e-9) + 1:
                return True
    return False


@given(MOMENTS, st.integers(1, 30), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_one_pass_judges_as_all_windows_do(moments, tenths, burst):
    """What `kept` says of a run is what trying every window says."""
    assert kept(moments, tenths / 10, burst) is not over(moments, tenths / 10, burst)


@given(MOMENTS, st.integers(1, 30), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_what_a_bucket_lets_through_is_never_over(moments, tenths, burst):
    """The engine's own bucket and the judge are of one mind."""
    bucket = TokenBucket(tenths / 10, burst)
    assert kept([at for at in sorted(moments) if bucket.take(at)], tenths / 10, burst)


def test_excess_is_counted_in_starts():
    """Three at once where one may start: two too many; so late that they could be jitter: none."""
    assert excess([1.0, 1.0, 1.0], 1.0, 1) == 2.0
    assert kept([1.0, 1.5], 1.0, 1, jitter_s=0.5)
    assert not kept([1.0, 1.5], 1.0, 1, jitter_s=0.4)
    assert excess([], 1.0, 1) == 0.0


def test_counts_of_windows_and_of_sessions():
    """A half-open window leaves out what lies a whole window back; a session that ends makes room at once."""
    assert most_within([0.0, 1.0, 2.0], 2.0) == 2
    assert most_open([(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]) == 2


def test_a_mean_rate_leaves_out_the_first_burst_and_the_tail():
    """Ten a second after a burst of five; the last one, that nobody waited for, comes late."""
    moments = [0.0] * 5 + [number / 10 for number in range(1, 200)] + [1000.0]
    assert abs(mean_rate(moments, burst=5) - 10) < 0.1
