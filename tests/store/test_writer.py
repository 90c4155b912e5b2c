"""The writer: one thread, group commits, nothing acknowledged that a crash could take back."""

from __future__ import annotations

import ast
import gc
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest

from engine.store import writer as writer_module
from engine.store.database import StoreError, open_read_only
from engine.store.writer import Database, Writer

SCHEMA = "CREATE TABLE rows (n INTEGER PRIMARY KEY, word TEXT NOT NULL DEFAULT '');"
KIND = "test file"


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer() as writer:
        yield writer


@pytest.fixture
def db(writer: Writer, tmp_path: Path) -> Database:
    return writer.open(tmp_path / "one.db", SCHEMA, kind=KIND)


def put(n: int) -> Callable[[sqlite3.Connection], int]:
    """A function that inserts n and gives it back."""

    def do(conn: sqlite3.Connection) -> int:
        conn.execute("INSERT INTO rows (n) VALUES (?)", (n,))
        return n

    return do


def numbers(writer: Writer, db: Database) -> list[int]:
    return writer.read(db, lambda conn: [row[0] for row in conn.execute("SELECT n FROM rows ORDER BY n")])


def trace(writer: Writer, *dbs: Database) -> list[str]:
    """The statements that the thread runs from now on, BEGIN, COMMIT and INSERT only, with the file's name."""
    seen: list[str] = []

    def tracer(name: str) -> Callable[[str], None]:
        def saw(statement: str) -> None:
            if statement.startswith(("BEGIN", "COMMIT", "INSERT")):
                seen.append(f"{name} {statement.split(maxsplit=1)[0]}")

        return saw

    for db in dbs:
        writer.read(db, lambda conn, name=db.path.stem: conn.set_trace_callback(tracer(name)))  # type: ignore[misc]
    return seen


def test_a_call_gives_the_value_and_commits(writer: Writer, db: Database) -> None:
    """What `call` returned for is in the file, seen by another connection."""
    assert writer.call(put(1), db) == 1
    with open_read_only(db.path, KIND) as other:
        assert other.execute("SELECT n FROM rows").fetchall() == [(1,)]


def test_an_exception_comes_back_and_rolls_back(writer: Writer, db: Database) -> None:
    """A function that raises leaves nothing behind, and its own exception reaches the caller."""

    def fail(conn: sqlite3.Connection) -> None:
        put(1)(conn)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        writer.call(fail, db)
    assert numbers(writer, db) == []


def test_functions_that_meet_share_one_commit(writer: Writer, db: Database) -> None:
    """Twenty functions enqueued together are one transaction, in their order, each with its own value."""
    seen = trace(writer, db)
    tickets = [writer.enqueue(db, put(n)) for n in range(20)]
    assert not tickets[0].done
    assert [ticket.wait() for ticket in tickets] == list(range(20))
    assert seen == ["one BEGIN", *["one INSERT"] * 20, "one COMMIT"]


def test_a_group_has_a_limit(tmp_path: Path) -> None:
    """No transaction holds more functions than the limit."""
    with Writer(group_limit=4) as writer:
        db = writer.open(tmp_path / "one.db", SCHEMA, kind=KIND)
        seen = trace(writer, db)
        tickets = [writer.enqueue(db, put(n)) for n in range(10)]
        assert [ticket.wait() for ticket in tickets] == list(range(10))
        assert seen.count("one COMMIT") == 3


def test_one_failure_takes_nobody_with_it(writer: Writer, db: Database) -> None:
    """In a group, the function that fails is rolled back alone and its ticket alone raises."""
    tickets = [writer.enqueue(db, put(n)) for n in (1, 2, 2, 3)]
    outcomes = []
    for ticket in tickets:
        try:
            outcomes.append(ticket.wait())
        except sqlite3.IntegrityError:
            outcomes.append("failed")
    assert outcomes == [1, 2, "failed", 3]
    assert numbers(writer, db) == [1, 2, 3]


