"""Checks and events on their way to a control plane: from the state to the spool, from the spool over HTTP.

1. A record is in the state in the same commit as what it tells of, then in the spool, and there until the control plane
   has said yes. At no moment is it nowhere; killed between two steps, it is twice, with one id.
2. Order is kept. What the plane does not take stops what comes behind it, and is posted again after 1 s, 2 s ... up to
   5 min, give or take half: a fleet does not come back in one moment. A Retry-After is heeded.
3. A batch that is refused as such is halved until the record at fault is found. That one is told, counted and passed
   over; nothing else is. A plane that refuses an empty batch too, or IN_A_ROW records one after the other, has a
   quarrel with us and not with a record: then nothing is passed over, and it is asked again as under rule 2.
4. When the spool has its size, checks are dropped and counted: the next sweep makes new ones. Events wait in the state.
5. Files are read and written on the writer's thread, never on the hub.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gevent

from engine.log import log
from engine.reputation.control_plane import ControlPlane, PushError, PushSettings
from engine.reputation.push_record import CHECK
from engine.reputation.spool import Spool, Spooled
from engine.store import push_outbox
from engine.store.state import State

AT_ONCE = 500  # records of a batch
BATCH_BYTES = 512 * 1024
ROUNDS = 40  # batches of a turn; the next one is LOOK_EVERY_S later
LOOK_EVERY_S = 2.0
IN_A_ROW = 3
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0
_T = TypeVar("_T")


class Count(Protocol):
    """Who counts records (sent, refused, dropped) and posts (taken, failed)."""

    def pushed(self, outcome: str, count: int) -> None: ...

    def posted(self, outcome: str) -> None: ...


def spool_folder(state: Path) -> Path:
    """Where the spool of a state is."""
    return state.parent / "push"


class Push:
    """What pushes one state's records; one a machine (the monitor's lock). Raises StoreError."""

    def __init__(
        self, state: State, settings: PushSettings, counts: Count | None = None, *, rng: random.Random | None = None
    ) -> None:  # fmt: skip
        self.problem = ""  # why the newest batch was not taken; empty where it was
        self.waiting = 0  # records in the spool
        self.stalled_since: float | None = None  # since when the plane takes nothing, while records wait
        self._state = state
        self._settings = settings
        self._plane = ControlPlane(settings)
        self._counts = counts
        self._rng = rng or random.Random()
        self._spool: Spool | None = None
        self._damaged = 0
        self._batch = AT_ONCE
        self._passed_over = 0  # records since the plane took one
        self._failures = 0
        self._again_at = float("-inf")

    def adopt(self, settings: PushSettings) -> None:
        """Another control plane, or the same with another token, from the next turn on."""
        self._settings, self._plane = settings, ControlPlane(settings)
        self._failures, self._again_at = 0, float("-inf")

    def serve(self) -> None:
        """Push until killed."""
        while True:
            self.turn(time.time())
            gevent.sleep(LOOK_EVERY_S)

    def turn(self, now: float) -> int:
        """Spool what is new, and post what waits unless the plane wants to be left alone; how many records it took."""
        try:
            self._fill()
            sent = self._post(now) if now >= self._again_at else 0
        except OSError as error:  # the disk, not the network: `ControlPlane` makes that a PushError
            self._failed(f"{spool_folder(self._state.path)}: {error.strerror or error}", None, now)
            return 0
        stalled = bool(self.waiting and self.problem)
        self.stalled_since = (self.stalled_since or now) if stalled else None
        return sent

    # --- inside -----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Move records from the state into the spool, until the state has none."""
        if self._spool is not None and not self._state.read(push_outbox.count):
            return  # looking costs no commit where nothing waits
        folder, limit = spool_folder(self._state.path), self._settings.spool_bytes

        def do(conn: sqlite3.Connection) -> tuple[Spool, int, int]:
            spool = self._spool or Spool(folder)
            if spool.size >= limit:
                return spool, 0, push_outbox.drop(conn, CHECK)
            found = push_outbox.oldest(conn, AT_ONCE)
            spool.append([record for _, record in found])
            push_outbox.remove(conn, [seq for seq, _ in found])
            return spool, len(found), 0

        moved = AT_ONCE
        while moved == AT_ONCE:
            spool, moved, dropped = self._state.enqueue(do).wait()
            self._spool, self.waiting = spool, spool.waiting
            if dropped:
                self._count("dropped", dropped)
                log.error("push_spool_full", folder=str(folder), dropped_checks=dropped)

    def _post(self, now: float) -> int:
        """Post batches until nothing waits, or one is not taken."""
        sent = 0
        for _ in range(ROUNDS):
            batch = self._read(lambda spool: spool.peek(self._batch, BATCH_BYTES))
            if not batch:
                break
            records = [each.record for each in batch]
            try:
                refused = self._plane.post(_origin(records[0]), records)
            except PushError as error:
                if not (error.of_batch and self._smaller(batch, error)):
                    self._failed(error.problem, error.wait_s, now)
                    break
                continue
            self._taken(batch)
            self._worked(len(batch))
            sent += len(batch) - len(refused)
            self._count("sent", len(batch) - len(refused))
            for one in refused:
                self._count("refused", 1)
                log.error("push_refused", record=one.id, why=one.why)
        return sent

    def _smaller(self, batch: Sequence[Spooled], error: PushError) -> bool:
        """The plane refuses the batch: halve it, or pass over the record that is left of it."""
        if len(batch) > 1:
            self._posted("failed")
            self._batch = (len(batch) + 1) // 2
            return True
        record = batch[0].record
        if self._passed_over >= IN_A_ROW or self._refuses_all(_origin(record)):
            return False
        self._posted("failed")
        self._passed_over += 1
        log.error("push_refused", record=str(record.get("id")), why=error.problem, body=json.dumps(record))
        self._taken(batch)
        self._count("refused", 1)
        return True

    def _refuses_all(self, origin: str) -> bool:
        try:
            self._plane.post(origin, [])
        except PushError:
            return True
        return False

    def _worked(self, count: int) -> None:
        if self.problem:
            log.info("push_works_again", to=self._settings.where)
        self.problem, self._failures, self._passed_over, self._again_at = "", 0, 0, float("-inf")
        self._batch = min(AT_ONCE, max(self._batch, 2 * count))
        self._posted("taken")

    def _failed(self, problem: str, wait_s: float | None, now: float) -> None:
        wait = min(FIRST_WAIT_S * 2.0 ** min(self._failures, 20), LONGEST_WAIT_S) * (0.5 + self._rng.random())
        self._failures += 1
        self._again_at = now + max(wait, wait_s or 0.0)
        if problem != self.problem:  # once for each problem: a plane that is away for a week is a line, not a thousand
            log.warning("push_failed", why=problem, waiting=self.waiting)
        self.problem = problem
        self._posted("failed")

    def _taken(self, batch: Sequence[Spooled]) -> None:
        self._read(lambda spool: spool.taken(batch))

    def _read(self, do: Callable[[Spool], _T]) -> _T:
        """Do something with the spool on the writer's thread."""
        spool = self._spool
        assert spool is not None
        found = self._state.read(lambda _: do(spool))
        self.waiting = spool.waiting
        if spool.damaged > self._damaged:
            self._damaged = spool.damaged
            log.error("push_spool_damaged", folder=str(spool.folder), segments=spool.damaged)
        return found

    def _posted(self, outcome: str) -> None:
        if self._counts is not None:
            self._counts.posted(outcome)

    def _count(self, outcome: str, count: int) -> None:
        if self._counts is not None and count:
            self._counts.pushed(outcome, count)


def _origin(record: Mapping[str, Any]) -> str:
    return str(record.get("id", "")).rpartition("-")[0]
