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

from engine.core.bucket import NEVER
from engine.core.cap import Cap, Entry, Line
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
        self.starved = False  # nobody could start when it was last asked for a visit
        self._heap: list[Entry] = []  # of each lane or cap one is valid, its `entry`; older ones are skipped
        self._retired = 0  # since the heap was last sifted
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
        for cap in lane.caps:
            if cap.line is not None and cap is not lane.kept_by:
                self._place(cap, now)
        for cap in caps:
            if cap.line is not None and cap not in lane.caps:
                self._place(cap, now)

    def next(self, now: float, *, admits: Callable[[Lane], bool] | None = None, trial: bool = False) -> Visit | Wait:
        """Start the visit whose turn it is, or say how long to wait.

        `admits` passes over ready lanes, LOOK_AHEAD of them at most; `trial` starts the identity's half-open session.
        """
        passed: list[Lane] = []
        try:
            turn = self._next(now, admits, passed, trial=trial)
            self.starved = isinstance(turn, Wait) and not passed
            return turn
        finally:
            for lane in passed:
                self._put(lane, now)

    def start(self, lane: Lane, now: float, *, trial: bool = False) -> Visit | None:
        """Start a visit of this lane, whoever else waits; nothing where its limits don't let it."""
        visit = lane.start(now, trial=trial)
        if visit is not None:
            lane.ticket = None
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
        keys = cap.line.keys if cap.line is not None else ()
        return [lane for key in keys if (lane := self.lanes.get(key)) is not None and lane.kept_by is cap]

    def retire(self, lane: Lane) -> None:
        """Forget a lane that has no work; what its windows have spent lives on in the identity state."""
        self.lanes.pop(lane.key, None)
        lane.entry = lane.ticket = lane.kept_by = None
        for cap in self._leave(lane, lane.caps):
            self._put(cap, NEVER)  # it is somebody else's turn there
        if not lane.own.line:
            lane.own.entry = None
        self._retired += 1
        if 2 * self._retired > len(self._heap):
            self._sift()

    # --- inside -----------------------------------------------------------------------------------------------

    def _next(
        self, now: float, admits: Callable[[Lane], bool] | None, passed: list[Lane], *, trial: bool
    ) -> Visit | Wait:
        while self._heap and len(passed) < LOOK_AHEAD:
            due, order, who = self._heap[0]
            if who.entry is None or who.entry[1] != order:
                heapq.heappop(self._heap)
                continue
            if due > now:
                return Wait(due)
            heapq.heappop(self._heap)
            who.entry = None
            lane = who if isinstance(who, Lane) else self.lanes.get(who.line.first)
            if lane is None:
                continue
            if admits is not None and not admits(lane):
                passed.append(lane)
                lane.kept_by = None
                self.stir(self._leave(lane, lane.caps), now)
                continue
            size = self._granted(lane, now)
            visit = lane.begin(now, size, trial=trial) if size is not None else None
            if visit is not None:
                self._leave(lane, lane.caps)
                lane.ticket = None
            self.touch(lane, now, () if who is lane else (who,))
            if visit is not None:
                return visit
        return Wait(None)

    def _granted(self, lane: Lane, now: float) -> int | None:
        """How many recipients it may begin with now; None: it waits.

        In the heap for its moment, in a line for its grant, or for an event. A cap for which it waits is placed anew.
        """
        due = lane.due(now)
        lane.kept_by = None
        if due is None or due > now:
            if lane.ticket is not None:
                lane.ticket = None
                self.stir(self._leave(lane, lane.caps), now)
            self._put_or_drop(lane, due)
            return None
        ticket, size = self._take_ticket(lane), lane.first_size(now)
        for place, cap in enumerate(lane.caps):
            if cap.key != lane.key:  # in the line of its own a lane stands only to wait
                self._join(cap, lane.key, ticket)
            served = cap.line is None or cap.line.serves(lane.key, ticket)
            granted = cap.ready_at(now, size) if served else None
            if granted is None or granted > now:
                self._join(lane.own, lane.key, ticket)
                lane.kept_by = cap
                lane.entry = None
                if served:
                    self._put_or_drop(cap, granted)
                else:
                    self._place(cap, now)
                self.stir(self._leave(lane, lane.caps[place + 1 :]), now)
                return None
        return size

    def _take_ticket(self, lane: Lane) -> int:
        urgent = lane.urgent
        if lane.ticket is None or (urgent and lane.ticket >= 0):
            lane.ticket = next(self._order) - (_AHEAD if urgent else 0)
        return lane.ticket

    def _sift(self) -> None:
        """Drop older entries: they would keep lanes that are gone in memory until their moment, hours ahead."""
        self._heap = [entry for entry in self._heap if (valid := entry[2].entry) is not None and valid[1] == entry[1]]
        self._heap.sort()  # what is sorted is a heap
        self._retired = 0

    @staticmethod
    def _join(cap: Cap, key: str, ticket: int) -> None:
        """Wait in the line of a cap."""
        if cap.line is None:
            cap.line = Line()
        cap.line.join(key, ticket)

    @staticmethod
    def _leave(lane: Lane, caps: Sequence[Cap]) -> list[Cap]:
        """Wait no more in these lines; says which it waited in."""
        return [cap for cap in caps if cap.line is not None and cap.line.leave(lane.key)]

    def _place(self, cap: Cap, now: float) -> None:
        """The cap's one entry in the heap: when it has what the lane at its head lacks of it."""
        first = self.lanes.get(cap.line.first) if cap.line is not None else None
        if first is None or first.kept_by is not cap:
            cap.entry = None  # nobody waits, or its first waits for a cap above
            return
        self._put_or_drop(cap, cap.ready_at(now, first.first_size(now)))

    def _put_or_drop(self, who: Lane | Cap, due: float | None) -> None:
        if due is None:
            who.entry = None  # a session's end, or another event, will tell
        else:
            self._put(who, due)

    def _put(self, who: Lane | Cap, due: float) -> None:
        if who.entry is None or who.entry[0] != due:
            who.entry = (due, next(self._order), who)
            heapq.heappush(self._heap, who.entry)

    def __repr__(self) -> str:
        waiting = sum(lane.queue.waiting for lane in self.lanes.values())
        running = sum(lane.open_sessions for lane in self.lanes.values())
        return f"<Schedule {len(self.lanes)} lanes, {waiting} waiting, {running} running>"