def test_a_group_runs_again_only_when_something_failed(writer: Writer, db: Database) -> None:
    """Savepoints are for groups in which a function failed; the others do without."""
    seen = trace(writer, db)
    for ticket in [writer.enqueue(db, put(n)) for n in (1, 2)]:
        ticket.wait()
    assert not any("SAVEPOINT" in line for line in seen)
    runs: list[int] = []
    tickets = [writer.enqueue(db, lambda conn, n=n: (runs.append(n), put(n)(conn))) for n in (3, 4, 4)]  # type: ignore[misc]
    with pytest.raises(sqlite3.IntegrityError):
        tickets[2].wait()
    assert runs == [3, 4, 4, 3, 4, 4]
    assert numbers(writer, db) == [1, 2, 3, 4]


def test_what_is_gathered_runs_once(writer: Writer, db: Database, tmp_path: Path) -> None:
    """Values for one function share its run and its ticket, until something else comes for their file."""
    two = writer.open(tmp_path / "two.db", SCHEMA, kind=KIND)
    runs: list[list[int]] = []

    def take(values: Sequence[int], conn: sqlite3.Connection) -> int:
        runs.append(list(values))
        return sum(put(n)(conn) for n in values)

    first = writer.gather(db, take, 1)
    writer.enqueue(two, put(1))
    other = writer.gather(db, lambda values, _: values[0], 7)
    assert writer.gather(db, take, 2) is first
    between = writer.enqueue(db, lambda conn: conn.execute("SELECT count(*) FROM rows").fetchone()[0])
    last = writer.gather(db, take, 3)
    assert last is not first
    assert (first.wait(), other.wait(), between.wait(), last.wait()) == (3, 7, 2, 3)
    assert runs == [[1, 2], [3]]
    assert writer.gather(db, take, 4).wait() == 4  # another group
    assert runs[-1] == [4]


def test_of_what_is_gathered_with_outcomes_one_may_fail_alone(writer: Writer, db: Database) -> None:
    """Each value has its own outcome of the one run; what fails leaves nothing, and its ticket alone raises."""
    runs: list[list[int]] = []

    def double(values: Sequence[int], conn: sqlite3.Connection) -> list[int]:
        runs.append(list(values))
        return [2 * put(n)(conn) for n in values]

    tickets = [writer.gather_each(db, double, n) for n in (1, 2, 3)]
    assert [ticket.wait() for ticket in tickets] == [2, 4, 6]
    tickets = [writer.gather_each(db, double, n) for n in (4, 4, 5)]
    assert (tickets[0].wait(), tickets[2].wait()) == (8, 10)
    with pytest.raises(sqlite3.IntegrityError):
        tickets[1].wait()
    assert runs == [[1, 2, 3], [4, 4, 5], [4], [4], [5]]
    assert numbers(writer, db) == [1, 2, 3, 4, 5]


def test_what_was_written_is_let_go_at_once(writer: Writer, db: Database) -> None:
    """No circle of tickets and groups keeps values until the garbage collector comes, which is seldom."""

    class Value:
        pass

    def take(values: Sequence[Value], conn: sqlite3.Connection) -> int:
        return len(values)

    values = [Value(), Value()]
    watched = [weakref.ref(value) for value in values]
    gc.disable()
    try:
        tickets = [writer.gather(db, take, value) for value in values]
        assert tickets[-1].wait() == 2
        values.clear()
        del tickets
        gevent.sleep(0)  # the flusher ends
        assert [found() for found in watched] == [None, None]
    finally:
        gc.enable()


def test_a_function_that_commits_is_told_off(writer: Writer, db: Database) -> None:
    """A function must not end the transaction that others share: nobody in it is told that all went well."""
    first = writer.enqueue(db, put(1))
    second = writer.enqueue(db, lambda conn: conn.commit())
    for ticket in (first, second):
        with pytest.raises(RuntimeError, match="ended the transaction"):
            ticket.wait()
    assert writer.call(put(2), db) == 2


def test_order_across_databases_is_kept(writer: Writer, db: Database, tmp_path: Path) -> None:
    """Functions for two files are committed in the order in which they were enqueued."""
    two = writer.open(tmp_path / "two.db", SCHEMA, kind=KIND)
    seen = trace(writer, db, two)
    tickets = [writer.enqueue(which, put(n)) for n, which in enumerate((db, two, two, db))]
    assert [ticket.wait() for ticket in tickets] == [0, 1, 2, 3]
    assert [line for line in seen if "COMMIT" in line] == ["one COMMIT", "two COMMIT", "one COMMIT"]


