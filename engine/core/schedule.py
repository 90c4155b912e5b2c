"""Which lane starts next: lanes in a heap by the moment at which they can.

1. Nobody polls: a lane is in the heap with its next-ready time, or waits for an event and is not in it.
2. No lane waits because of another; a decision costs O(log lanes).
3. It decides; `flow` spawns, sleeps and dials.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from engine.core.lane import Lane, Visit

LOOK_AHEAD = 100  # ready lanes that are looked at for one that is admitted


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may start before `until` (monotonic seconds); None when only an event can change that."""

    until: float | None


class Schedule:
    """All lanes of a run by next-ready time."""

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._entry: dict[str, int] = {}  # the one valid entry of each lane; older ones are skipped
        self._order = count()

    def add(self, lane: Lane) -> None:
        """Take in a lane that is new."""
        self.lanes[lane.key] = lane

    def touch(self, lane: Lane, now: float) -> None:
        """Something of the lane changed (work came, a session ended): find its place in the heap anew."""
        due = lane.ready_at(now)
        if due is None:
            self._entry.pop(lane.key, None)
            return
        ticket = self._entry[lane.key] = next(self._order)
        heapq.heappush(self._heap, (due, ticket, lane.key))

    def next(self, now: float, *, admits: Callable[[Lane], bool] | None = None, trial: bool = False) -> Visit | Wait:
        """Start the visit whose turn it is, or say how long to wait.

        `admits` passes over ready lanes, LOOK_AHEAD of them at most; `trial` starts the identity's half-open session.
        """
        passed: list[tuple[float, int, str]] = []
        try:
            return self._next(now, admits, passed, trial=trial)
        finally:
            for entry in passed:
                heapq.heappush(self._heap, entry)

    def _next(
        self, now: float, admits: Callable[[Lane], bool] | None, passed: list[tuple[float, int, str]], *, trial: bool
    ) -> Visit | Wait:
        while self._heap and len(passed) < LOOK_AHEAD:
            due, ticket, key = self._heap[0]
            if self._entry.get(key) != ticket:
                heapq.heappop(self._heap)
                continue
            if due > now:
                return Wait(due)
            heapq.heappop(self._heap)
            lane = self.lanes[key]
            if admits is not None and not admits(lane):
                passed.append((due, ticket, key))
                continue
            visit = lane.start(now, trial=trial)
            self.touch(lane, now)
            if visit is not None:
                return visit
        return Wait(None)

    def retire(self, lane: Lane) -> None:
        """Forget a lane that has no work; what its windows have spent lives on in the identity state."""
        self.lanes.pop(lane.key, None)
        self._entry.pop(lane.key, None)

    def __repr__(self) -> str:
        waiting = sum(lane.queue.waiting for lane in self.lanes.values())
        running = sum(lane.open_sessions for lane in self.lanes.values())
        return f"<Schedule {len(self.lanes)} lanes, {waiting} waiting, {running} running>"
