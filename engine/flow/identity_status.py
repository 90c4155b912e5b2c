"""How an identity stands, out of the file that holds what is known of it: orders, breaker, listings, what it has spent.

1. It reads, and changes nothing: neither a running engine nor the state notices.
2. What a state of another age has no table for is left out.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.core.breaker import BreakerState
from engine.core.identity import Identity, Status
from engine.core.identity_breaker import IdentityBreaker
from engine.core.listing import Severity
from engine.flow.memory import away_s
from engine.store.database import open_read_only
from engine.store.lock import HeldByOther, holders
from engine.store.standing_order import binds, in_force, status_of, strictest
from engine.store.state import IDENTITY, KIND, Order, read_standing_orders

WINDOWS_S = {"refusals": 3600.0, "warmup": 86_400.0}  # what an identity's limits count, and over which time


@dataclass(frozen=True, slots=True)
class OpenListing:
    """A confirmed listing that has not ended; `since` in Unix seconds."""

    list: str
    sublist: str
    severity: Severity
    since: float


@dataclass(frozen=True, slots=True)
class IdentityStatus:
    """One identity. `configured` is what its file says, None for one that only orders name.

    `refusing` of `answering` sites refuse it; `cause` and `closed_s` tell of its breaker while that is open.
    """

    name: str
    addresses: tuple[str, ...]
    configured: Status | None
    orders: tuple[Order, ...] = ()
    holder: HeldByOther | None = None
    cause: str = ""
    closed_s: float = 0.0
    refusing: int = 0
    answering: int = 0
    listings: tuple[OpenListing, ...] = ()
    spent: tuple[tuple[str, int], ...] = ()

    @property
    def status(self) -> Status:
        """What it may do now: an order says more than its file, unless the file has taken it out of service."""
        order = strictest(self.orders)
        if order is not None:
            return status_of(order)
        return self.configured or Status.ENABLED


def read_identities(state: Path, identities: Sequence[Identity], now: float) -> list[IdentityStatus]:
    """These identities, and those beside them that orders in force name. `now` in Unix seconds."""
    if not state.exists():
        return [IdentityStatus(each.name, each.addresses, each.status) for each in identities]
    with open_read_only(state, KIND) as conn:
        orders = [order for order in read_standing_orders(conn, now) if order.kind == IDENTITY]
        known = [*identities, *(Identity(name, "", "") for name in _strangers(orders, identities))]
        found = [_standing(conn, each, orders, now, holders(state.parent)) for each in known]
    return [each for each in found if each.configured is not None or each.orders]


def _strangers(orders: Sequence[Order], identities: Sequence[Identity]) -> list[str]:
    named = [order.identity for order in orders if not any(binds(order, each) for each in identities)]
    return list(dict.fromkeys(named))


def _standing(
    conn: sqlite3.Connection, identity: Identity, orders: Sequence[Order], now: float, held: Sequence[HeldByOther]
) -> IdentityStatus:
    its = tuple(in_force([order for order in orders if binds(order, identity)], now))
    if not identity.addresses:
        return IdentityStatus(identity.name, (), None, its)
    breaker, kept = IdentityBreaker(), _memory(conn, identity.key)
    if kept:
        breaker.recall(kept, now, away_s(kept, now))
    answers = kept.get("answers", ())
    closed = breaker.breaker.state is not BreakerState.CLOSED
    return IdentityStatus(
        identity.name, identity.addresses, identity.status, its,
        holder=next((one for one in held if one.address in identity.addresses), None),
        cause=breaker.breaker.cause, closed_s=max(0.0, breaker.breaker.until - now) if closed else 0.0,
        refusing=sum(bool(answer[3]) for answer in answers), answering=len(answers),
        listings=tuple(each for address in identity.addresses for each in _listings(conn, address)),
        spent=_spent(conn, identity.key, now),
    )  # fmt: skip


def _memory(conn: sqlite3.Connection, key: str) -> dict[str, Any]:
    row = conn.execute("SELECT state FROM breakers WHERE key = ?", (key,)).fetchone()
    found: dict[str, Any] = json.loads(row[0]) if row else {}
    return found


def _listings(conn: sqlite3.Connection, address: str) -> list[OpenListing]:
    table = "engine_server_blacklist_events"
    if not conn.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone():
        return []
    query = f"""SELECT rbl, sublist, severity, first_seen FROM {table}
                WHERE ip = ? AND confirmed_at IS NOT NULL AND closed_at IS NULL
                ORDER BY severity DESC, first_seen"""  # noqa: S608 - our own name
    rows = conn.execute(query, (address,))
    return [OpenListing(rbl, sublist, Severity(severity), since) for rbl, sublist, severity, since in rows]


def _spent(conn: sqlite3.Connection, key: str, now: float) -> tuple[tuple[str, int], ...]:
    """What is spent of the identity's own limits, where it has such windows."""
    found = []
    for (name, window_s), window in zip(WINDOWS_S.items(), ("identity", "warmup"), strict=True):
        query = "SELECT sum(tokens) FROM windows WHERE key = ? AND at > ?"
        (tokens,) = conn.execute(query, (f"{key} {window}", now - window_s)).fetchone()
        if tokens is not None:
            found.append((name, int(tokens)))
    return tuple(found)
