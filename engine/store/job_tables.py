"""The tables of a job's journal, its values, and the functions that work on them on the store's thread.

1. An address moves NEW -> WAITING -> PROVISIONAL -> SETTLED, or to ENDED, which a resume takes up again.
   A settled verdict never changes: no update of a verdict touches a SETTLED row.
2. An audit row and the address state that it proves are one transaction.
3. The functions here touch the connection and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from engine.core.result import MAX_TEXT
from engine.store import audit

VERSION = 2  # of these tables; 2 has sites by identity
NEW, WAITING, PROVISIONAL, SETTLED, ENDED = range(5)

ROLE, DISPOSABLE, FREE, TAGGED = 1, 2, 4, 8  # bits of `flags`

SCHEMA = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE rows (
    n INTEGER PRIMARY KEY, cells TEXT NOT NULL, text TEXT NOT NULL, address_id INTEGER NOT NULL
);
CREATE TABLE domains (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, site_id INTEGER, routed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE sites (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, identity TEXT NOT NULL, lane TEXT NOT NULL, policy TEXT NOT NULL,
    hosts TEXT NOT NULL, UNIQUE (key, identity)
);
CREATE TABLE addresses (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, local TEXT NOT NULL, domain_id INTEGER, site_id INTEGER,
    state INTEGER NOT NULL, next_at REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
    greylist_steps INTEGER NOT NULL DEFAULT 0, tempfail_steps INTEGER NOT NULL DEFAULT 0,
    reconnects INTEGER NOT NULL DEFAULT 0, first_at REAL,
    flags INTEGER NOT NULL DEFAULT 0, suggestion TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', stage TEXT NOT NULL DEFAULT 'none',
    probed INTEGER NOT NULL DEFAULT 0, provider TEXT NOT NULL DEFAULT '', policy TEXT NOT NULL DEFAULT '',
    mx_host TEXT NOT NULL DEFAULT '', mx_ip TEXT NOT NULL DEFAULT '', source_ip TEXT NOT NULL DEFAULT '',
    code INTEGER, enhanced TEXT NOT NULL DEFAULT '', text TEXT NOT NULL DEFAULT '',
    catch_all TEXT NOT NULL DEFAULT 'not_checked', checked_at TEXT NOT NULL DEFAULT '', duration_ms INTEGER,
    told INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX rows_by_address ON rows (address_id);
CREATE INDEX addresses_untold ON addresses (id) WHERE state >= 3 AND told = 0;
CREATE INDEX addresses_by_domain ON addresses (domain_id, state);
CREATE INDEX addresses_by_site ON addresses (site_id, state);
"""
) + audit.SCHEMA

TALLY = (  # of state SETTLED; in memory, where a group of writes costs no file of its own
    "PRAGMA temp_store=MEMORY",
    "CREATE TEMP TABLE tally (provider TEXT, reason TEXT)",
    """CREATE TEMP TRIGGER settled AFTER UPDATE OF state ON main.addresses WHEN NEW.state = 3 AND OLD.state < 3
        BEGIN INSERT INTO tally VALUES (NEW.provider, NEW.reason); END""",
    """CREATE TEMP TRIGGER settled_at_once AFTER INSERT ON main.addresses WHEN NEW.state = 3
        BEGIN INSERT INTO tally VALUES (NEW.provider, NEW.reason); END""",
)


class NewRow(NamedTuple):
    """One input row on its way in. `key` is what duplicates share; a row with a `reason` is settled at once."""

    n: int
    cells: str
    text: str
    key: str
    local: str = ""
    domain: str = ""
    flags: int = 0
    suggestion: str = ""
    reason: str = ""
    detail: str = ""
    stage: str = "syntax"


class Routed(NamedTuple):
    """What SG2 and SG3 found for a domain: a site to ask, or the reason that ends its addresses."""

    domain_id: int
    site_key: str = ""
    identity: str = ""  # who asks there, by its public address
    lane: str = ""
    policy: str = ""
    hosts: str = "[]"
    reason: str = ""
    detail: str = ""
    stage: str = "hosts"
    mx_host: str = ""
    catch_all: str = "not_checked"
    checked_at: str = ""


class Pending(NamedTuple):
    """An address that waits, as a run takes it into memory."""

    id: int
    local: str
    domain: str
    domain_id: int
    site_id: int
    next_at: float
    attempts: int
    greylist_steps: int
    tempfail_steps: int
    reconnects: int
    first_at: float | None
    reason: str


