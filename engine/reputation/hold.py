"""What listings of our own addresses lead to: orders that hold an identity back, slow it, or let it go on.

1. What has to be is read from the events, what is from the orders; only the difference is ordered. Whoever was killed
   in between orders nothing twice.
2. An operator's order outweighs it: what he held stays held, and what he enabled is held again only for a listing that
   opened after that.
3. An order and the word to people about it are one commit: there is never one without the other.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from engine.core.grammar import rate_text
from engine.core.identity import Identity, Status
from engine.core.notice import Notice
from engine.log import log
from engine.reputation import alert
from engine.reputation.charge import Charge
from engine.reputation.reaction import BY, Wanted, wanted
from engine.store import reputation as tables
from engine.store.standing_order import binds, in_force, status_of
from engine.store.state import IDENTITY, LIMIT, RESET, Order, State, insert_order

DAY_S = 86_400.0


class Hold:
    """Places and lifts the monitor's orders in a state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def react(self, charge: Charge, now: float) -> float | None:
        """Have every identity stand as its listings ask; when to look again, where a dwell time runs."""
        dwell_s = charge.dwell_s
        found = self._state.read(lambda conn: tables.events(conn, closed_since=now - dwell_s - DAY_S))
        orders = self._state.standing_orders(now)
        moments = []
        for identity in charge.identities:
            about = [order for order in orders if binds(order, identity)]
            freed = [order for order in about if order.kind == IDENTITY and status_of(order) is Status.ENABLED]
            freed_at = max((order.at for order in freed if order.by != BY), default=0.0)
            its = wanted(identity, [each for each in found if (each.opened_at or 0.0) > freed_at], dwell_s, now)
            moments += [its.again_at] if its.again_at is not None else []
            mine = [order for order in about if order.by == BY or order in freed]
            if charge.quarantine:
                self._quarantine(charge, identity, its, in_force(mine, now), now)
            if charge.slow is not None:
                self._slow(charge, identity, its, mine, now)
        return min(moments, default=None)

    def _quarantine(
        self, charge: Charge, identity: Identity, its: Wanted, mine: Sequence[Order], now: float
    ) -> None:  # fmt: skip
        held = next((order for order in mine if status_of(order) is Status.QUARANTINED), None)
        if bool(its.quarantine) == (held is not None):
            return
        if charge.dry_run:
            log.warning("would_quarantine", identity=identity.name, why=its.quarantine or "released")
            return
        if its.quarantine:
            told = alert.quarantined(identity.name, its.quarantine, since=now, until=None, now=now)
            self._order(identity, {"status": Status.QUARANTINED.value}, its.quarantine, now, told)
        elif held is not None:
            why = "no critical listing any more"
            told = alert.released(identity.name, why, since=held.at, now=now)
            self._order(identity, {"status": Status.ENABLED.value, "of": BY}, why, now, told)
        log.warning("reaction", identity=identity.name, quarantined=bool(its.quarantine), why=its.quarantine)

    def _order(self, identity: Identity, arguments: dict[str, str], why: str, now: float, told: Notice) -> None:
        row = (identity.key, now, BY, why, IDENTITY, json.dumps(arguments), None)

        def do(conn: sqlite3.Connection) -> None:
            insert_order(conn, row)
            tables.put_notices(conn, [told])

        self._state.enqueue(do).wait()

    def _slow(
        self, charge: Charge, identity: Identity, its: Wanted, mine: Sequence[Order], now: float
    ) -> None:  # fmt: skip
        limits = [order for order in mine if order.kind in (LIMIT, RESET) and not order.arguments.get("provider")]
        slowed = bool(limits) and limits[-1].kind == LIMIT
        if bool(its.slow) == slowed or charge.slow is None or charge.dry_run:
            return
        kind = LIMIT if its.slow else RESET
        arguments = {"provider": ""} | ({"rate": rate_text(charge.slow), "concurrency": None} if its.slow else {})
        why = its.slow or "no such listing any more"
        self._state.place_order(identity.key, kind, arguments, by=BY, why=why, at=now).wait()
        log.warning("reaction", identity=identity.name, slowed=bool(its.slow), why=why)
