"""Orders: what a command line asks of the engine that holds its identity, and the answers.

1. An order is a row of the identity state, with who gave it and why; the holder looks once a second, obeys, audits,
   answers. Two processes never probe under one identity.
2. A limit of a lane and an identity's status are standing orders: see `flow.lane_limits` and `flow.standing`. They are
   looked for at the same moments.
3. A check that is ordered is asked ahead of the queues and within the same limits; it never adds a row to the output.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import gevent
from gevent.pool import Group

from engine.core.address import BadAddress, parse
from engine.core.identity import Consent, Identity, Mode
from engine.flow.intake import IntakeRow
from engine.flow.job import Suppression, WrongUse, new_row, result_of
from engine.flow.lane_limits import LaneLimits
from engine.flow.prober import Prober
from engine.flow.run import Run
from engine.flow.standing import Standing
from engine.store.audit import AuditRow
from engine.store.job_tables import PROVISIONAL, SETTLED, WAITING
from engine.store.state import Order, State

LOOK_EVERY_S = 1.0
PATIENCE_S = 120.0  # a check waits this long for its turn and its answer
MAX_CHECKED = 10


class OrderDesk:
    """The holder's side: looks for orders of one run's identity and answers them."""

    def __init__(
        self, run: Run, prober: Prober, suppression: Suppression, limits: LaneLimits, standing: Standing
    ) -> None:
        self._run = run
        self._limits = limits
        self._standing = standing
        self._prober = prober
        self._identity = prober.identity
        self._suppression = suppression
        self._at_work = Group()

    def serve(self) -> None:
        """Look once a second, until killed."""
        again = True  # orders that a dead holder took and never answered
        while True:
            for order in self._run.state.take_orders(self._identity.key, time.time(), again=again):
                self._at_work.spawn(self._obey, order)
            again = False
            self._limits.look()
            self._standing.look()
            gevent.sleep(LOOK_EVERY_S)

    def close(self) -> None:
        """The run ends: whoever still waits for an answer waits in vain."""
        self._at_work.kill()

    def _obey(self, order: Order) -> None:
        note = f"{order.kind} by {order.by}: {order.why}"
        row = AuditRow(time.time(), "order", identity=self._identity.key, note=note)
        self._run.journal.audit([row]).wait()
        if order.kind == "check":
            answer = self._check(order)
        else:
            answer = {"error": f"this engine knows no order {order.kind}"}
        self._run.state.answer_order(order.id, answer, time.time())

    def _check(self, order: Order) -> dict[str, Any]:
        run, texts = self._run, list(order.arguments.get("addresses", ()))[:MAX_CHECKED]
        if order.arguments.get("mode") != run.job.mode.value:
            return {"error": f"the job that holds this identity runs in mode {run.job.mode}; check in that mode"}
        consent = run.job.consent.reference if run.job.consent else ""
        if run.job.mode is Mode.ENHANCED and order.arguments.get("consent") != consent:
            return {"error": f"its job runs under the consent {consent}; check under that one, or when it has ended"}
        if not self._prober.hold.starts:
            return {"error": f"the identity is {self._prober.hold.why}"}
        rows = [
            new_row(IntakeRow(-(order.id * MAX_CHECKED + place) - 1, (), text), self._suppression)
            for place, text in enumerate(texts)
        ]
        new = [row for row in rows if run.journal.row_of(row.key) is None]
        run.journal.add_rows(new)
        for found in [found for row in new if (found := run.journal.row_of(row.key)) is not None]:
            for prober in run.probers:
                prober.reserve(found["id"])
        for row in new:
            if row.domain and not row.reason:
                run.journal.reroute(row.domain)
        run.survey()
        for row in new:  # what the job has already waits in its queue, and is asked once
            for prober in run.probers:  # whose site it is, asks
                prober.ask_first(row.key)
        deadline = time.monotonic() + PATIENCE_S
        return {"results": [self._answered(row.key, deadline) for row in rows]}

    def _answered(self, key: str, deadline: float) -> dict[str, Any]:
        """The verdict; what waits for another attempt answers with the reason of this one."""
        while True:
            row = self._run.journal.row_of(key)
            assert row is not None
            waits = row["state"] == WAITING and row["attempts"]
            waits = waits or (row["state"] == PROVISIONAL and row["reason"] == "rcpt_rejected")  # to the job's end
            if row["state"] >= SETTLED or waits or time.monotonic() > deadline:
                if not row["reason"]:
                    return {"address": key, "error": "no answer in time"}
                return asdict(result_of(row, _PROVISIONAL.get(row["reason"], row["reason"])))
            gevent.sleep(LOOK_EVERY_S / 4)


# What a provisional verdict is worth while its evidence is not in.
_PROVISIONAL = {"rcpt_ok": "accepted_unconfirmed", "rcpt_rejected": "refusals_suspect"}


def order_check(
    state: State, identity: Identity, mode: Mode, consent: Consent | None, addresses: Sequence[str], by: str
) -> list[dict[str, Any]]:
    """The other side: have the engine that holds the identity check addresses, and wait for its answer."""
    for text in addresses:
        if isinstance(parse(text), BadAddress):
            raise WrongUse(f"{text} is no address; check it without --mode to see why.")
    arguments = {"addresses": list(addresses), "mode": mode.value, "consent": consent.reference if consent else ""}
    until = time.time() + PATIENCE_S
    order_id = state.place_order(
        identity.key, "check", arguments, by=by, why="engine check", at=time.time(), until=until
    ).wait()
    try:
        while time.time() < until + LOOK_EVERY_S:
            order = state.order(order_id)
            if order is not None and order.answer is not None:
                if "error" in order.answer:
                    raise WrongUse(f"The engine that holds {identity.key} answers: {order.answer['error']}.")
                results: list[dict[str, Any]] = order.answer["results"]
                return results
            gevent.sleep(LOOK_EVERY_S / 4)
    finally:
        state.forget_check(order_id, time.time()).wait()
    raise WrongUse(f"The engine that holds {identity.key} gave no answer within {PATIENCE_S:.0f} s; is it stopped?")
