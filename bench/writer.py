"""Cost of a stored row in batches of 500: the writer and the audit against bare sqlite3, in one run, on one disk.

    python -m bench writer [--rounds 40] [--folder DIR]

Every way writes the same rows into files of the same settings (WAL, a commit a batch); the rounds of all ways take
turns, and the medians of a batch are compared. `cpu` counts all threads; `wall` has the disk's fsync in it.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure.report import Report, options
from engine.store import audit
from engine.store.audit import AuditRow
from engine.store.writer import Writer

BATCH = 500
SCHEMA = "CREATE TABLE rows (n INTEGER PRIMARY KEY, at REAL, code INTEGER, address TEXT, text TEXT);"
INSERT = "INSERT INTO rows (at, code, address, text) VALUES (?, ?, ?, ?)"
ROWS = [(1.79e9 + n, 550, f"user{n}@example.lab", "5.1.1 unknown user in virtual mailbox table") for n in range(BATCH)]
AUDIT = [
    AuditRow(
        at,
        "rcpt",
        "rcpt",
        code,
        "5.1.1",
        "mailbox_not_found",
        "192.0.2.1",
        "TICKET-7",
        "mx.example.lab",
        "198.51.100.7",
        address,
        text,
        n,
    )
    for n, (at, code, address, text) in enumerate(ROWS)
]
AUDIT_CELLS = [
    (None, row.at, row.kind, row.stage, row.code, row.enhanced, row.reason, row.identity, row.consent, row.mx_host,
     row.mx_ip, row.note, row.address_id, os.urandom(32), os.urandom(32), os.urandom(32), os.urandom(32),
     os.urandom(16), row.address, os.urandom(16), row.text)
    for row in AUDIT
]  # fmt: skip


def bare(path: Path, schema: str, insert: str, rows: list[tuple[object, ...]], synchronous: str) -> Callable[[], None]:
    """A way: executemany on a connection of this thread."""
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute(f"PRAGMA synchronous={synchronous}")
    conn.executescript(schema)

    def batch() -> None:
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(insert, rows)
        conn.execute("COMMIT")

    return batch


def ways(folder: Path, writer: Writer) -> dict[str, tuple[str, Callable[[], object]]]:
    """Name -> (the way it is compared with, what writes one batch)."""
    called = writer.open(folder / "called.db", SCHEMA)
    enqueued = writer.open(folder / "enqueued.db", SCHEMA)
    audited = writer.open(folder / "audited.db", audit.SCHEMA)
    writer.call(lambda conn: audit.begin(conn, "bench"), audited)

    def one_by_one() -> None:
        tickets = [writer.enqueue(enqueued, lambda conn, row=row: conn.execute(INSERT, row)) for row in ROWS]
        for ticket in tickets:
            ticket.wait()

    plain, table = "bare executemany", "bare executemany, audit table"
    return {
        plain: (plain, bare(folder / "bare.db", SCHEMA, INSERT, ROWS, "FULL")),
        "bare executemany, no fsync": (plain, bare(folder / "normal.db", SCHEMA, INSERT, ROWS, "NORMAL")),
        "writer, a function a batch": (plain, lambda: writer.call(lambda conn: conn.executemany(INSERT, ROWS), called)),
        "writer, a function a row": (plain, one_by_one),
        table: (table, bare(folder / "table.db", audit.SCHEMA, audit._INSERT, AUDIT_CELLS, "FULL")),
        "writer, audit.append": (table, lambda: writer.call(lambda conn: audit.append(conn, AUDIT), audited)),
    }


def main(arguments: list[str]) -> int:
    """Microseconds a row for each way, and how many times the bare one it is."""
    parser = options("writer", __doc__)
    parser.add_argument("--rounds", type=int, help="40, or 10 with --short")
    parser.add_argument("--folder", help="where the files are made; default: the system's place for temporary files")
    chosen = parser.parse_args(arguments)
    report = Report("writer")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name, Writer() as writer:
        found = ways(Path(name), writer)
        spent: dict[str, list[tuple[float, float]]] = {way: [] for way in found}
        for _ in range(chosen.rounds or (10 if chosen.short else 40)):
            for way, (_, batch) in found.items():
                wall, cpu = time.perf_counter(), time.process_time()
                batch()
                spent[way].append((time.perf_counter() - wall, time.process_time() - cpu))
        median = {
            way: [statistics.median(column) / BATCH * 1e6 for column in zip(*took, strict=True)]
            for way, took in spent.items()
        }
        for way, (other, _) in found.items():
            (wall, cpu), (bare_wall, bare_cpu) = median[way], median[other]
            report.figure("wall us a row", wall, per=way)
            report.figure("of bare, x", wall / bare_wall, per=way)
            report.figure("CPU us a row", cpu, per=way)
            report.figure("CPU of bare, x", cpu / bare_cpu, per=way)
    report.note(f"medians, in batches of {BATCH} rows")
    return report.finish(chosen)
