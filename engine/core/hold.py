"""What an order about the identity lets a run do: go on, finish what is open, or stop at once.

1. Draining starts nothing more; sessions that are open come to their own end. Disabled and quarantined start nothing,
   and open sessions say QUIT without asking more.
2. What waits is ended when nobody would take it up: of a drained or disabled identity once no session is open, of a
   quarantined one after `give_up` in one piece. An order whose time is over sooner than that is waited for.
3. It decides by what it is told; `flow.standing` reads the orders, `Run` starts, stops and ends.
"""

from __future__ import annotations

from engine.core.identity import Status


class Hold:
    """`since` is when the identity was first held in one piece, `until` when the order's time is over (monotonic)."""

    __slots__ = ("since", "starts", "status", "stops", "until", "why")

    def __init__(self) -> None:
        self.status = Status.ENABLED
        self.starts = True  # a session may start
        self.stops = False  # an open session may ask nothing more
        self.why = ""
        self.since = 0.0
        self.until: float | None = None

    def put(self, status: Status, now: float, *, why: str = "", until: float | None = None) -> None:
        """An order came, or was lifted (`enabled`)."""
        if self.starts:
            self.since = now
        self.status, self.why, self.until = status, why, until
        self.starts = status is Status.ENABLED
        self.stops = status in (Status.DISABLED, Status.QUARANTINED)

    def ending(self, give_up_s: float, *, busy: bool) -> float | None:
        """When what waits ends; None while nothing holds it, or sessions of a drained identity are open (`busy`)."""
        if self.starts:
            return None
        given_up = self.since + give_up_s
        if self.status is Status.QUARANTINED or (self.until is not None and self.until <= given_up):
            return given_up
        return None if busy else self.since

    def __repr__(self) -> str:
        return "<Hold none>" if self.starts else f"<Hold {self.status} since {self.since:g}: {self.why}>"
