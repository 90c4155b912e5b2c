"""What is still to be handed to the spool of pushes: a table of the identity state.

1. A record is put here in the same commit as what it tells of: no crash comes between an event and its push.
2. Records leave in the order in which they came, and `seq` only grows: a receiver that has seen one has seen all
   before it, but for those that were dropped.
3. These functions run on the writer's thread, or on a read-only connection of a command line (`Writer`, rule 1).
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

KEEP_S = 90 * 86_400.0  # where nothing is pushed, as long as closed events are kept
_ORIGIN = "push origin"

SCHEMA = """
CREATE TABLE engine_server_push_outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, at REAL NOT NULL, body TEXT NOT NULL
);
"""


def put(conn: sqlite3.Connection, kind: str, at: float, body: Mapping[str, Any]) -> None:
    """Add a record."""
    conn.execute(
        "INSERT INTO engine_server_push_outbox (kind, at, body) VALUES (?, ?, ?)", (kind, at, json.dumps(dict(body)))
    )


def oldest(conn: sqlite3.Connection, count: int) -> list[tuple[int, dict[str, Any]]]:
    """The records that wait longest, as they are pushed, with their numbers."""
    rows = conn.execute(
        "SELECT seq, kind, body FROM engine_server_push_outbox ORDER BY seq LIMIT ?", (count,)
    ).fetchall()
    origin = origin_of(conn) if rows else ""
    return [
        (seq, {"id": f"{origin}-{seq}", "seq": seq, "kind": kind, **json.loads(body)}) for seq, kind, body in rows
    ]  # fmt: skip


def remove(conn: sqlite3.Connection, numbers: Sequence[int]) -> None:
    """These are in the spool now."""
    conn.executemany("DELETE FROM engine_server_push_outbox WHERE seq = ?", [(seq,) for seq in numbers])


def drop(conn: sqlite3.Connection, kind: str) -> int:
    """Forget all records of a kind; says how many."""
    return conn.execute("DELETE FROM engine_server_push_outbox WHERE kind = ?", (kind,)).rowcount


def count(conn: sqlite3.Connection) -> int:
    """How many records wait here."""
    return int(conn.execute("SELECT count(*) FROM engine_server_push_outbox").fetchone()[0])


def origin_of(conn: sqlite3.Connection) -> str:
    """What names this state to a receiver, once and for all; made at the first use."""
    conn.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (_ORIGIN, secrets.token_hex(8)))
    return str(conn.execute("SELECT value FROM meta WHERE key = ?", (_ORIGIN,)).fetchone()[0])


def prune(conn: sqlite3.Connection, now: float) -> int:
    """Forget what nobody came for; says how many records that were."""
    return conn.execute("DELETE FROM engine_server_push_outbox WHERE at < ?", (now - KEEP_S,)).rowcount


def has_table(conn: sqlite3.Connection) -> bool:
    """Whether the file has it; for command lines that read a state that no newer engine has opened."""
    query = "SELECT 1 FROM sqlite_master WHERE name = 'engine_server_push_outbox'"
    return conn.execute(query).fetchone() is not None
