"""What is closed to one identity: told once when it closes and when it opens, and given up in time.

1. A lane or domain that stayed closed to us for the policy's give_up in one piece ends what waits there: when a session
   ends, and within GIVE_UP_EVERY_S where nobody visits any more.
2. Each move of a breaker is counted, logged, and a row of the audit. Those of caps are told of by who has them, a lane,
   or by who met them: a session may dial another provider's host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gevent

from engine.core.breaker import Breaker, BreakerState
from engine.core.cap import Cap
from engine.core.identity import Identity
from engine.core.lane import Lane
from engine.core.schedule import Schedule
from engine.flow.supply import Supply
from engine.log import log
from engine.metrics import Metrics
from engine.store.audit import AuditRow
from engine.store.journal import Journal

GIVE_UP_EVERY_S = 60.0
LANES_AT_ONCE = 500  # looked at before other greenlets get their turn


class Closures:
    """Told of each session's end, and asked to `look` every GIVE_UP_EVERY_S."""

    def __init__(
        self, schedule: Schedule, supply: Supply, journal: Journal, metrics: Metrics, identity: Identity,
        stamp: Callable[[], str],
    ) -> None:  # fmt: skip
        self._schedule = schedule
        self._supply = supply
        self._journal = journal
        self._metrics = metrics
        self._identity = identity
        self._stamp = stamp
        self._moved: dict[str, BreakerState] = {}  # of each cap whose breaker has moved, as last told
        self._held: set[str] = set()  # domains that are told to be held

    def tell(self, lane: Lane, caps: Sequence[Cap]) -> None:
        """Tell each move of these breakers, and each domain that has come to be held, once."""
        for cap in caps:
            if cap.breaker is None or cap.breaker.state is self._moved.get(cap.key, BreakerState.CLOSED):
                continue
            provider = cap.policy.name if cap.policy is not None else ""
            if cap is lane.own or provider != lane.policy.name:
                self._tell(lane, cap.key, provider, cap.breaker)
        for domain in lane.queue.held():
            if domain.hold is not None and domain.name not in self._held:
                self._held.add(domain.name)
                log.warning("domain_held", lane=lane.key, domain=domain.name, cause=domain.hold.cause)

    def tell_identity(self, breaker: Breaker) -> None:
        """Tell each move of the breaker above all lanes, once."""
        if breaker.state is not self._moved.get("", BreakerState.CLOSED):
            self._moved[""] = breaker.state
            self._audit(breaker, f"identity {self._identity.name}")
            log.warning("identity_breaker_moved", identity=self._identity.name, **_move(breaker))

    def give_up(self, lane: Lane, now: float) -> bool:
        """End what waits at a lane or domain that stayed closed to us for so long; True when something did."""
        give_up_s, queue = lane.policy.retry.give_up_s, lane.queue
        for cap in lane.caps:
            if cap.breaker is not None and not cap.open_sessions and cap.breaker.gives_up(now, give_up_s):
                self._end(lane, cap.breaker.cause)
                return True
        held = [
            domain
            for domain in queue.held()
            if domain.hold and not domain.in_flight and domain.hold.gives_up(now, give_up_s)
        ]
        for domain in held:
            queue.drop_domain(domain)
            self._journal.end("domain_refuses_us", self._stamp(), domain_id=domain.id)
            cause = domain.hold.cause if domain.hold else ""
            log.warning("given_up", lane=lane.key, domain=domain.name, ending="domain_refuses_us", cause=cause)
            domain.hold = None
            queue.forget(domain)
        return bool(held)

    def look(self) -> bool:
        """Look once at lanes that nobody visits; True when something was given up."""
        ended = False
        for place, lane in enumerate(list(self._schedule.lanes.values()), 1):
            if place % LANES_AT_ONCE == 0:
                gevent.sleep(0)
            now = time.monotonic()
            if lane.key in self._schedule.lanes and not lane.open_sessions and self.give_up(lane, now):
                ended = True
                self._schedule.touch(lane, now)
                self.leave(lane)
        return ended

    def leave(self, lane: Lane) -> None:
        """A lane without work leaves memory."""
        if self._supply.finished(lane):
            self._supply.retire(lane)
            self._moved.pop(lane.key, None)

    # --- inside -----------------------------------------------------------------------------------------------

    def _tell(self, lane: Lane, key: str, provider: str, breaker: Breaker) -> None:
        self._moved[key] = breaker.state
        self._metrics.breaker_moved(provider, self._identity.name, breaker.state)
        self._audit(breaker, f"{key} of {provider}")
        if breaker.state is not BreakerState.HALF_OPEN:  # an attempt is no news
            log.warning("breaker_moved", lane=lane.key, provider=provider, **_move(breaker))

    def _audit(self, breaker: Breaker, whose: str) -> None:
        lasts = f" for {_lasts_s(breaker)} s" if breaker.state is BreakerState.OPEN else ""
        note = f"breaker of {whose}: {breaker.state.value}{lasts}"
        row = AuditRow(time.time(), "breaker", reason=breaker.cause, identity=self._identity.key, note=note)
        self._journal.audit([row])

    def _end(self, lane: Lane, cause: str) -> None:
        """End what waits in a lane that is closed to us."""
        for domain in list(lane.queue.domains.values()):
            lane.queue.drop_domain(domain)
        self._supply.forget_more(lane)
        self._journal.end("provider_paused", self._stamp(), lane=lane.key, identity=self._identity.key)
        log.warning("given_up", lane=lane.key, ending="provider_paused", cause=cause)


def _move(breaker: Breaker) -> dict[str, str | int]:
    """A move as the log tells it."""
    move: dict[str, str | int] = {"to": breaker.state.value}
    if breaker.state is BreakerState.OPEN:
        move |= {"cause": breaker.cause, "for_s": _lasts_s(breaker)}
    return move


def _lasts_s(breaker: Breaker) -> int:
    return max(0, round(breaker.until - time.monotonic()))
