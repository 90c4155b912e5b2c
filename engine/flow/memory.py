"""What the next run has to know of lanes and the identity: saved when it changes, brought back with the lane.

1. What is saved is how long ago and for how much longer, with the wall clock of the moment beside it. A clock that was
   set back makes no time pass; one that was set forward, a day at most.
2. A lane that is like a new one leaves nothing behind. What only its buckets owe is of use until they are full, and
   then leaves the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engine.core.identity_breaker import IdentityBreaker
from engine.core.lane import Lane
from engine.store.state import State

AWAY_S = 86_400.0  # no limit, breaker or freeze outlasts a day: more of it changes nothing
KEPT_S = 30 * 86_400.0
SWEEP_EVERY = 5_000  # lanes saved between two looks for what is of no use any more


class Memory:
    """Saves and brings back, for one identity; `clock` is monotonic seconds, `wall` seconds since the epoch."""

    def __init__(self, state: State, identity_key: str, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._state = state
        self._identity = identity_key
        self._clock = clock
        self._wall = wall
        self._kept: set[str] = set()  # lanes that have something in the file
        self._saved = 0
        state.forget_breakers(wall())

    def recall(self, lanes: Mapping[str, Lane]) -> None:
        """Bring back what earlier runs knew of these lanes."""
        found = self._state.breakers([self.key(key) for key in lanes])
        now, wall = self._clock(), self._wall()
        for key, lane in lanes.items():
            kept = found.get(self.key(key))
            if kept is not None:
                self._kept.add(key)
                lane.recall(kept, now, away_s(kept, wall))

    def recall_identity(self, breaker: IdentityBreaker) -> None:
        """Bring back what earlier runs knew of the identity."""
        kept = self._state.breakers([self._identity]).get(self._identity)
        if kept is not None:
            breaker.recall(kept, self._clock(), away_s(kept, self._wall()))

    def note(self, lane: Lane) -> None:
        """Save a lane if something changed that must not be forgotten even by a crash."""
        if lane.unsaved:
            self.save([lane])

    def save(self, lanes: Iterable[Lane]) -> None:
        """Save lanes: they leave memory, or the run ends."""
        rows: dict[str, dict[str, Any] | None] = {}
        now, wall = self._clock(), self._wall()
        for lane in lanes:
            lane.unsaved = False
            kept = lane.memory(now)
            if kept:
                useful_s = KEPT_S if set(kept) != {"owed"} else max(kept["owed"].values())
                rows[self.key(lane.key)] = kept | {"at": wall, "until": wall + useful_s}
                self._kept.add(lane.key)
            elif lane.key in self._kept:
                rows[self.key(lane.key)] = None
                self._kept.discard(lane.key)
        if rows:
            self._state.save_breakers(rows)
            self._saved += len(rows)
        if self._saved >= SWEEP_EVERY:
            self._saved = 0
            self._state.forget_breakers(wall)

    def forget(self, lane: Lane) -> None:
        """A lane leaves memory."""
        self.save([lane])
        self._kept.discard(lane.key)

    def save_identity(self, breaker: IdentityBreaker) -> None:
        """Save what refuses the identity, and whether it is closed."""
        kept, wall = breaker.memory(self._clock()), self._wall()
        self._state.save_breakers({self._identity: kept | {"at": wall, "until": wall + KEPT_S} if kept else None})

    def key(self, lane: str) -> str:
        """What a lane is kept under: a lane is one identity's."""
        return f"{self._identity} {lane}"


def away_s(kept: Mapping[str, Any], wall: float) -> float:
    """How long ago it was saved, as far as the wall clock can be believed."""
    return min(AWAY_S, max(0.0, wall - float(kept["at"])))
