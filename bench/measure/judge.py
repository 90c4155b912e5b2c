"""Judges starts against a limit: no window of any length may hold more than the bucket's law allows.

1. A rate `N/P` with burst `B` allows at most `ceil(B - 1 + N*T/P)` starts in every half-open window of length `T`. With
   starts numbered in order of time this is `j - i <= B - 1 + r*(t_j - t_i)` for every i <= j, so that one pass over all
   starts judges every window there is.
2. What is exact at the sender is not at the server: there `T` is longer by the run's jitter, which is measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

EPSILON = 1e-4  # of a start: what floating point adds up to over a run


def excess(moments: Iterable[float], per_s: float, burst: int) -> float:
    """By how many starts the worst window exceeds the limit; 0 or less: none does."""
    lowest, worst = float("inf"), float("-inf")
    for number, moment in enumerate(sorted(moments)):
        level = number - per_s * moment
        lowest = min(lowest, level)
        worst = max(worst, level - lowest)
    return worst - (burst - 1) if worst > float("-inf") else 0.0


def kept(moments: Iterable[float], per_s: float, burst: int, jitter_s: float = 0.0) -> bool:
    """Whether no window is over the limit, when each is taken to be `jitter_s` longer."""
    return excess(moments, per_s, burst) <= per_s * jitter_s + EPSILON


def most_within(moments: Iterable[float], window_s: float) -> int:
    """The most starts in any half-open window of this length: for limits that are a count."""
    most, inside = 0, deque[float]()
    for moment in sorted(moments):
        inside.append(moment)
        while inside[0] <= moment - window_s:
            inside.popleft()
        most = max(most, len(inside))
    return most


def most_open(spans: Iterable[tuple[float, float]]) -> int:
    """The most spans that overlap: sessions that were open together."""
    steps = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
    most = level = 0
    for _, step in steps:
        level += step
        most = max(most, level)
    return most


def mean_rate(moments: Iterable[float], burst: int = 1, share: float = 0.95) -> float:
    """Starts a second without the first burst, and over the first `share` of them: at the end some wait for nothing."""
    ordered = sorted(moments)
    first, last = burst - 1, int(len(ordered) * share) - 1
    return (last - first) / (ordered[last] - ordered[first]) if last > first else 0.0


def jitter(sent: Sequence[float], received: Sequence[float]) -> float:
    """How much the way from sender to server varied, in seconds: the longest less the shortest."""
    ways = [there - here for here, there in zip(sent, received, strict=True)]
    return max(ways) - min(ways) if ways else 0.0