def test_what_trails_is_written_last_and_once(writer: Writer, db: Database, tmp_path: Path) -> None:
    """A trailing file costs one commit a group, after the others: it is never ahead of them."""
    state = writer.open(tmp_path / "state.db", SCHEMA, kind=KIND, trails=True)
    seen = trace(writer, db, state)
    tickets = [writer.enqueue(which, put(n)) for n, which in enumerate((state, db) * 5)]
    assert [ticket.wait() for ticket in tickets] == list(range(10))
    assert [line for line in seen if "COMMIT" in line] == ["one COMMIT", "state COMMIT"]


def test_a_read_sees_what_was_enqueued_before_it(writer: Writer, db: Database) -> None:
    """Reads wait for earlier writes of their file."""
    writer.enqueue(db, put(7))
    assert numbers(writer, db) == [7]


def test_a_callback_runs_on_the_hub_after_the_commit(writer: Writer, db: Database) -> None:
    """`then` is called in the thread of the hub, with a ticket that is done."""
    told: list[tuple[int, int, bool]] = []
    ticket = writer.enqueue(db, put(1))
    ticket.then(lambda done: told.append((threading.get_ident(), done.wait(), done.done)))
    ticket.wait()
    gevent.sleep(0)
    assert told == [(threading.get_ident(), 1, True)]


def test_the_hub_runs_while_the_thread_works(writer: Writer, db: Database) -> None:
    """A function that blocks its thread blocks no greenlet."""
    gate = threading.Event()
    ticket = writer.enqueue(db, lambda _: gate.wait(10))
    gevent.spawn(gate.set).join()
    assert ticket.wait() is True


def test_lag_is_the_age_of_the_oldest_function(writer: Writer, db: Database) -> None:
    """Nothing waits: no lag. Something waits: more than none."""
    assert writer.lag_s == 0.0
    ticket = writer.enqueue(db, put(1))
    assert writer.lag_s > 0.0
    assert "1 waiting" in repr(writer)
    ticket.wait()
    assert writer.lag_s == 0.0


def test_closing_commits_what_waits(tmp_path: Path) -> None:
    """`close` loses nothing that was enqueued, and what comes later is refused."""
    writer = Writer()
    db = writer.open(tmp_path / "one.db", SCHEMA, kind=KIND)
    ticket = writer.enqueue(db, put(1))
    writer.close()
    writer.close()
    assert ticket.wait() == 1
    with pytest.raises(RuntimeError, match="closed"):
        writer.enqueue(db, put(2))
    with open_read_only(db.path, KIND) as other:
        assert other.execute("SELECT n FROM rows").fetchall() == [(1,)]


def test_an_interrupt_leaves_nobody_waiting(writer: Writer, db: Database) -> None:
    """The greenlet that sends groups is struck down: the group on its way is told so, those that wait are sent."""
    begun, gate = threading.Event(), threading.Event()

    def blocks(_: sqlite3.Connection) -> bool:
        begun.set()
        return gate.wait(10)

    struck = writer.enqueue(db, blocks)
    while not begun.is_set():
        gevent.sleep(0)
    waiting = writer.enqueue(db, put(1))
    writer._start_flusher().kill()
    with pytest.raises(RuntimeError, match="interrupted"):
        struck.wait()
    gate.set()
    assert waiting.wait() == 1
    assert numbers(writer, db) == [1]


def test_a_closed_database_can_be_moved(writer: Writer, db: Database) -> None:
    """`close_database` commits what waits and leaves no log beside the file."""
    writer.enqueue(db, put(1))
    writer.close_database(db)
    writer.close_database(db)
    assert [path.name for path in db.path.parent.iterdir()] == ["one.db"]


def test_a_full_disk_is_final_and_says_so(writer: Writer, db: Database) -> None:
    """What was acknowledged stays, the group that met the full disk fails whole, and every later write at once."""
    writer.call(put(1), db)
    writer.read(db, lambda conn: conn.execute("PRAGMA max_page_count=1").fetchall())  # SQLite's own full disk
    small = writer.enqueue(db, put(2))
    large = writer.enqueue(db, lambda conn: conn.execute("INSERT INTO rows VALUES (3, ?)", ("x" * 100_000,)).rowcount)
    for ticket in (small, large):
        with pytest.raises(StoreError, match=r"one\.db: database or disk is full: free some space"):
            ticket.wait()
    with pytest.raises(StoreError, match="disk is full"):
        writer.enqueue(db, put(4))
    assert "broken" in repr(writer)
    assert numbers(writer, db) == [1]


