"""Judges starts against a limit: no window of any length may hold more than the bucket's law allows.

1. A rate `N/P` with burst `B` allows at most `ceil(B - 1 + N*T/P)` starts in every half-open window of length `T`. With
   starts numbered in order of time this is `j - i <= B - 1 + r*(t_j - t_i)` for every i <= j, so that one pass over all
   starts judges every window there is.
2. What is exact at the sender is not at the server: there `T` is longer by the run's jitter, which is measured.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.world.log import Row

EPSILON = 1e-4  # of a start: what floating point adds up to over a run


@dataclass(frozen=True, slots=True)
class Counted:
    """What arrived at some addresses of the world, or was sent to them."""

    sessions: list[float]
    recipients: list[float]
    spans: list[tuple[float, float]]


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


def counted(log: Sequence[Row], ips: set[str]) -> Counted:
    """What the server saw at these addresses."""
    began: dict[int, float] = {}
    found = Counted([], [], [])
    for row in log:
        if row.ip not in ips:
            continue
        if row.event == "+":
            began[row.session] = row.t
            found.sessions.append(row.t)
        elif row.event == "RCPT":
            found.recipients.append(row.t)
        elif row.event == "-":
            found.spans.append((began[row.session], row.t))
    return found


def asked(audit: Sequence[dict[str, Any]], ips: set[str]) -> Counted:
    """What the audit says was sent there: connections and recipients at their moments."""
    found = Counted([], [], [])
    for row in audit:
        if row["mx_ip"] not in ips:
            continue
        if row["kind"] == "connect":
            found.sessions.append(row["at"])
        elif row["kind"] in ("rcpt", "control", "positive_control"):
            found.recipients.append(row["at"])
    return found


def measured_jitter(audit: Sequence[dict[str, Any]], log: Sequence[Row]) -> float:
    """How much the way of a RCPT varied, in seconds: the server's moments less the audit's, longest less shortest."""
    sent: dict[str, list[float]] = defaultdict(list)
    for row in audit:
        if row["kind"] in ("rcpt", "control", "positive_control") and row["address"]:
            sent[row["address"]].append(row["at"])
    arrived: dict[str, list[float]] = defaultdict(list)
    for each in log:
        if each.event == "RCPT":
            arrived[each.argument].append(each.t)
    pairs = [
        (here, there)
        for address, moments in sent.items()
        if len(moments) == len(arrived[address])
        for here, there in zip(sorted(moments), sorted(arrived[address]), strict=True)
    ]
    ways = [there - here for here, there in pairs]
    return max(ways) - min(ways) if ways else 0.0
