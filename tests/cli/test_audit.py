"""`engine audit`: exit 0 whole, 1 faults, 2 wrong use; and what is erased is gone from the disk."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.cli.audit import audit as command
from engine.store import audit
from engine.store.audit import AuditRow
from engine.store.state import State, read_head
from engine.store.writer import Database, Writer

NOW = 1_790_000_000.0  # 2026-09-21T14:13:20Z
DOMAIN = "bücher.lab"
WHO = ["--by", "A. Owner", "--why", "T-9"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's state, where the command looks for it; not made yet."""
    path = tmp_path / "state" / "state.db"
    monkeypatch.setenv("ENGINE_STATE", str(path))
    return path


@pytest.fixture
def journal(tmp_path: Path, state: Path) -> Path:
    """The journal of a job that has ended, with six replies."""
    path = tmp_path / "out.csv.journal"
    with Writer() as writer:
        fill(writer, writer.open(path, audit.SCHEMA))
    return path


def fill(writer: Writer, db: Database) -> audit.Head:
    rows = [
        AuditRow(at=NOW + n, kind="rcpt", code=550, address=f"ann{n}@xn--bcher-kva.lab", text=f"no ann{n} here")
        for n in range(1, 7)
    ]

    def do(conn: sqlite3.Connection) -> audit.Head:
        audit.begin(conn, "job-1")
        return audit.append(conn, rows)

    return writer.call(do, db)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def tamper(path: Path, statement: str) -> None:
    conn = sqlite3.connect(path)
    conn.execute(statement)
    conn.commit()
    conn.close()


@pytest.fixture
def running(tmp_path: Path, state: Path) -> Iterator[tuple[Writer, Database]]:
    """A job that runs: its writer holds the journal open."""
    with Writer() as writer:
        db = writer.open(tmp_path / "out.csv.journal", audit.SCHEMA)
        fill(writer, db)
        yield writer, db


def test_a_whole_chain_is_exit_0(journal: Path) -> None:
    """It says how many rows there are, and whether a state vouched for them."""
    result = run("verify", journal)
    assert result.exit_code == 0
    assert result.output == f"{journal}: 6 rows, 0 with erased values: whole; no identity state knows this job.\n"


def test_a_fault_is_exit_1_and_is_named(journal: Path) -> None:
    """Every fault has its row and its kind."""
    tamper(journal, "UPDATE attempts SET code = 250 WHERE seq = 2")
    tamper(journal, "DELETE FROM attempts WHERE seq IN (4, 5)")
    result = run("verify", journal)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "row 2: changed: its hash is not that of its content",
        "rows 4 to 5: removed: missing in the sequence",
        f"{journal}: 4 rows, 0 with erased values: NOT WHOLE, 2 faults.",
    ]


@pytest.mark.parametrize("named", [False, True])
def test_the_state_vouches_for_what_was_cut(journal: Path, state: Path, *, named: bool) -> None:
    """A journal that was cut, its own head included, is found by the state's head, named or this machine's."""
    conn = sqlite3.connect(journal)
    head = audit.head(conn)
    conn.close()
    with Writer() as writer:
        State(writer, state).put_head("job-1", head.seq, head.hash)
    arguments = ("--state", state) if named else ()
    assert "the identity state knows row 6" in run("verify", journal, *arguments).output
    tamper(journal, "DELETE FROM attempts WHERE seq > 3")
    tamper(journal, "UPDATE attempts_head SET seq = 3, hash = (SELECT hash FROM attempts WHERE seq = 3)")
    result = run("verify", journal, *arguments)
    assert result.exit_code == 1
    assert "rows 4 to 6: cut: missing at the end, and the identity state knew of it" in result.output


def test_a_running_job_is_not_disturbed(running: tuple[Writer, Database]) -> None:
    """Verify and export read a journal in use, what is only in its log included, and leave its files as they are."""
    _, db = running
    before = {path.name for path in db.path.parent.iterdir()}
    assert run("verify", db.path).exit_code == 0
    assert len(run("export", db.path).stdout.splitlines()) == 6
    assert {path.name for path in db.path.parent.iterdir()} == before


