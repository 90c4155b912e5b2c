"""One native thread owns every SQLite connection; greenlets wait for it, the hub never does.

1. The functions of this module run on the thread, the methods of Writer and Ticket on the hub. What is handed to the
   thread touches its connection and plain values only: no gevent, no log, no metric, no lock, no COMMIT of its own.
2. Functions enqueued within a few ms share one transaction (group commit). One that fails takes nobody with it: the
   transaction is rolled back and all run once more, each in a savepoint of its own; so a function may run twice.
   Savepoints from the start would cost more than most functions. A ticket is done only after COMMIT has returned.
3. Functions run in the order in which they were enqueued, with two exceptions. Within a group, a database that *trails*
   is written after the others: so it may lag behind them after a crash, and is never ahead of them. And what is
   gathered for one function may pass what is gathered for another one of the same database, until something is
   enqueued for it: functions that gather beside each other must not mind each other's order.
4. A disk that fails is final: nothing is written after the failed write, in any database; every later call says why.

synchronous=FULL: WAL with NORMAL would survive `kill -9`, but after a loss of power the journal could have lost
commits that the identity state still speaks of: replies asked for twice, and a head ahead of its chain, which is
what a cut looks like. Group commit shares the fsync; `python -m bench writer` prints what it costs.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from engine.store.database import JOURNAL, REMEDIES, StoreError, again, code_of, open_database, store_error

T = TypeVar("T")
V = TypeVar("V")
Function = Callable[[sqlite3.Connection], T]
Gatherer = Callable[[Sequence[V], sqlite3.Connection], T]

LINGER_S = 0.003  # how long a group waits for company; sessions that start together arrive within this
GROUP_LIMIT = 500  # functions a transaction; bounds both latency and what one failure of the disk can take back

_NOTHING: dict[Any, Any] = {}
PASSING = {sqlite3.SQLITE_BUSY}  # says nothing about the disk: the next write may well succeed


class Database:
    """A file that the writer has opened; opaque to those who use it."""

    __slots__ = ("connection", "path", "trails")

    def __init__(self, path: Path, connection: sqlite3.Connection, *, trails: bool) -> None:
        self.path = path
        self.connection = connection
        self.trails = trails

    def __repr__(self) -> str:
        return f"<Database {self.path}{' trails' if self.trails else ''}>"


class _Failed:
    """The outcome of a function that raised."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Gathered(Generic[V]):
    """One run for all values that came. With `each`, a value has an outcome of its own, and fails alone."""

    __slots__ = ("each", "fn", "values")

    def __init__(self, fn: Gatherer[V, Any], *, each: bool) -> None:
        self.fn = fn
        self.values: list[V] = []
        self.each = each

    def __call__(self, connection: sqlite3.Connection) -> Any:
        return self.fn(self.values, connection)

    def __repr__(self) -> str:
        return f"<{self.fn!r} of {len(self.values)}>"


class _Group:
    """Functions that go to the thread together."""

    __slots__ = ("done", "gathered", "items", "outcomes", "since", "urgent")

    def __init__(self) -> None:
        self.items: list[tuple[Database, Function[Any], bool]] = []  # the last says: in a transaction
        # What may still grow, by database and function.
        self.gathered: dict[Database, dict[Gatherer[Any, Any], tuple[_Gathered[Any], Ticket[Any]]]] = {}
        self.outcomes: Sequence[Any] | None = None  # None once done: the flusher was interrupted
        self.done = Event()
        self.since = time.monotonic()
        self.urgent = False  # somebody waits for it already, or it is full


