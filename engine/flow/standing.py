"""Orders about an identity: drained, disabled, quarantined, enabled; by people and by the monitor.

1. An order stands in the identity state: it binds running engines within seconds and those to come, until its time is
   over or an `enabled` lifts it. A run never starts under an identity that is held.
2. Which of several holds, and what lifts it, is in `store.standing_order`.
3. Who ordered what, why, and when it ended goes into the audit of each job that it bound.
4. What follows for a run is in `core.hold`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.core.identity import Identity, Status
from engine.flow.job import WrongUse
from engine.flow.lane_limits import moment
from engine.store.audit import AuditRow
from engine.store.standing_order import binds, in_force, status_of, strictest
from engine.store.state import IDENTITY, Order, State

if TYPE_CHECKING:
    from engine.flow.prober import Prober
    from engine.flow.run import Run

_SAID = {status: status.value for status in Status} | {Status.DRAINING: "drained"}


def holding(state: State, identity: Identity, now: float) -> Order | None:
    """The order that holds an identity now."""
    return strictest(in_force([order for order in state.standing_orders(now) if binds(order, identity)], now))


def refuse_held(state: State, identity: Identity, now: float) -> None:
    """Raises WrongUse where an order holds the identity: who gave it, when, why and until when."""
    order = holding(state, identity, now)
    if order is not None:
        raise WrongUse(
            f"The identity {identity.name} is {words(order)}; "
            f"`engine identity enable {order.identity} --why TEXT` lifts it."
        )


def said(order: Order) -> str:
    """What an order does to an identity, as a word."""
    return _SAID[status_of(order)]


def words(order: Order) -> str:
    """An order in a few words: `quarantined by Ann since ..., until ...: listed by zen`."""
    until = f", until {moment(order.until)}" if order.until is not None else ", until it is lifted"
    return f"{said(order)} by {order.by} since {moment(order.at)}{until}: {order.why}"


class Standing:
    """The engine's side, for one job: looks which orders hold its identity, and audits each that comes or goes."""

    def __init__(self, run: Run, prober: Prober) -> None:
        self._run = run
        self._prober = prober
        self._identity = prober.identity
        self._bound: dict[int, Order] = {}

    def look(self) -> bool:
        """Look once, obey, audit, answer; True when something changed. Costs one read while nothing does."""
        now, state = time.time(), self._run.state
        orders = [order for order in state.standing_orders(now) if binds(order, self._identity)]
        wanted = {order.id: order for order in in_force(orders, now)}
        if wanted.keys() == self._bound.keys():
            return False
        new = [order for number, order in wanted.items() if number not in self._bound]
        gone = [order for number, order in self._bound.items() if number not in wanted]
        notes = [f"identity order {order.id}: {words(order)}" for order in new]
        lifting = [order for order in orders if order.kind == IDENTITY and status_of(order) is Status.ENABLED]
        rows = [AuditRow(now, "order", identity=self._identity.key, note=note)
                for note in (*notes, *(_ended(order, lifting) for order in gone))]  # fmt: skip
        self._run.journal.audit(rows).wait()
        sessions = self._hold(strictest(list(wanted.values())), now)
        answer = {"identity": self._identity.key, "job": self._run.job.id, "sessions": sessions}
        for order in (*new, *(lifted for lifted in lifting if lifted.answer is None)):
            state.answer_order(order.id, answer, now)
        self._bound = wanted
        return True

    def _hold(self, order: Order | None, now: float) -> int:
        if order is None:
            return self._prober.obey(Status.ENABLED)
        lasts_s = None if order.until is None else order.until - now
        return self._prober.obey(status_of(order), words(order), lasts_s)


def _ended(gone: Order, lifting: Sequence[Order]) -> str:
    for order in lifting:
        if order.id > gone.id:
            return f"identity order {gone.id} lifted: {said(gone)}, by {order.by}: {order.why}"
    return f"identity order {gone.id} over: {said(gone)}, its time has passed"
