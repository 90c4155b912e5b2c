"""Laws of the reputation tables: they come into older files, they stay small, and a crash takes nothing back."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from engine.core.listing import Check, Listing, Severity, Status
from engine.core.listing_event import ListingEvent, Step
from engine.core.notice import Kind, Message, Notice
from engine.store import database, reputation, state
from engine.store.database import StoreError
from engine.store.reputation import KEEP_S, KEEP_TOLD_S, LEASE_S
from engine.store.state import State
from engine.store.writer import Writer

NOW = 1_790_000_000.0
SBL = Listing("sbl", "127.0.0.2", Severity.CRITICAL, "manual listing")


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer() as writer:
        yield writer


@pytest.fixture
def kept(writer: Writer, tmp_path: Path) -> State:
    return State(writer, tmp_path / "state" / "state.db")


def clean(at: float, *, name: str = "zen", target: str = "203.0.113.7") -> Check:
    return Check(target, name, Status.CLEAN, at)


def an_event(number: int = 0, **fields: object) -> ListingEvent:
    event = ListingEvent(
        "203.0.113.7", "zen", "sbl", Severity.CRITICAL, NOW, NOW + 300, Severity.CRITICAL, NOW, id=number,
        confirmed_at=NOW + 300, opened_at=NOW + 300, code="127.0.0.2", meaning="bad", text=("see https://x",),
        expected_expiry=NOW + 9000,
    )  # fmt: skip
    return replace(event, **fields)  # type: ignore[arg-type]


def put(kept: State, event: ListingEvent) -> int:
    (number,) = kept.enqueue(lambda conn: reputation.save(conn, Step((event,)))).wait().values()
    return number


def message(number: str = "m1") -> Message:
    return Message(number, NOW, Severity.HIGH, "HIGH: x", (("What", "y"),), "https://x", "event:1:0")


def test_an_older_file_gains_the_tables_and_loses_nothing(tmp_path: Path) -> None:
    """A state of the version before is brought up where it stands; what it knew is still there."""
    path = tmp_path / "state.db"
    database.open_database(path, state.SCHEMA, state.KIND, 1, create=True).close()
    with Writer() as writer:
        with closing(sqlite3.connect(path)) as old:
            old.execute("INSERT INTO learned VALUES ('mx', 'connections', 2, 0)")
            old.commit()
        brought_up = State(writer, path)
        assert brought_up.learned(["mx"]) == {"mx": {"connections": 2.0}}
        assert brought_up.read(reputation.newest_answers) == []
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (1 + len(state.UPGRADES),)
    with Writer() as writer:
        assert State(writer, path).learned(["mx"]) == {"mx": {"connections": 2.0}}  # and once more


def test_a_new_file_is_what_an_older_one_becomes(tmp_path: Path) -> None:
    """Both ways lead to the same tables and indexes."""
    database.open_database(tmp_path / "old.db", state.SCHEMA, state.KIND, 1, create=True).close()
    with Writer() as writer:
        State(writer, tmp_path / "old.db")
        State(writer, tmp_path / "new.db")
    found = []
    for name in ("old.db", "new.db"):
        with closing(sqlite3.connect(tmp_path / name)) as conn:
            found.append(conn.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall())
    assert found[0] == found[1]


@pytest.mark.parametrize("version", [0, 2 + len(state.UPGRADES)])
def test_a_version_that_is_not_ours_is_left_alone(tmp_path: Path, version: int) -> None:
    """Neither a newer file nor one from before the first version is touched."""
    path = tmp_path / "state.db"
    database.open_database(path, state.SCHEMA, state.KIND, version, create=True).close()
    before = path.read_bytes()
    with Writer() as writer, pytest.raises(StoreError, match=f"format {version}"):
        State(writer, path)
    assert path.read_bytes() == before


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path) -> None:
    """All at once or not at all: the file can still be opened by the engine that wrote it."""
    path = tmp_path / "state.db"
    database.open_database(path, state.SCHEMA, state.KIND, 1, create=True).close()
    with pytest.raises(StoreError):
        database.open_database(path, state.SCHEMA, state.KIND, 2, False, ("CREATE TABLE a (b); CREATE TABLE a (b);",))
    database.open_database(path, state.SCHEMA, state.KIND, 1, create=False).close()


def test_equal_answers_are_one_row(kept: State) -> None:
    """A day of clean answers is one stretch with its age; another answer begins a new one."""
    for number in range(96):
        kept.enqueue(lambda conn, at=NOW + number * 900: reputation.put_check(conn, clean(at))).wait()
    (answers,) = kept.read(reputation.newest_answers)
    assert (answers.since, answers.checked_at, answers.times) == (NOW, NOW + 95 * 900, 96)
    refused = replace(clean(NOW + 96 * 900), status=Status.REFUSED, detail="127.255.255.254")
    kept.enqueue(lambda conn: reputation.put_check(conn, refused)).wait()
    (answers,) = kept.read(reputation.newest_answers)
    assert (answers.status, answers.since, answers.times) == (Status.REFUSED, refused.at, 1)
    rows = kept.read(lambda conn: conn.execute("SELECT count(*) FROM engine_server_reputation_checks").fetchone())
    assert rows == (2,)


def test_what_a_failed_list_said_is_marked(kept: State) -> None:
    """Its answers since the last good probe are unreliable; those of other lists are not."""
    for name in ("zen", "psbl"):
        kept.enqueue(lambda conn, name=name: reputation.put_check(conn, clean(NOW, name=name))).wait()
    assert kept.enqueue(lambda conn: reputation.mark_unreliable(conn, "zen", NOW - 60)).wait() == 1
    assert {each.list: each.reliable for each in kept.read(reputation.newest_answers)} == {"psbl": True, "zen": False}


def test_an_event_is_read_as_it_was_written(kept: State) -> None:
    """Every field, and the number it got."""
    number = put(kept, an_event())
    assert kept.read(lambda conn: reputation.event(conn, number)) == an_event(number)
    assert kept.read(lambda conn: reputation.events(conn)) == [an_event(number)]


def test_old_rows_go_and_open_ones_stay(kept: State) -> None:
    """An event that is open is never forgotten, nor is what was told of it within its time."""
    still = put(kept, an_event())
    put(kept, an_event(sublist="css", closed_at=NOW + 600))
    put(kept, an_event(sublist="xbl", confirmed_at=None))
    notice = Notice("k", Kind.OPENED, NOW, Severity.HIGH, facts={"a": 1, "b": None})
    kept.enqueue(lambda conn: reputation.put_check(conn, clean(NOW))).wait()
    kept.enqueue(lambda conn: reputation.put_notices(conn, [notice])).wait()
    kept.enqueue(lambda conn: reputation.put_message(conn, message(), ["email"], NOW)).wait()
    assert kept.enqueue(lambda conn: reputation.prune(conn, NOW + KEEP_S)).wait() == 0
    assert kept.enqueue(lambda conn: reputation.prune(conn, NOW + KEEP_S + 601)).wait() == 4
    assert [event.id for event in kept.read(lambda conn: reputation.events(conn))] == [still]
    assert kept.read(reputation.waiting_notices) == [notice]
    assert kept.enqueue(lambda conn: reputation.prune(conn, NOW + KEEP_TOLD_S + 1)).wait() == 1


def test_a_notice_is_kept_once(kept: State) -> None:
    """The key says which fact it is; the same fact again is dropped, also after it was told."""
    notice = Notice("k", Kind.OPENED, NOW, Severity.HIGH)
    put_it = lambda conn: reputation.put_notices(conn, [notice])  # noqa: E731
    assert kept.enqueue(put_it).wait() == 1
    assert kept.enqueue(put_it).wait() == 0
    kept.enqueue(lambda conn: reputation.settle(conn, ["k"], NOW, "m1")).wait()
    assert kept.enqueue(put_it).wait() == 0
    assert kept.read(reputation.waiting_notices) == []


def test_a_parcel_is_one_persons_at_a_time(kept: State) -> None:
    """Two processes never deliver the same message at once; what died with it is taken again after its lease."""
    kept.enqueue(lambda conn: reputation.put_message(conn, message(), ["email", "slack"], NOW)).wait()
    take = lambda at: kept.enqueue(lambda conn: reputation.take_parcel(conn, "email", at)).wait()  # noqa: E731
    first = take(NOW)
    assert (first.message, first.attempts) == (message(), 1)
    assert take(NOW + LEASE_S - 1) is None
    assert take(NOW + LEASE_S).attempts == 2
    kept.enqueue(lambda conn: reputation.parcel_sent(conn, first, NOW + LEASE_S)).wait()
    assert take(NOW + 10 * LEASE_S) is None
    assert kept.read(reputation.parcels_waiting) == {"slack": (1, NOW)}


KILLED = """
import os, sys
from pathlib import Path
from engine.core.listing import Check, Listing, Severity, Status
from engine.reputation.delist import Method, Procedure
from engine.reputation.record import Events
from engine.store.state import State
from engine.store.writer import Writer

sbl = Listing("sbl", "127.0.0.2", Severity.CRITICAL, "manual listing")
events = Events(State(Writer(), Path(sys.argv[1])), lambda name: Procedure(name, Method.FORM))
for number in range(100_000):
    at = 1_790_000_000.0 + number * 300
    target = f"203.0.113.{number // 2 % 250}"
    for change in events.observe(Check(target, "zen", Status.LISTED, at, (sbl,))).transitions:
        print(change.event.id, flush=True)
"""


def test_kill_9_loses_no_event_and_no_notice(tmp_path: Path) -> None:
    """What was reported is there, and every event that is open has its one request and its one notice."""
    path = tmp_path / "state.db"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().splitlines()]
    process.stdout.close()
    process.wait()
    with Writer() as writer:
        kept = State(writer, path)
        opened = {event.id for event in kept.read(lambda conn: reputation.events(conn))}
        assert set(told) <= opened
        assert sorted(each.event for each, _ in kept.read(lambda conn: reputation.requests(conn))) == sorted(opened)
        assert sorted(int(each.facts["event"] or 0) for each in kept.read(reputation.waiting_notices)) == sorted(opened)