class Ticket(Generic[T]):
    """What `enqueue` gives: the promise of one function's outcome."""

    __slots__ = ("_group", "_index", "_place")

    def __init__(self, group: _Group, index: int, place: int | None = None) -> None:
        self._group = group
        self._index = index
        self._place = place  # among the values that were gathered

    @property
    def done(self) -> bool:
        """Whether the outcome is there: committed, or failed for good."""
        return bool(self._group.done.is_set())

    def wait(self) -> T:
        """The function's value, after its commit; raises what it raised, or StoreError."""
        if not self.done:  # a callback of `then` may ask as well: on the hub, where nothing may wait
            self._group.done.wait()
        if self._group.outcomes is None:
            raise RuntimeError("The write was interrupted: whether it was committed is not known.")
        outcome = self._group.outcomes[self._index]
        if self._place is not None and not isinstance(outcome, _Failed):
            outcome = outcome[self._place]
        if isinstance(outcome, _Failed):
            raise outcome.error
        return outcome  # type: ignore[no-any-return]

    def then(self, callback: Callable[[Ticket[T]], object]) -> None:
        """Call `callback(ticket)` on the hub once done; it must not block."""
        self._group.done.rawlink(lambda _: callback(self))


class Writer:
    """The thread and the queue in front of it. One a process, used from the native thread that made it."""

    def __init__(self, *, linger_s: float = LINGER_S, group_limit: int = GROUP_LIMIT) -> None:
        self._linger_s = linger_s
        self._group_limit = group_limit
        self._pool = ThreadPool(1, idle_task_timeout=-1)  # one thread for life: connections belong to a thread
        self._groups: deque[_Group] = deque()
        self._hurry = Event()  # ends the lingering
        self._flusher: gevent.Greenlet | None = None
        self._databases: list[Database] = []
        self._broken: list[StoreError] = []  # filled by the thread at the first failure of the disk
        self._closed = False

    def __repr__(self) -> str:
        waiting = sum(len(group.items) for group in self._groups)
        state = "closed" if self._closed else "broken" if self._broken else "open"
        return f"<Writer {state} {waiting} waiting, {len(self._databases)} databases>"

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lag_s(self) -> float:
        """Seconds that the oldest function has waited for its commit; 0 when none waits."""
        return time.monotonic() - self._groups[0].since if self._groups else 0.0

    @property
    def problem(self) -> str:
        """Why nothing is stored any more; empty while all is well."""
        return str(self._broken[0]) if self._broken else ""

    def open(
        self,
        path: Path,
        schema: str,
        *,
        kind: str = JOURNAL,
        version: int | None = 1,
        upgrades: Sequence[str] = (),
        trails: bool = False,
        create: bool = True,
    ) -> Database:
        """Open a database, made with `schema` (mode 0600, WAL) where there is none and `create` allows it.

        `kind` and `version` are written into the file and must be the same later; `version` None takes any. `upgrades`
        are schemas too, each of which led to the next version up to this one: a new file gets all of them, an older one
        those that it lacks.
        `trails`: see rule 3. Raises StoreError, without changing a file that is not ours.
        """
        self._refuse_when_closed()
        opened = self._pool.apply(_open, (path, schema, kind, version, create, upgrades))
        if isinstance(opened, StoreError):
            raise opened
        database = Database(path, opened, trails=trails)
        self._databases.append(database)
        return database

    def enqueue(self, db: Database, fn: Function[T]) -> Ticket[T]:
        """Run `fn(connection)` in the next group's transaction. Never blocks; the ticket tells the outcome."""
        return self._add(db, fn, transaction=True, urgent=False)

    def gather(self, db: Database, fn: Gatherer[V, T], value: V) -> Ticket[T]:
        """Run `fn(values, connection)` in the next group's transaction, once for all values that come for it.

        All: until something else is enqueued for `db`; see rule 3. They share one outcome and are given one ticket.
        """
        return self._gather(db, fn, value, each=False)[1]

    def gather_each(self, db: Database, fn: Gatherer[V, Sequence[T]], value: V) -> Ticket[T]:
        """The same, with a ticket a value: `fn` gives their outcomes in their order."""
        gathered, ticket = self._gather(db, fn, value, each=True)
        return Ticket(ticket._group, ticket._index, len(gathered.values) - 1)

    def call(self, fn: Function[T], db: Database) -> T:
        """Run `fn(connection)` in a transaction, at once, and wait for its commit."""
        return self._add(db, fn, transaction=True, urgent=True).wait()

    def read(self, db: Database, fn: Function[T]) -> T:
        """Run `fn(connection)` without a transaction and wait; it sees what was enqueued for `db` before it.

        Cursors can't leave the thread: `fn` fetches what it returns.
        """
        return self._add(db, fn, transaction=False, urgent=True).wait()

    def close_database(self, db: Database) -> None:
        """Commit what waits and close one database; it can then be moved. A second call does nothing."""
        if db not in self._databases:
            return
        self.read(db, lambda _: None)  # everything enqueued before has run
        self._databases.remove(db)
        self._pool.apply(_close, ([db.connection],))

    def close(self) -> None:
        """Commit what waits, close every database and end the thread. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        while self._groups or self._flusher:
            self._hurry.set()
            self._start_flusher().join()
        self._pool.apply(_close, ([database.connection for database in self._databases],))
        self._pool.kill()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise RuntimeError("The writer is closed: nothing can be stored any more.")

    def _gather(self, db: Database, fn: Gatherer[V, Any], value: V, *, each: bool) -> tuple[_Gathered[V], Ticket[Any]]:
        known = self._groups[-1].gathered.get(db, _NOTHING).get(fn) if self._groups else None
        if known is None or len(known[0].values) >= self._group_limit:
            gathered = _Gathered(fn, each=each)
            known = gathered, self._add(db, gathered, transaction=True, urgent=False)
            self._groups[-1].gathered.setdefault(db, {})[fn] = known
        known[0].values.append(value)
        return known

    def _add(self, db: Database, fn: Function[T], *, transaction: bool, urgent: bool) -> Ticket[T]:
        self._refuse_when_closed()
        if self._broken and transaction:
            raise again(self._broken[0])
        if not self._groups or len(self._groups[-1].items) >= self._group_limit:
            self._groups.append(_Group())
        group = self._groups[-1]
        group.items.append((db, fn, transaction))
        if not isinstance(fn, _Gathered):
            group.gathered.pop(db, None)
        if urgent or len(group.items) >= self._group_limit:
            group.urgent = True
            self._hurry.set()
        self._start_flusher()
        return Ticket(group, len(group.items) - 1)

    def _start_flusher(self) -> gevent.Greenlet:
        if self._flusher is None:
            self._flusher = gevent.spawn(self._flush)
        return self._flusher

    def _flush(self) -> None:
        """Send group after group to the thread until none is left. While one commits, the next one gathers."""
        try:
            while self._groups:
                if not self._groups[0].urgent:
                    self._hurry.wait(self._linger_s)
                self._hurry.clear()
                group = self._groups.popleft()
                try:
                    group.outcomes = self._pool.apply(_run, (group.items, self._broken))
                finally:  # a KeyboardInterrupt may strike here; nobody must wait for ever
                    group.items = []
                    group.gathered = {}  # whose tickets hold the group: a circle would keep all that was written
                    group.done.set()
        finally:
            self._flusher = None
            if self._groups:
                self._start_flusher()


# ---- from here on: the native thread (rule 1)


def _open(
    path: Path, schema: str, kind: str, version: int | None, create: bool, upgrades: Sequence[str]
) -> sqlite3.Connection | StoreError:
    try:
        return open_database(path, schema, kind, version, create, upgrades)
    except StoreError as error:
        return error  # raised on the hub: what a pool's thread raises, gevent prints as a traceback


def _run(items: Sequence[tuple[Database, Function[Any], bool]], broken: list[StoreError]) -> list[Any]:
    """Outcomes of a group's functions: values, or _Failed."""
    outcomes: list[Any] = [None] * len(items)
    order = sorted(range(len(items)), key=lambda index: items[index][0].trails)  # stable: else as enqueued
    for (db, transaction), run in groupby(order, key=lambda index: (items[index][0], items[index][2])):
        if not transaction:
            for index in run:
                outcomes[index] = _attempt(db, items[index][1])
            continue
        indices = list(run)
        error = broken[0] if broken else _write(db, indices, items, outcomes)
        if isinstance(error, StoreError) and not broken and error.code not in PASSING:
            broken.append(error)
        if error is not None:
            for index in indices:
                outcomes[index] = _Failed(again(error))
    return outcomes


