"""A circuit breaker: closed, open, half-open.

1. What opens it is told by the caller; how long it stays open is decided here.
2. Half-open lets one session through; its verdict closes the breaker or opens it for longer.
3. `closed_to_us_since` keeps running through half-open attempts that fail: giving up counts one piece.
4. `memory` and `recall` carry it over a restart: what was closed to us stays closed for as long, and doubles on.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from engine.core.bucket import LONGEST_S

FACTOR = 2.0  # each failed half-open attempt doubles the open time


class BreakerState(StrEnum):
    """Closed lets sessions through, open none, half-open one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Stops a lane, a domain or an identity that is refused, and tries again later.

    `open_s` is the first open time and `max_open_s` the longest, in seconds.
    """

    __slots__ = ("_next_s", "cause", "closed_to_us_since", "max_open_s", "open_s", "state", "turn", "until")

    def __init__(self, open_s: float, max_open_s: float) -> None:
        self.open_s = open_s
        self.max_open_s = max_open_s
        self.state = BreakerState.CLOSED
        self.until = 0.0
        self.cause = ""
        self.closed_to_us_since: float | None = None
        self.turn = 0  # which half-open attempt is the last
        self._next_s = open_s

    def allows(self, now: float) -> bool:
        """Whether a session may start now; the first one after the open time makes it half-open."""
        return self.state is BreakerState.CLOSED or (self.state is BreakerState.OPEN and now >= self.until)

    def attempt(self, now: float) -> None:
        """A session starts; when the open time is over it is the half-open one."""
        if self.state is BreakerState.OPEN and now >= self.until:
            self.state = BreakerState.HALF_OPEN
            self.turn += 1

    def open(self, now: float, cause: str, jitter: float = 0.0, *, at_least_s: float = 0.0) -> bool:
        """Refused: open, or stay open for longer after a failed half-open attempt; True when this opened it.

        `jitter` is a share of the open time, 0 to 1, drawn by the caller; `at_least_s` a delay that the reply names,
        which holds for a breaker that is open already too.
        """
        if self.state is BreakerState.OPEN:
            self.until = max(self.until, now + at_least_s)
            return False
        if self.closed_to_us_since is None:
            self.closed_to_us_since = now
        self.state = BreakerState.OPEN
        self.cause = cause
        self.until = now + max(self._next_s * (1 + jitter), at_least_s)
        self._next_s = min(self._next_s * FACTOR, self.max_open_s)
        return True

    def close(self, *, forget: bool = True) -> bool:
        """The half-open session was answered: closed again; True when it was not closed before.

        Without `forget` the next opening goes on doubling, until `forget` is called.
        """
        if self.state is BreakerState.CLOSED:
            return False
        self.state = BreakerState.CLOSED
        self.cause = ""
        self.closed_to_us_since = None
        if forget:
            self.forget()
        return True

    def forget(self) -> None:
        """The next opening is as long as the first."""
        self._next_s = self.open_s

    @property
    def next_s(self) -> float:
        """How long the next opening lasts, without jitter."""
        return self._next_s

    def adopt(self, open_s: float, max_open_s: float) -> None:
        """Other open times from the next opening on; how often it was doubled is kept, up to the new maximum."""
        self._next_s = open_s if self._next_s == self.open_s else min(self._next_s, max_open_s)
        self.open_s, self.max_open_s = open_s, max_open_s

    def release(self, now: float, turn: int | None = None) -> None:
        """The half-open session asked nothing: leave its place to the next.

        With its `turn`, nothing happens where it was answered and a later one is under way.
        """
        if self.state is BreakerState.HALF_OPEN and turn in {None, self.turn}:
            self.state = BreakerState.OPEN
            self.until = now

    def gives_up(self, now: float, give_up_s: float) -> bool:
        """Whether it has been closed to us for `give_up_s` in one piece."""
        return self.closed_to_us_since is not None and now - self.closed_to_us_since >= give_up_s

    def memory(self, now: float) -> dict[str, Any]:
        """What to keep: seconds left, the next open time and the cause; nothing while it is closed."""
        if self.state is BreakerState.CLOSED:
            return {}
        return {"left": max(0.0, self.until - now), "next": self._next_s, "cause": self.cause}

    def recall(self, kept: Mapping[str, Any], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later. Giving up counts anew: this run has not tried yet."""
        if not kept:
            return
        self.state = BreakerState.OPEN
        self.cause = kept["cause"]
        self.until = now + min(LONGEST_S, max(0.0, kept["left"] - away_s))
        self.closed_to_us_since = now
        self._next_s = min(self.max_open_s, max(self.open_s, kept["next"]))

    def __repr__(self) -> str:
        if self.state is BreakerState.CLOSED:
            return "<Breaker closed>"
        return f"<Breaker {self.state} until {self.until:g} after {self.cause}>"
