"""When each target is asked about at each list next; pure, time is data (Unix seconds).

1. A list's interval holds for each pair, give or take a tenth: what began together drifts apart.
2. What needs an answer sooner (an event that waits for its second one, a reply that named a list) is brought forward,
   and what is in flight is asked again when it is back.
3. A pair that is in flight is due to nobody else.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

Pair = tuple[str, str]  # target, list

SPREAD_S = 30.0  # the first round of many pairs is no burst
SHARE = 0.1  # of the interval, by which a turn comes sooner or later


class Rota:
    """The turns of all pairs. `jitter` gives a number from 0 to 1."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._interval_s: dict[Pair, float] = {}
        self._due: dict[Pair, float] = {}  # those that are not in flight
        self._soon: dict[Pair, float] = {}  # those in flight that have to come back by then
        self._heap: list[tuple[float, Pair]] = []

    def __len__(self) -> int:
        return len(self._interval_s)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._interval_s

    def put(self, pairs: Mapping[Pair, float], now: float) -> None:
        """These pairs with their intervals (seconds) and no others; those that are known keep their turn."""
        for pair in self._interval_s.keys() - pairs.keys():
            self._due.pop(pair, None)
            self._soon.pop(pair, None)
        new = pairs.keys() - self._interval_s.keys()
        self._interval_s = dict(pairs)
        for pair in sorted(new):
            self._place(pair, now + self._jitter() * min(SPREAD_S, pairs[pair]))

    @property
    def next_at(self) -> float | None:
        """When the next turn is; None where nothing waits."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> Pair | None:
        """The pair whose turn it is; it is in flight from now on."""
        at = self.next_at
        if at is None or at > now:
            return None
        _, pair = heapq.heappop(self._heap)
        del self._due[pair]
        return pair

    def asked(self, pair: Pair, now: float) -> None:
        """It was answered, or could not be asked: its next turn is an interval later."""
        if pair not in self._interval_s:
            return
        spread = 1 + SHARE * (2 * self._jitter() - 1)
        soon = self._soon.pop(pair, float("inf"))
        self._place(pair, min(soon, now + self._interval_s[pair] * spread))

    def bring_forward(self, pair: Pair, at: float) -> None:
        """Ask it at `at` if its turn is later; a pair that is not on the rota stays away."""
        if pair not in self._interval_s:
            return
        if pair not in self._due:
            self._soon[pair] = min(at, self._soon.get(pair, at))
        elif at < self._due[pair]:
            self._place(pair, at)

    def _place(self, pair: Pair, at: float) -> None:
        self._due[pair] = at
        heapq.heappush(self._heap, (at, pair))

    def __repr__(self) -> str:
        return f"<Rota {len(self)} pairs, {len(self._due)} wait>"