def _write(
    db: Database, indices: Sequence[int], items: Sequence[tuple[Database, Function[Any], bool]], outcomes: list[Any]
) -> Exception | None:
    """One transaction; gives the error that ended it as a whole, None when it was committed."""
    functions = [(index, items[index][1]) for index in indices]
    try:
        error = _all(db, functions, outcomes)
        if error is None and any(isinstance(outcomes[index], _Failed) for index in indices):
            error = _each(db, functions, outcomes)
        if error is None:
            db.connection.execute("COMMIT")
    except sqlite3.Error as failure:
        error = store_error(db.path, failure)
    if error is not None:
        _roll_back(db.connection)
    return error


def _all(db: Database, functions: Sequence[tuple[int, Function[Any]]], outcomes: list[Any]) -> Exception | None:
    """Run them in a transaction that is left open; where one fails nothing is left of any."""
    db.connection.execute("BEGIN IMMEDIATE")
    for index, fn in functions:
        outcomes[index] = outcome = _attempt(db, fn)
        if isinstance(outcome, _Failed):
            if isinstance(outcome.error, StoreError):
                return outcome.error
            _roll_back(db.connection)
            return None
        if not db.connection.in_transaction:
            return _ended(fn)
    return None


def _each(db: Database, functions: Sequence[tuple[int, Function[Any]]], outcomes: list[Any]) -> Exception | None:
    """Run them in a transaction that is left open, and roll back what failed."""
    db.connection.execute("BEGIN IMMEDIATE")
    for index, fn in functions:
        if not (isinstance(fn, _Gathered) and fn.each):
            outcomes[index], error = _alone(db, fn)
            if error is not None:
                return error
            continue
        outcomes[index] = told = []
        for value in fn.values:
            outcome, error = _alone(db, partial(fn.fn, [value]))
            if error is not None:
                return error
            told.append(outcome if isinstance(outcome, _Failed) else outcome[0])
    return None


