"""The journal: what replies that come together cost it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from engine.store.audit import AuditRow
from engine.store.job_tables import SETTLED, NewRow, Outcome, Routed
from engine.store.journal import Journal
from engine.store.writer import Writer


def test_replies_that_come_together_cost_few_statements(tmp_path: Path) -> None:
    """Twenty addresses answered at once: an update and an audit row each, and what all of them share."""
    seen: list[str] = []

    def trace(conn: sqlite3.Connection) -> None:
        conn.set_trace_callback(lambda statement: seen.append(statement.lstrip("- ").split(maxsplit=1)[0]))

    with Writer() as writer:
        journal = Journal(tmp_path / "job.journal", writer)
        journal.begin("20260101-cafe0001")
        journal.add_rows([NewRow(n, "[]", "", f"user{n}@site.lab", f"user{n}", "site.lab") for n in range(1, 21)])
        journal.route([Routed(1, "mx.site.lab", "192.0.2.1", "mx.site.lab", "default")])
        writer.read(journal._db, trace)
        tickets = [
            journal.record(
                [Outcome(n, SETTLED, {"reason": "rcpt_ok", "code": 250})],
                [AuditRow(1.79e9, "rcpt", "rcpt", 250, reason="rcpt_ok", address=f"user{n}@site.lab", address_id=n)],
            )
            for n in range(1, 21)
        ]
        head = tickets[-1].wait()
    assert head is not None
    assert head.seq == 20
    assert [seen.count(word) for word in ("BEGIN", "SAVEPOINT", "SELECT", "UPDATE", "INSERT", "COMMIT")] == [
        1, 0, 1, 21, 20, 1,
    ]  # fmt: skip


def test_sites_are_read_at_once_each_with_its_share(tmp_path: Path) -> None:
    """A load is one look for what waits at all its sites: the first of each by id, and the rest page by page."""
    seen: list[str] = []
    with Writer() as writer:
        journal = Journal(tmp_path / "job.journal", writer)
        listed = [f"u{n}@{'ab'[n % 2]}.lab" for n in range(8)] + ["u@c.lab"]
        journal.add_rows([NewRow(n, "[]", "", each, *each.split("@")) for n, each in enumerate(listed, 1)])
        ids = {name: number for number, name in journal.unrouted(0, 9)}
        journal.route([Routed(ids[name], f"mx.{name}", "192.0.2.1", f"mx.{name}", "default") for name in sorted(ids)])
        journal.record([Outcome(1, SETTLED, {"reason": "rcpt_ok", "code": 250})], []).wait()
        writer.read(journal._db, lambda conn: conn.set_trace_callback(seen.append))
        loads = journal.load("192.0.2.1", 0, 2, 2)
        assert sum("a.local" in statement for statement in seen) == 1
        assert [(load.site.key, [one.id for one in load.pending]) for load in loads] == [
            ("mx.a.lab", [3, 5]), ("mx.b.lab", [2, 4]),
        ]  # fmt: skip
        assert [one.id for one in journal.waiting(loads[0].site.id, 5, 2)] == [7]
        assert [load.pending[0].domain for load in journal.load("192.0.2.1", loads[-1].site.id, 2, 2)] == ["c.lab"]