def test_a_job_that_goes_on_meanwhile_is_no_cut(
    running: tuple[Writer, Database], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job commits rows and their head while verify looks: the head is never ahead of what is verified."""
    writer, db = running
    kept = State(writer, state)

    def goes_on(conn: sqlite3.Connection, job: str) -> audit.Head | None:
        head = writer.call(lambda conn: audit.append(conn, [AuditRow(at=NOW, kind="rcpt")]), db)
        kept.put_head(job, head.seq, head.hash).wait()
        return read_head(conn, job)

    monkeypatch.setattr("engine.cli.audit.read_head", goes_on)
    result = run("verify", db.path)
    assert (result.exit_code, "knows row 7" in result.output) == (0, True)


def test_old_pages_that_a_reader_holds_are_said(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the log can't be emptied, exit 1 says that old values are still in it; the chain is whole."""
    monkeypatch.setattr("engine.store.database.BUSY_S", 0.01)
    reader = sqlite3.connect(journal, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM attempts").fetchall()
    result = run("erase", journal, "--all", *WHO)
    reader.close()
    assert result.exit_code == 1
    assert "old pages stay in" in result.stderr
    assert run("verify", journal).exit_code == 0


def test_export_is_json_a_line(journal: Path, tmp_path: Path) -> None:
    """To stdout, or to a new private file; an existing one is never overwritten."""
    rows = [json.loads(line) for line in run("export", journal).stdout.splitlines()]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["address"] == "ann1@xn--bcher-kva.lab"
    output = tmp_path / "audit.jsonl"
    assert run("export", journal, "-o", output).exit_code == 0
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    again = run("export", journal, "-o", output)
    assert again.exit_code == 2
    assert "exists: name a file that does not" in again.stderr


@pytest.mark.parametrize("written", ["ann2@xn--bcher-kva.lab", "ANN2@XN--BCHER-KVA.LAB", f"ann2@{DOMAIN}"])
def test_an_erased_address_is_gone_from_the_disk(journal: Path, written: str) -> None:
    """Not a byte of it is left in the file or its log, the chain is whole, and the erasure is a row of it."""
    result = run("erase", journal, "--address", written, *WHO)
    assert (result.exit_code, result.output) == (0, f"{journal}: erased values in 1 rows.\n")
    for path in journal.parent.glob("out.csv.journal*"):
        assert b"ann2" not in path.read_bytes()
        assert b"ann3" in path.read_bytes() or path != journal
    assert run("verify", journal).output.startswith(f"{journal}: 7 rows, 1 with erased values: whole")
    last = json.loads(run("export", journal).stdout.splitlines()[-1])
    assert last["kind"] == "erasure"
    assert json.loads(last["note"]) == {"by": "A. Owner", "why": "T-9", "selected": "address", "rows": 1}


def test_times_and_all_select(journal: Path) -> None:
    """--before takes a day or a time, UTC without a zone; --all takes the rest; a row is counted once."""
    assert "in 0 rows" in run("erase", journal, "--before", "2026-09-21", *WHO).output
    assert "in 2 rows" in run("erase", journal, "--before", "2026-09-21T16:13:23+02:00", *WHO).output
    assert "in 1 rows" in run("erase", journal, "--before", "2026-09-21T14:13:24", *WHO).output
    assert "in 3 rows" in run("erase", journal, "--all", *WHO).output
    assert run("verify", journal).exit_code == 0


def test_erasing_in_a_running_job_leaves_one_chain(running: tuple[Writer, Database]) -> None:
    """The job goes on behind the row of the erasure."""
    writer, db = running
    assert "in 6 rows" in run("erase", db.path, "--all", *WHO).output
    assert writer.call(lambda conn: audit.append(conn, [AuditRow(at=NOW, kind="rcpt")]), db).seq == 8
    assert run("verify", db.path).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["erase", "{}", *WHO], "Name one of --address, --before, --job and --all"),
        (["erase", "{}", "--all", "--address", "a@b.lab", *WHO], "Name one of"),
        (["erase", "{}", "--address", "", *WHO], "Name one of"),
        (["erase", "{}", "--job", "another-job"], "not of another-job"),
        (
            ["erase", "{}", "--address", "a@b.lab", "--by", "x", "--why", "asked by A@b.lab"],
            "must not name the address",
        ),
        (["erase", "{}", "--before", "yesterday", *WHO], "'yesterday' is no time"),
        (["export", "{}", "-o", "/nowhere/x"], "No such file or directory"),
        (["verify", "/nowhere/x"], "does not exist"),
        (["verify", "{}", "--state", "{}"], "no identity state of this engine"),
        (["verify", "{state}"], "no job journal of this engine"),
        (["erase", "{state}", "--all", *WHO], "no job journal of this engine"),
        (["verify", "{text}"], "not a database"),
    ],
)
def test_wrong_use_is_exit_2_and_one_sentence(journal: Path, state: Path, arguments: list[str], message: str) -> None:
    """What is missing, or is no journal, is said; nothing in the journal changes."""
    with Writer() as writer:
        State(writer, state)
    text = journal.with_name("list.csv")
    text.write_text("address\n" * 200)
    before = journal.read_bytes()
    result = run(*(part.format(journal, state=state, text=text) for part in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert journal.read_bytes() == before
