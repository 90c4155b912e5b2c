"""What probes said of block lists, over restarts: a table of the identity state.

Without it a list that fails right after a start would have no last good probe, and all that it ever said would be in
doubt; and a failure that people know of would be told anew.
"""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, dataclass

SCHEMA = """
CREATE TABLE engine_server_list_health (
    rbl TEXT PRIMARY KEY, usable INTEGER NOT NULL, suspended INTEGER NOT NULL, finding TEXT NOT NULL,
    detail TEXT NOT NULL, in_a_row INTEGER NOT NULL, last_good REAL, failed_since REAL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """How a list stood. `failed_since` is the last good probe before the failure that people were told of."""

    name: str
    usable: bool
    suspended: bool
    finding: str  # of the newest probe
    detail: str
    in_a_row: int
    last_good: float | None
    failed_since: float | None = None


def put(conn: sqlite3.Connection, one: Kept) -> None:
    """Keep how a list stands."""
    conn.execute("REPLACE INTO engine_server_list_health VALUES (?, ?, ?, ?, ?, ?, ?, ?)", astuple(one))


def read(conn: sqlite3.Connection) -> list[Kept]:
    """How every list stood that was ever probed."""
    rows = conn.execute(
        """SELECT rbl, usable, suspended, finding, detail, in_a_row, last_good, failed_since
           FROM engine_server_list_health ORDER BY rbl"""
    )
    return [Kept(row[0], bool(row[1]), bool(row[2]), *row[3:]) for row in rows]