def test_nothing_is_written_after_a_failure_in_any_file(writer: Writer, db: Database, tmp_path: Path) -> None:
    """When the journal's write fails, the state's write behind it in the same group does not happen."""
    state = writer.open(tmp_path / "state.db", SCHEMA, kind=KIND, trails=True)
    writer.read(db, lambda conn: conn.execute("PRAGMA max_page_count=1").fetchall())
    tickets = [
        writer.enqueue(db, lambda conn: conn.execute("INSERT INTO rows VALUES (1, ?)", ("x" * 100_000,)).rowcount),
        writer.enqueue(state, put(1)),
    ]
    for ticket in tickets:
        with pytest.raises(StoreError):
            ticket.wait()
    assert numbers(writer, state) == []


def test_a_lock_that_stays_is_an_error_that_passes(writer: Writer, db: Database) -> None:
    """Another process that holds the file too long fails this write and not the next one."""
    writer.read(db, lambda conn: conn.execute("PRAGMA busy_timeout=20").fetchall())
    other = sqlite3.connect(db.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        writer.call(put(1), db)
    other.execute("ROLLBACK")
    other.close()
    assert writer.call(put(1), db) == 1


def test_files_are_private(writer: Writer, tmp_path: Path) -> None:
    """Mode 0600 for the file, its log and its index; a file that was open to others is closed to them."""
    old = os.umask(0)
    try:
        db = writer.open(tmp_path / "one.db", SCHEMA, kind=KIND)
        writer.call(put(1), db)
    finally:
        os.umask(old)
    files = list(tmp_path.iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert len(files) == 3
    writer.close_database(db)
    db.path.chmod(0o644)
    writer.open(db.path, SCHEMA, kind=KIND)
    assert stat.S_IMODE(db.path.stat().st_mode) == 0o600


def test_writes_are_durable_when_they_are_acknowledged(writer: Writer, db: Database) -> None:
    """WAL with synchronous=FULL (2): COMMIT returns after the fsync."""
    modes = writer.read(
        db, lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    )
    assert modes == ["wal", 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("a,b\n1,2\n" * 100), "not a database: name another file"),
        (lambda path: _foreign(path), "is a SQLite file, but no test file of this engine"),
        (lambda path: path.mkdir(), "unable to open"),
    ],
)
def test_a_file_that_is_not_ours_is_left_alone(
    writer: Writer, tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    """What is no database of this kind is refused in one sentence, and not one byte or bit of its mode changes."""
    path = tmp_path / "theirs"
    make(path)
    before = path.read_bytes() if path.is_file() else b"", path.stat().st_mode
    with pytest.raises(StoreError, match=message):
        writer.open(path, SCHEMA, kind=KIND)
    assert (path.read_bytes() if path.is_file() else b"", path.stat().st_mode) == before


def _foreign(path: Path) -> None:
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE bookmarks (x)")
    conn.close()


def test_another_version_and_a_missing_file_are_refused(writer: Writer, db: Database, tmp_path: Path) -> None:
    """A format that this engine does not write, a folder that is not there, a file that must exist and does not."""
    writer.close_database(db)
    with pytest.raises(StoreError, match="format 1, and this engine writes 2"):
        writer.open(db.path, SCHEMA, kind=KIND, version=2)
    with pytest.raises(StoreError, match="No such file or directory: make its folder"):
        writer.open(tmp_path / "nowhere" / "x.db", SCHEMA, kind=KIND)
    with pytest.raises(StoreError, match="no such file"):
        writer.open(tmp_path / "x.db", SCHEMA, kind=KIND, create=False)


def test_the_thread_knows_no_gevent_and_no_log() -> None:
    """Functions that run on the native thread name nothing of gevent, logging or metrics (rule 1)."""
    forbidden = {"gevent", "Event", "ThreadPool", "logging", "structlog", "metrics", "Lock", "sleep", "print"}
    folder = Path(writer_module.__file__).parent
    for source in sorted(folder.glob("*.py")):
        tree = ast.parse(source.read_text())
        if source.name == "writer.py":
            parts: list[ast.AST] = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
            assert {"_run", "_write", "_attempt", "_open", "_close"} <= {part.name for part in parts}  # type: ignore[attr-defined]
        else:
            parts = [tree]
        for node in (node for part in parts for node in ast.walk(part)):
            names = {getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "module", "") or ""}
            names |= {alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)}
            assert not {name.split(".")[0] for name in names} & forbidden, f"{source.name}:{node.lineno}"  # type: ignore[attr-defined]