class Site(NamedTuple):
    """A site as the journal knows it; `hosts` is the JSON that its survey wrote."""

    id: int
    key: str
    identity: str
    lane: str
    policy: str
    hosts: str


class Load(NamedTuple):
    """A site with its work: what waits, domains whose accepted addresses lack a control, and its unbacked refusals.

    `unconfirmed` holds (domain id, name), `unbacked` (domain id, name, reply code, text, local part), oldest first.
    """

    site: Site
    pending: list[Pending]
    unconfirmed: list[tuple[int, str]]
    unbacked: list[tuple[int, str, int, str, str]]
    distrusted: bool = False  # its unbacked refusals were found to prove nothing


@dataclass(slots=True)
class Outcome:
    """What an attempt brought for one address: the columns to set, and the audit row that proves it."""

    address_id: int
    state: int
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A domain's control question is answered: the verdict of its accepted addresses."""

    domain_id: int
    reason: str
    catch_all: str


Entry = tuple[Sequence[Outcome | Accepted], Sequence[audit.AuditRow]]  # what is written down together


def narrowed(
    *,
    site_id: int | None = None,
    domain_id: int | None = None,
    lane: str | None = None,
    identity: str | None = None,
) -> tuple[str, tuple[Any, ...]]:
    """What narrows an update to a site, a domain, a lane of an identity, or all of an identity."""
    if site_id is not None:
        return " AND site_id = ?", (site_id,)
    if domain_id is not None:
        return " AND domain_id = ?", (domain_id,)
    named = {name: value for name, value in (("lane", lane), ("identity", identity)) if value is not None}
    if not named:
        return "", ()
    chosen = " AND ".join(f"{name} = ?" for name in named)
    return f" AND site_id IN (SELECT id FROM sites WHERE {chosen})", tuple(named.values())  # noqa: S608 - our own words


def do_add_rows(rows: Sequence[NewRow], conn: sqlite3.Connection) -> None:
    domains = {row.domain for row in rows if row.domain}
    conn.executemany("INSERT OR IGNORE INTO domains (name) VALUES (?)", [(name,) for name in domains])
    conn.executemany(
        """INSERT OR IGNORE INTO addresses (key, local, domain_id, state, flags, suggestion, reason, detail, stage)
           VALUES (?, ?, (SELECT id FROM domains WHERE name = ?), ?, ?, ?, ?, ?, ?)""",
        [
            (
                row.key,
                row.local,
                row.domain,
                SETTLED if row.reason else NEW,
                row.flags,
                row.suggestion,
                row.reason,
                row.detail,
                row.stage if row.reason else "none",
            )
            for row in rows
        ],
    )
    conn.executemany(
        "INSERT OR IGNORE INTO rows VALUES (?, ?, ?, (SELECT id FROM addresses WHERE key = ?))",
        [(row.n, row.cells, row.text, row.key) for row in rows],
    )


def do_route(found: Sequence[Routed], limit: int, conn: sqlite3.Connection) -> int:
    """Route domains, at most `limit` addresses of them; says how many of `found` are done.

    SQLite keeps a copy of each page that a savepoint changes, and the addresses of a domain lie all over the table.
    """
    for place, one in enumerate(found):
        site_id = None
        if one.site_key:
            made = conn.execute(
                "INSERT OR IGNORE INTO sites (key, identity, lane, policy, hosts) VALUES (?, ?, ?, ?, ?)",
                (one.site_key, one.identity, one.lane, one.policy, one.hosts),
            )
            site_id = made.lastrowid if made.rowcount else _site_id(one.site_key, one.identity, conn)
        values: tuple[Any, ...] = (site_id, one.policy, one.policy)
        ends = ""
        if one.reason:
            ends = ", reason = ?, detail = ?, stage = ?, mx_host = ?, catch_all = ?, checked_at = ?"
            values += (one.reason, one.detail, one.stage, one.mx_host, one.catch_all, one.checked_at)
        moved = conn.execute(
            f"""UPDATE addresses SET state = {SETTLED if one.reason else WAITING}, site_id = ?, provider = ?, policy = ?
                       {ends}
                WHERE id IN (SELECT id FROM addresses WHERE domain_id = ? AND state = {NEW} LIMIT ?)""",  # noqa: S608
            (*values, one.domain_id, limit),
        ).rowcount
        limit -= moved
        if limit <= 0:
            return place  # it may have more
        conn.execute("UPDATE domains SET routed = 1, site_id = ? WHERE id = ?", (site_id, one.domain_id))
    return len(found)


