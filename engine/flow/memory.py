"""What the next run has to know of lanes, caps and the identity: saved when it changes, brought back with them.

1. What is saved is how long ago and for how much longer, with the wall clock of the moment beside it. A clock that was
   set back makes no time pass; one that was set forward, a day at most.
2. What is like new leaves nothing behind. What only its buckets owe is of use until they are full, and then leaves the
   file.
3. What windows have spent stands in the identity state by itself, from before it was asked.
4. What a session or a transaction owes is saved as it is charged: who is killed and started again keeps his distance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gevent.lock import BoundedSemaphore

from engine.core.cap import Cap
from engine.core.caps import Caps
from engine.core.identity_breaker import IdentityBreaker
from engine.core.lane import Lane
from engine.store.state import State

AWAY_S = 86_400.0  # no limit, breaker or freeze outlasts a day: more of it changes nothing
LONGEST_WINDOW_S = 86_400.0
KEPT_S = 30 * 86_400.0
SOON_S = 1.0  # no restart is so quick that it met what is full again by then
_PASSES = {"tokens", "begun"}  # what a cap remembers until it is full again
SWEEP_EVERY = 5_000  # lanes and caps saved between two looks for what is of no use any more


class Memory:
    """Saves and brings back, for one identity; `clock` is monotonic seconds, `wall` seconds since the epoch."""

    def __init__(self, state: State, identity_key: str, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._state = state
        self._identity = identity_key
        self._clock = clock
        self._wall = wall
        self._kept: set[str] = set()  # keys that have something in the file
        self._saved = 0
        self._counts_at = 0.0  # when a count of sessions is saved again
        self._restoring = BoundedSemaphore(1)  # nobody starts under a cap that another one is still bringing back
        state.forget_breakers(wall())

    def restore(self, caps: Caps, lanes: Collection[Lane] = ()) -> None:
        """Bring back what earlier runs knew of these new lanes, and knew and spent of all caps that are fresh."""
        if not (caps.fresh or lanes or self._restoring.locked()):
            return
        with self._restoring:
            fresh, caps.fresh = caps.fresh, []
            rows: dict[str, Cap | Lane] = {self.key(cap.key): cap for cap in fresh}
            rows |= {self._holds(lane): lane for lane in lanes}
            if not rows:
                return
            found = self._state.breakers(list(rows))
            now, wall = self._clock(), self._wall()
            for key, kept in found.items():
                self._kept.add(key)
                rows[key].recall(kept, now, away_s(kept, wall))
            self.spent(fresh)

    def spent(self, caps: Iterable[Cap], but_last_s: Mapping[Cap, float] | None = None) -> None:
        """Bring back what the windows of caps have spent, but for the last seconds of some, which they know."""
        windows = {self.key(key): (cap, window) for cap in caps for key, window in cap.windows.items()}
        now, wall = self._clock(), self._wall()
        for key, spendings in self._state.spent(list(windows), wall - LONGEST_WINDOW_S).items():
            cap, window = windows[key]
            known_s = but_last_s[cap] if but_last_s is not None else float("-inf")
            for at, tokens in spendings:
                if wall - at >= known_s:
                    window.remember(now - max(0.0, wall - at), tokens)  # a clock set back makes no future

    def recall_identity(self, breaker: IdentityBreaker) -> None:
        """Bring back what earlier runs knew of the identity."""
        kept = self._state.breakers([self._identity]).get(self._identity)
        if kept is not None:
            breaker.recall(kept, self._clock(), away_s(kept, self._wall()))

    def note(self, lane: Lane, caps: Iterable[Cap]) -> None:
        """Save what changed, if it must not be forgotten even by a crash."""
        changed = [cap for cap in caps if cap.unsaved]
        if lane.unsaved or changed:
            self.save([lane] if lane.unsaved else [], changed)

    def charged(self, caps: Sequence[Cap]) -> None:
        """These were charged for what is about to be asked; it is on disk before a grant that comes after it.

        But for a cap that counts every session of the identity: that one is saved once in SOON_S. A site is left out
        where its address, with the same numbers, owes as much: that one keeps it back.
        """
        now = self._clock()
        owing = [cap for cap in caps if cap.full_at > now + SOON_S]
        if not owing:
            return
        over = dict(pairwise(caps))  # the cap above each
        owing = [cap for cap in owing if not _stands_for(over.get(cap), cap)]
        if any(cap.starts is not None for cap in owing):
            if now < self._counts_at:
                owing = [cap for cap in owing if cap.starts is None]
            else:
                self._counts_at = now + SOON_S
        if owing:
            self.save((), owing)

    def save(self, lanes: Iterable[Lane], caps: Iterable[Cap]) -> None:
        """Save lanes and caps: they leave memory, or the run ends."""
        rows: dict[str, dict[str, Any] | None] = {}
        now, wall = self._clock(), self._wall()
        concerned: list[Lane | Cap] = [*lanes, *caps]
        for one in concerned:
            one.unsaved = False
            kept = one.memory(now)
            if not kept and not self._kept:
                continue
            key = self.key(one.key) if isinstance(one, Cap) else self._holds(one)
            if kept:
                useful_s = KEPT_S
                if isinstance(one, Cap) and kept.keys() <= _PASSES:
                    useful_s = max(0.0, one.full_at - now)
                rows[key] = kept | {"at": wall, "until": wall + useful_s}
                self._kept.add(key)
            elif key in self._kept:
                rows[key] = None
                self._kept.discard(key)
        if rows:
            self._state.save_breakers(rows)
            self._saved += len(rows)
        if self._saved >= SWEEP_EVERY:
            self._saved = 0
            self._state.forget_breakers(wall)

    def forget(self, lane: Lane, caps: Caps) -> None:
        """A lane leaves memory, and caps that nobody needs any more."""
        gone, caps.gone = caps.gone, []
        self.save([lane], gone)
        if self._kept:
            self._kept.difference_update([self._holds(lane), *(self.key(cap.key) for cap in gone)])

    def save_identity(self, breaker: IdentityBreaker) -> None:
        """Save what refuses the identity, and whether it is closed."""
        kept, wall = breaker.memory(self._clock()), self._wall()
        self._state.save_breakers({self._identity: kept | {"at": wall, "until": wall + KEPT_S} if kept else None})

    def key(self, key: str) -> str:
        """What a cap or window is kept under: it is one identity's."""
        return f"{self._identity} {key}"

    def _holds(self, lane: Lane) -> str:
        return self.key(f"holds of {lane.key}")


def _stands_for(over: Cap | None, cap: Cap) -> bool:
    """Whether a cap above keeps everybody back who is kept back here."""
    return over is not None and over.pace is not None and over.policy is cap.policy and over.full_at >= cap.full_at


def away_s(kept: Mapping[str, Any], wall: float) -> float:
    """How long ago it was saved, as far as the wall clock can be believed."""
    return min(AWAY_S, max(0.0, wall - float(kept["at"])))
