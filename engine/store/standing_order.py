"""Standing orders about an identity: what holds it, who said so, and what lifts it.

1. Of several the strictest holds. `enabled` lifts all that came before it, or with `of` only those that this one gave:
   what an operator ordered is never undone by a monitor.
2. Nothing is decided here about a run: `core.hold` does, and `flow.standing` obeys.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.identity import Identity, Status
from engine.store.state import IDENTITY, Order, State

_STRICTER = (Status.DRAINING, Status.QUARANTINED, Status.DISABLED)  # each than those before it


def place_status(
    state: State,
    identity: str,
    status: Status,
    *,
    by: str,
    why: str,
    at: float,
    until: float | None = None,
    of: str = "",
) -> int:
    """Order a status for an identity, by its name or public address; the order's number.

    `of` goes with ENABLED: lift the orders that this one gave, and leave the others.
    """
    arguments = {"status": status.value} | ({"of": of} if of else {})
    return state.place_order(identity, IDENTITY, arguments, by=by, why=why, at=at, until=until).wait()


def status_of(order: Order) -> Status:
    """What an order puts an identity into."""
    return Status(order.arguments["status"])


def binds(order: Order, identity: Identity) -> bool:
    """Whether a standing order speaks of this identity."""
    return order.identity in ("", identity.name, identity.public_v4, identity.public_v6)


def in_force(orders: Sequence[Order], now: float) -> list[Order]:
    """The orders of one identity that nothing lifted and whose time is not over, oldest first."""
    found: list[Order] = []
    for order in orders:
        if order.kind != IDENTITY or (order.until is not None and order.until <= now):
            continue
        if status_of(order) is not Status.ENABLED:
            found.append(order)
            continue
        of = order.arguments.get("of")
        found = [each for each in found if of and each.by != of]
    return found


def strictest(orders: Sequence[Order]) -> Order | None:
    """The one that holds, of those in force; the oldest of equals."""
    return max(orders, key=lambda order: _STRICTER.index(status_of(order)), default=None)