def _site_id(key: str, identity: str, conn: sqlite3.Connection) -> int:
    found = conn.execute("SELECT id FROM sites WHERE key = ? AND identity = ?", (key, identity)).fetchone()
    return int(found[0])


_PENDING = """SELECT a.id, a.local, d.name, a.domain_id, a.site_id, a.next_at, a.attempts, a.greylist_steps,
                     a.tempfail_steps, a.reconnects, a.first_at, a.reason"""
_WAITING = f"""{_PENDING} FROM addresses a JOIN domains d ON d.id = a.domain_id
               WHERE a.site_id = ? AND a.state = 1 AND a.id > ? ORDER BY a.id LIMIT ?"""
_FIRST = f"""{_PENDING} FROM json_each(?) s CROSS JOIN addresses a CROSS JOIN domains d ON d.id = a.domain_id
             WHERE a.id IN (SELECT id FROM addresses WHERE site_id = s.value AND state = 1 ORDER BY id LIMIT ?)"""  # noqa: S608 - our own names
_OPEN_SITES = """SELECT id, key, identity, lane, policy, hosts FROM sites s WHERE id > ? AND identity = ? AND EXISTS
                 (SELECT 1 FROM addresses a WHERE a.site_id = s.id AND a.state IN (1, 2)) ORDER BY id LIMIT ?"""
_OF_SITES = "SELECT DISTINCT site_id FROM addresses WHERE site_id IN (SELECT value FROM json_each(?)) AND state ="
_IN_DOUBT = f"{_OF_SITES} {PROVISIONAL}"
_DISTRUSTED = f"{_OF_SITES} {SETTLED} AND reason = 'refusals_suspect'"
_SETTLE_ACCEPTED = f"""UPDATE addresses SET state = {SETTLED}, reason = ?, catch_all = ?
                       WHERE domain_id = ? AND state = {PROVISIONAL} AND reason = 'rcpt_ok'"""  # noqa: S608 - our own numbers
_PROVISIONAL = """SELECT d.id, d.name, a.reason, a.code, a.text, a.local
                  FROM addresses a JOIN domains d ON d.id = a.domain_id
                  WHERE a.site_id = ? AND a.state = 2 ORDER BY a.checked_at, a.id"""


def do_waiting(site_id: int, after: int, limit: int, conn: sqlite3.Connection) -> list[Pending]:
    return [Pending(*row) for row in conn.execute(_WAITING, (site_id, after, limit))]


def do_untouched(identity: str, refusals: Sequence[str], conn: sqlite3.Connection) -> list[Site]:
    query = """SELECT id, key, identity, lane, policy, hosts FROM sites s WHERE identity = ? AND EXISTS
                   (SELECT 1 FROM addresses a WHERE a.site_id = s.id AND a.state = 1 AND a.attempts = 0)
               AND NOT EXISTS (SELECT 1 FROM addresses a WHERE a.site_id = s.id
                   AND a.reason IN (SELECT value FROM json_each(?))) ORDER BY id"""
    return [Site(*row) for row in conn.execute(query, (identity, json.dumps(list(refusals))))]


def do_hand_over(moves: Sequence[tuple[Site, str]], conn: sqlite3.Connection) -> int:
    moved = 0
    for site, identity in moves:
        done = conn.execute(
            "INSERT OR IGNORE INTO sites (key, identity, lane, policy, hosts) VALUES (?, ?, ?, ?, ?)",
            (site.key, identity, site.lane, site.policy, site.hosts),
        )
        if done.rowcount:  # else it has them from before, and is at work there
            moved += conn.execute(
                f"UPDATE addresses SET site_id = ? WHERE site_id = ? AND state = {WAITING} AND attempts = 0",  # noqa: S608
                (done.lastrowid, site.id),
            ).rowcount
    return moved


