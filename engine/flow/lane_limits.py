"""Limits of lanes that operators order: placed by a command line, obeyed by every engine of this machine.

1. A limit is a standing order in the identity state: it binds running engines within seconds and those to come, until
   its time is over or a reset lifts it.
2. Limits add up, the tightest number holds; so that to loosen one, it is lifted first.
3. Who ordered what, why, and when it ended goes into the audit of each job that it bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from engine.core.grammar import Rate, rate, rate_text
from engine.core.identity import Identity
from engine.core.limit import Limit
from engine.store.audit import AuditRow
from engine.store.database import open_read_only
from engine.store.journal import Journal
from engine.store.standing_order import binds
from engine.store.state import KIND, LIMIT, RESET, Order, State, read_standing_orders


def place_limit(
    state: State,
    provider: str,
    *,
    identity: str = "",
    most: Rate | None = None,
    concurrency: int | None = None,
    by: str,
    why: str,
    until: float | None = None,
    at: float,
) -> int:
    """Narrow the lanes of a policy, for one identity (its name or public address) or all; the order's number."""
    arguments = {"provider": provider, "rate": rate_text(most) if most else None, "concurrency": concurrency}
    return state.place_order(identity, LIMIT, arguments, by=by, why=why, at=at, until=until).wait()


def place_reset(state: State, provider: str, *, identity: str = "", by: str, why: str, at: float) -> int:
    """Lift the limits of a policy: those for one identity, or all; the order's number."""
    return state.place_order(identity, RESET, {"provider": provider}, by=by, why=why, at=at).wait()


def in_force(orders: Sequence[Order], now: float) -> list[Order]:
    """The limits among standing orders that no later reset lifted and whose time is not over, oldest first."""
    found: list[Order] = []
    for order in orders:
        if order.kind == RESET:
            found = [limit for limit in found if not _lifts(order, limit)]
        elif order.kind == LIMIT and (order.until is None or order.until > now):
            found.append(order)
    return found


def read_limits(state: Path, now: float) -> list[Order]:
    """The limits in force that a state's file holds, for command lines that only read; none without a file."""
    if not state.exists():
        return []
    with open_read_only(state, KIND) as conn:
        return in_force(read_standing_orders(conn, now), now)


def limit_of(order: Order) -> Limit:
    """What an order narrows."""
    given = order.arguments
    most = rate(given["rate"]) if given.get("rate") else None
    return Limit(str(given["provider"]), most, given.get("concurrency"), f"lane limit {order.id}")


def words(order: Order) -> str:
    """A limit in a few words: `gmail at most 6/min and 1 session at once`."""
    limit = limit_of(order)
    parts = [rate_text(limit.rate)] if limit.rate else []
    if limit.concurrency is not None:
        parts.append(f"{limit.concurrency} session{'s' if limit.concurrency > 1 else ''} at once")
    return f"{limit.provider or 'every provider'} at most {' and '.join(parts)}"


def moment(at: float) -> str:
    """A moment to the second, UTC, RFC 3339."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class LaneLimits:
    """The engine's side, for one job: looks which limits bind its identity, and audits each that comes or goes."""

    def __init__(
        self,
        state: State,
        journal: Journal,
        identity: Identity,
        job: str,
        narrow: Callable[[Sequence[Limit]], int],
    ) -> None:
        self._state = state
        self._journal = journal
        self._identity = identity
        self._job = job
        self._narrow = narrow
        self._bound: dict[int, Order] = {}

    def look(self) -> bool:
        """Look once, obey, audit, answer; True when something changed. Costs one read while nothing does."""
        now = time.time()
        orders = [order for order in self._state.standing_orders(now) if binds(order, self._identity)]
        wanted = {order.id: order for order in in_force(orders, now)}
        if wanted.keys() == self._bound.keys():
            return False
        new = [order for number, order in wanted.items() if number not in self._bound]
        gone = [order for number, order in self._bound.items() if number not in wanted]
        self._audit([self._begins(order) for order in new] + [self._ends(order, orders) for order in gone], now)
        lanes = self._narrow([limit_of(order) for order in wanted.values()])
        answer = {"identity": self._identity.key, "job": self._job, "lanes": lanes}
        resets = [order for order in orders if order.kind == RESET and any(_lifts(order, limit) for limit in gone)]
        for order in (*new, *resets):
            self._state.answer_order(order.id, answer, now)
        self._bound = wanted
        return True

    def _audit(self, notes: Sequence[str], now: float) -> None:
        rows = [AuditRow(now, "order", identity=self._identity.key, note=note) for note in notes]
        self._journal.audit(rows).wait()

    @staticmethod
    def _begins(order: Order) -> str:
        until = f"until {moment(order.until)}" if order.until is not None else "until it is lifted"
        return f"lane limit {order.id}: {words(order)}, {until}, by {order.by}: {order.why}"

    @staticmethod
    def _ends(limit: Order, orders: Sequence[Order]) -> str:
        for order in orders:
            if order.kind == RESET and _lifts(order, limit):
                return f"lane limit {limit.id} lifted: {words(limit)}, by {order.by}: {order.why}"
        return f"lane limit {limit.id} over: {words(limit)}, its time has passed"


def _lifts(reset: Order, limit: Order) -> bool:
    """Whether a reset, given later, lifts a limit."""
    same = reset.arguments.get("provider") == limit.arguments.get("provider")
    return same and reset.id > limit.id and reset.identity in ("", limit.identity)