WRITES_FOREVER = """
import sys, gevent
from pathlib import Path
from engine.store.writer import Writer
writer = Writer()
db = writer.open(Path(sys.argv[1]), "CREATE TABLE rows (n INTEGER PRIMARY KEY);", kind="test file")
start = writer.read(db, lambda c: c.execute("SELECT coalesce(max(n), 0) FROM rows").fetchone()[0])
out = open(1, "wb", buffering=0, closefd=False)
def put(n):
    ticket = writer.enqueue(db, lambda c: c.execute("INSERT INTO rows VALUES (?)", (n,)).rowcount)
    ticket.wait()
    out.write(b"%d\\n" % n)
n = start
while True:
    jobs = [gevent.spawn(put, n + i) for i in range(1, 8)]
    n += 7
    gevent.joinall(jobs, raise_error=True)
"""


def test_kill_9_loses_no_acknowledged_write(tmp_path: Path) -> None:
    """Killed at any moment among group commits, the file holds every row that was acknowledged."""
    path = tmp_path / "one.db"
    acknowledged: set[int] = set()
    for least in (1, 90, 301):
        child = subprocess.Popen([sys.executable, "-c", WRITES_FOREVER, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(least):
            acknowledged.add(int(child.stdout.readline()))
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().decode()
        acknowledged |= {int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")}
        child.stdout.close()
        child.wait()
    with Writer() as writer:
        stored = set(numbers(writer, writer.open(path, SCHEMA, kind=KIND)))
    assert acknowledged <= stored


OPENS = """
import sys
from pathlib import Path
from engine.store.writer import Writer
sys.stdin.readline()
with Writer() as writer:
    db = writer.open(Path(sys.argv[1]), "CREATE TABLE rows (n INTEGER PRIMARY KEY);", kind="test file")
    writer.call(lambda c: c.execute("INSERT INTO rows DEFAULT VALUES").rowcount, db)
"""


def test_processes_that_start_together_share_a_new_file(tmp_path: Path) -> None:
    """Who opens a file that another process makes at the same moment waits for it, and both write."""
    path = tmp_path / "one.db"
    children = [
        subprocess.Popen([sys.executable, "-c", OPENS, str(path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    assert [child.communicate()[1] for child in children] == [b""] * 4
    with open_read_only(path, KIND) as conn:
        assert conn.execute("SELECT count(*) FROM rows").fetchone() == (4,)


PATCHED = """
from gevent import monkey
monkey.patch_all()
import sys, threading, gevent
from pathlib import Path
from engine.store.writer import StoreError, Writer
with Writer() as writer:
    try:
        writer.open(Path(sys.argv[1]) / "nowhere" / "x.db", "")
    except StoreError:
        pass
    db = writer.open(Path(sys.argv[1]) / "one.db", "CREATE TABLE rows (n INTEGER PRIMARY KEY);")
    thread = writer.read(db, lambda c: monkey.get_original("_thread", "get_ident")())
    assert thread != monkey.get_original("_thread", "get_ident")()
    insert = "INSERT INTO rows VALUES (?)"
    jobs = [gevent.spawn(writer.call, lambda c, n=n: c.execute(insert, (n,)).rowcount, db) for n in range(99)]
    gevent.joinall(jobs, raise_error=True)
    print(writer.read(db, lambda c: c.execute("SELECT count(*) FROM rows").fetchone()[0]))
"""


def test_it_works_in_a_patched_process_and_prints_nothing(tmp_path: Path) -> None:
    """As the engine runs: patched, warnings as errors; an error that was caught leaves no traceback on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PATCHED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("99\n", "")