def do_load(identity: str, after: int, limit: int, share: int, conn: sqlite3.Connection) -> list[Load]:
    sites = [Site(*row) for row in conn.execute(_OPEN_SITES, (after, identity, limit))]
    named = (json.dumps([site.id for site in sites]),)
    in_doubt, distrusted = ({row[0] for row in conn.execute(query, named)} for query in (_IN_DOUBT, _DISTRUSTED))
    pending: dict[int, list[Pending]] = {site.id: [] for site in sites}
    for one in map(Pending._make, conn.execute(_FIRST, (*named, share))):  # one look; SQLite vows no order of an IN
        pending[one.site_id].append(one)
    loads = []
    for site in sites:
        unconfirmed: dict[int, str] = {}
        unbacked = []
        for domain_id, name, reason, code, text, local in (
            conn.execute(_PROVISIONAL, (site.id,)) if site.id in in_doubt else ()
        ):
            if reason == "rcpt_ok":
                unconfirmed[domain_id] = name
            else:
                unbacked.append((domain_id, name, code, text, local))
        loads.append(Load(site, sorted(pending[site.id]), list(unconfirmed.items()), unbacked, site.id in distrusted))
    return loads


def do_record(entries: Sequence[Entry], conn: sqlite3.Connection) -> audit.Head | None:
    """What attempts brought, in the order in which it came; the head of the audit where rows were added."""
    rows: list[audit.AuditRow] = []
    for outcomes, told in entries:
        for outcome in outcomes:
            if isinstance(outcome, Accepted):
                conn.execute(_SETTLE_ACCEPTED, (outcome.reason, outcome.catch_all, outcome.domain_id))
                continue
            columns = outcome.columns
            if "text" in columns:
                columns["text"] = columns["text"][:MAX_TEXT]
            conn.execute(_update(tuple(columns)), (outcome.state, *columns.values(), outcome.address_id))
        rows += told
    return audit.append(conn, rows) if rows else None


@cache
def _update(columns: tuple[str, ...]) -> str:
    assignments = "".join(f", {name} = ?" for name in columns)
    return f"UPDATE addresses SET state = ?{assignments} WHERE id = ? AND state != {SETTLED}"  # noqa: S608 - our own names


def do_take_settled(conn: sqlite3.Connection) -> list[tuple[str, str, int]]:
    taken = conn.execute("SELECT provider, reason, COUNT(*) FROM tally GROUP BY 1, 2").fetchall()
    conn.execute("DELETE FROM tally")
    return taken


def do_settle_site(site_id: int, columns: dict[str, Any], conn: sqlite3.Connection) -> int:
    assignments = ", ".join(f"{name} = ?" for name in columns)
    return conn.execute(
        f"UPDATE addresses SET {assignments} WHERE site_id = ? AND state = {WAITING}",  # noqa: S608 - our own names
        (*columns.values(), site_id),
    ).rowcount


def erase(conn: sqlite3.Connection, *, address: str = "", before: float | None = None, everything: bool = False) -> int:
    """Delete what names a person from rows and addresses; verdicts and counts stay. Says how many addresses lost it.

    One that was still open is never asked: it ends as `suppressed_local`, detail `erased`.

    Chosen by the address itself (whatever its case), by the time of its last check, or all.
    """
    if not conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'addresses'").fetchone():
        return 0  # an audit without a list
    if everything:
        chosen = conn.execute("SELECT id FROM addresses WHERE key NOT LIKE 'erased:%'").fetchall()
    elif before is not None:
        query = """SELECT id FROM addresses WHERE key NOT LIKE 'erased:%' AND checked_at != ''
                   AND unixepoch(checked_at) < ?"""
        chosen = conn.execute(query, (before,)).fetchall()
    else:
        conn.create_function("fold", 1, lambda value: value and value.casefold(), deterministic=True)
        query = (
            "SELECT id FROM addresses WHERE fold(key) = ? OR id IN (SELECT address_id FROM rows WHERE fold(text) = ?)"
        )
        chosen = conn.execute(query, (address.casefold(), address.casefold())).fetchall()
    conn.executemany("UPDATE rows SET cells = '[]', text = '' WHERE address_id = ?", chosen)
    conn.executemany(
        f"""UPDATE addresses SET key = 'erased:' || id, local = '', suggestion = '', text = '',
                   detail = CASE WHEN state = {SETTLED} THEN detail ELSE 'erased' END,
                   reason = CASE WHEN state = {SETTLED} THEN reason ELSE 'suppressed_local' END, state = {SETTLED}
            WHERE id = ?""",  # noqa: S608 - our own number
        chosen,
    )
    return len(chosen)