def _alone(db: Database, fn: Function[Any]) -> tuple[Any, Exception | None]:
    """A function's outcome, in a savepoint of its own; and the error that ends the transaction as a whole."""
    connection = db.connection
    connection.execute("SAVEPOINT one")
    outcome = _attempt(db, fn)
    error = outcome.error if isinstance(outcome, _Failed) else None
    if isinstance(error, StoreError):
        return outcome, error
    if not connection.in_transaction:
        return outcome, error or _ended(fn)
    if error is not None:
        connection.execute("ROLLBACK TO one")
    connection.execute("RELEASE one")
    return outcome, None


def _ended(fn: Function[Any]) -> RuntimeError:
    return RuntimeError(f"{fn!r} ended the transaction that it shares with others.")


def _attempt(db: Database, fn: Function[Any]) -> Any:
    try:
        return fn(db.connection)
    except sqlite3.Error as error:
        return _Failed(store_error(db.path, error) if code_of(error) in REMEDIES else error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the greenlet that waits
        return _Failed(error)


def _roll_back(connection: sqlite3.Connection) -> None:
    """SQLite may have rolled back by itself; on a dead disk even this can fail, and changes nothing then."""
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _close(connections: Sequence[sqlite3.Connection]) -> None:
    for connection in connections:
        with suppress(sqlite3.Error):  # every commit is on disk; the log is taken up at the next start
            connection.close()
