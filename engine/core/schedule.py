"""Which lane starts next: lanes in a heap by the moment at which they can.

1. Nobody polls: a lane is in the heap with the moment at which it has something to ask, or waits for a cap and is not
   in it, or waits for an event.
2. A cap that lacks something for the lane at its head has one entry in the heap, at the moment at which it has it.
3. A lane waits for the innermost cap that lacks something, in the order in which lanes first wanted to start. It
   stands in the lines of all caps from its own up to that one: those that it has passed wait with it.
4. Who is passed over by the caller stands in nobody's way: it leaves its lines, and comes back with its old ticket.
5. No lane waits because of another, but for the caps that they share; a decision costs O(log lanes).
6. It decides; `flow` spawns, sleeps and dials.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from engine.core.brake import Doubt
from engine.core.bucket import NEVER
from engine.core.cap import Cap
from engine.core.lane import Lane, Visit

LOOK_AHEAD = 100  # ready lanes that are looked at for one that is admitted
_AHEAD = 1 << 60  # a positive control stands before everybody who waits


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may start before `until` (monotonic seconds); None when only an event can change that."""

    until: float | None


class Schedule:
    """All lanes of a run by next-ready time."""

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self._heap: list[tuple[float, int, Lane | Cap]] = []
        self._entry: dict[Lane | Cap, tuple[float, int]] = {}  # the one valid entry of each; older ones are skipped
        self._ticket: dict[str, int] = {}  # of a lane that wants to start: its place in every line
        self._waits_for: dict[str, Cap] = {}
        self._order = count()

    def add(self, lane: Lane) -> None:
        """Take in a lane that is new."""
        self.lanes[lane.key] = lane

    def touch(self, lane: Lane, now: float, caps: Sequence[Cap] = ()) -> None:
        """Something of the lane changed (work came, a session ended): find its place anew.

        `caps` are others that its session has charged.
        """
        if self._granted(lane, now) is not None:
            due = lane.due(now) if lane.urgent else None
            self._put(lane, now if due is None else min(due, now))
        placed = self._waits_for.get(lane.key)
        for cap in lane.caps:
            if cap is not placed:
                self._place(cap, now)
        for cap in caps:
            if cap not in lane.caps:
                self._place(cap, now)

    def next(self, now: float, *, admits: Callable[[Lane], bool] | None = None, trial: bool = False) -> Visit | Wait:
        """Start the visit whose turn it is, or say how long to wait.

        `admits` passes over ready lanes, LOOK_AHEAD of them at most; `trial` starts the identity's half-open session.
        """
        passed: list[Lane] = []
        try:
            return self._next(now, admits, passed, trial=trial)
        finally:
            for lane in passed:
                self._put(lane, now)

    def start(self, lane: Lane, now: float, *, trial: bool = False) -> Visit | None:
        """Start a visit of this lane, whoever else waits; nothing where its limits don't let it."""
        visit = lane.start(now, trial=trial)
        if visit is not None:
            self._ticket.pop(lane.key, None)
            self._leave(lane, lane.caps)
            self.touch(lane, now)
        return visit

    def divert(self, visit: Visit, caps: tuple[Cap, ...], now: float) -> bool:
        """`Lane.divert`; what the visit leaves may serve others now."""
        left = visit.caps
        diverted = visit.lane.divert(visit, caps, now)
        for cap in left if diverted else ():
            self._place(cap, now)
        return diverted

    def stir(self, caps: Sequence[Cap], now: float) -> None:
        """These caps may grant now what they did not before."""
        for cap in caps:
            self._place(cap, now)

    def waiting(self, cap: Cap) -> list[Lane]:
        """The lanes that wait for a cap."""
        return [self.lanes[key] for key in cap.line.keys if self._waits_for.get(key) is cap]

    def retire(self, lane: Lane) -> None:
        """Forget a lane that has no work; what its windows have spent lives on in the identity state."""
        self.lanes.pop(lane.key, None)
        self._entry.pop(lane, None)
        self._ticket.pop(lane.key, None)
        self._waits_for.pop(lane.key, None)
        for cap in self._leave(lane, lane.caps):
            self._put(cap, NEVER)  # it is somebody else's turn there
        if not lane.own.line:
            self._entry.pop(lane.own, None)

    # --- inside -----------------------------------------------------------------------------------------------

    def _next(
        self, now: float, admits: Callable[[Lane], bool] | None, passed: list[Lane], *, trial: bool
    ) -> Visit | Wait:
        while self._heap and len(passed) < LOOK_AHEAD:
            due, ticket, who = self._heap[0]
            if self._entry.get(who) != (due, ticket):
                heapq.heappop(self._heap)
                continue
            if due > now:
                return Wait(due)
            heapq.heappop(self._heap)
            del self._entry[who]
            lane = who if isinstance(who, Lane) else self.lanes.get(who.line.first)
            if lane is None:
                continue
            if admits is not None and not admits(lane):
                passed.append(lane)
                self._waits_for.pop(lane.key, None)
                self.stir(self._leave(lane, lane.caps), now)
                continue
            size = self._granted(lane, now)
            visit = lane.begin(now, size, trial=trial) if size is not None else None
            if visit is not None:
                self._leave(lane, lane.caps)
                del self._ticket[lane.key]
            self.touch(lane, now, () if isinstance(who, Lane) else (who,))
            if visit is not None:
                return visit
        return Wait(None)

    def _granted(self, lane: Lane, now: float) -> int | None:
        """How many recipients it may begin with now; None: it waits.

        In the heap for its moment, in a line for its grant, or for an event. A cap for which it waits is placed anew.
        """
        due = lane.due(now)
        self._waits_for.pop(lane.key, None)
        if due is None or due > now:
            if self._ticket.pop(lane.key, None) is not None:
                self.stir(self._leave(lane, lane.caps), now)
            if due is None:
                self._entry.pop(lane, None)
            else:
                self._put(lane, due)
            return None
        ticket, size = self._take_ticket(lane), lane.first_size(now)
        for place, cap in enumerate(lane.caps):
            if cap.key != lane.key:  # in the line of its own a lane stands only to wait
                cap.line.join(lane.key, ticket)
            served = cap.line.serves(lane.key, ticket)
            granted = cap.ready_at(now, size) if served else None
            if granted is None or granted > now:
                lane.own.line.join(lane.key, ticket)
                self._waits_for[lane.key] = cap
                self._entry.pop(lane, None)
                if served:
                    self._put_or_drop(cap, granted)
                else:
                    self._place(cap, now)
                self.stir(self._leave(lane, lane.caps[place + 1 :]), now)
                return None
        return size

    def _take_ticket(self, lane: Lane) -> int:
        ticket, urgent = self._ticket.get(lane.key), lane.brake.doubt is Doubt.ASKING
        if ticket is None or (urgent and ticket >= 0):
            ticket = self._ticket[lane.key] = next(self._order) - (_AHEAD if urgent else 0)
        return ticket

    @staticmethod
    def _leave(lane: Lane, caps: Sequence[Cap]) -> list[Cap]:
        """Wait no more in these lines; says which it waited in."""
        return [cap for cap in caps if cap.line.leave(lane.key)]

    def _place(self, cap: Cap, now: float) -> None:
        """The cap's one entry in the heap: when it has what the lane at its head lacks of it."""
        first = cap.line.first
        if not first or self._waits_for.get(first) is not cap:
            self._entry.pop(cap, None)  # nobody waits, or its first waits for a cap above
            return
        self._put_or_drop(cap, cap.ready_at(now, self.lanes[first].first_size(now)))

    def _put_or_drop(self, cap: Cap, due: float | None) -> None:
        if due is None:
            self._entry.pop(cap, None)  # a session's end will tell
        else:
            self._put(cap, due)

    def _put(self, who: Lane | Cap, due: float) -> None:
        known = self._entry.get(who)
        if known is None or known[0] != due:
            ticket = next(self._order)
            self._entry[who] = (due, ticket)
            heapq.heappush(self._heap, (due, ticket, who))

    def __repr__(self) -> str:
        waiting = sum(lane.queue.waiting for lane in self.lanes.values())
        running = sum(lane.open_sessions for lane in self.lanes.values())
        return f"<Schedule {len(self.lanes)} lanes, {waiting} waiting, {running} running>"
