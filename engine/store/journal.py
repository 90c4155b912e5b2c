"""The job journal: every row, address, site and reply of one job, in one SQLite file.

1. The input is in here whole before the first probe; the journal alone can finish the job.
2. An address moves NEW -> WAITING -> PROVISIONAL -> SETTLED, or to ENDED, which a resume takes up again.
   A settled verdict never changes: no update of a verdict touches a SETTLED row.
3. An audit row and the address state that it proves are one transaction.
4. Functions named `_do_*` run on the store's thread: they touch the connection and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from engine.core.result import MAX_TEXT
from engine.store import audit
from engine.store.writer import Database, Ticket, Writer

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
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, lane TEXT NOT NULL, policy TEXT NOT NULL, hosts TEXT NOT NULL
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

_TALLY = (  # of state SETTLED; in memory, where a group of writes costs no file of its own
    "PRAGMA temp_store=MEMORY",
    "CREATE TEMP TABLE tally (provider TEXT, reason TEXT)",
    """CREATE TEMP TRIGGER settled AFTER UPDATE OF state ON main.addresses WHEN NEW.state = 3 AND OLD.state < 3
        BEGIN INSERT INTO tally VALUES (NEW.provider, NEW.reason); END""",
    """CREATE TEMP TRIGGER settled_at_once AFTER INSERT ON main.addresses WHEN NEW.state = 3
        BEGIN INSERT INTO tally VALUES (NEW.provider, NEW.reason); END""",
)


class JournalError(Exception):
    """A journal that can't serve: the message says which file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class NewRow:
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


@dataclass(frozen=True, slots=True)
class Routed:
    """What SG2 and SG3 found for a domain: a site to ask, or the reason that ends its addresses."""

    domain_id: int
    site_key: str = ""
    lane: str = ""
    policy: str = ""
    hosts: str = "[]"
    reason: str = ""
    detail: str = ""
    stage: str = "hosts"
    mx_host: str = ""
    catch_all: str = "not_checked"
    checked_at: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
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


@dataclass(frozen=True, slots=True)
class Site:
    """A site as the journal knows it; `hosts` is the JSON that its survey wrote."""

    id: int
    key: str
    lane: str
    policy: str
    hosts: str


@dataclass(frozen=True, slots=True)
class Load:
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


class Journal:
    """One job's file. Every method is called on the hub and runs on the writer's thread."""

    def __init__(self, path: Path, writer: Writer) -> None:
        self.path = path
        self._writer = writer
        self._db: Database = writer.open(path, SCHEMA)

    # --- the job ----------------------------------------------------------------------------------------------

    def put(self, key: str, value: Any) -> None:
        """Keep a fact of the job (`job`, `format`, `sealed`, `finished_at`, ...)."""
        self._writer.call(lambda c: c.execute("REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value))), self._db)

    def get(self, key: str) -> Any:
        """A fact of the job, or None."""

        def do(conn: sqlite3.Connection) -> Any:
            found = conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            return json.loads(found[0]) if found else None

        return self._writer.read(self._db, do)

    def begin(self, job_id: str) -> None:
        """Begin the audit chain of the job, once."""
        self._writer.call(lambda c: audit.begin(c, job_id), self._db)

    def clear_input(self) -> None:
        """Forget an intake that did not reach its end."""

        def do(conn: sqlite3.Connection) -> None:
            for table in ("rows", "addresses", "domains", "sites"):
                conn.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names

        self._writer.call(do, self._db)

    # --- intake and survey ------------------------------------------------------------------------------------

    def add_rows(self, rows: Sequence[NewRow]) -> None:
        """Take in input rows; the first of several with one key decides the address."""
        self._writer.call(partial(_do_add_rows, rows), self._db)

    def unrouted(self, after: int, limit: int) -> list[tuple[int, str]]:
        """Domains that still have to be resolved, by id."""
        query = "SELECT id, name FROM domains WHERE routed = 0 AND id > ? ORDER BY id LIMIT ?"
        return self._writer.read(self._db, lambda c: c.execute(query, (after, limit)).fetchall())

    def route(self, found: Sequence[Routed]) -> None:
        """Store what the survey found, and settle what it ends."""
        self._writer.enqueue(self._db, partial(_do_route, found)).wait()

    def reopen(self) -> int:
        """Take up again what a finished or stopped run ended without a verdict; says how many."""
        query = """UPDATE addresses SET state = ?, next_at = 0, greylist_steps = 0, tempfail_steps = 0, reconnects = 0,
                          first_at = NULL, reason = '', told = 0 WHERE state = ?"""
        return self._writer.call(lambda c: c.execute(query, (WAITING, ENDED)).rowcount, self._db)

    # --- work -------------------------------------------------------------------------------------------------

    def load(self, after: int, limit: int, share: int) -> list[Load]:
        """The next sites by id that have open addresses, each with up to `share` addresses that wait."""
        return self._writer.read(self._db, partial(_do_load, after, limit, share))

    def waiting(self, site_id: int, after: int, limit: int) -> list[Pending]:
        """Addresses of a site that wait, by id after `after`."""
        return self._writer.read(self._db, partial(_do_waiting, site_id, after, limit))

    def accepted_local(self, site_id: int) -> tuple[str, str] | None:
        """(local part, domain) of an address of this job that the site accepted, or None."""
        query = """SELECT a.local, d.name FROM addresses a JOIN domains d ON d.id = a.domain_id
                   WHERE a.site_id = ? AND a.code BETWEEN 200 AND 299 AND a.stage = 'rcpt'
                   AND a.local NOT GLOB '*[^ -~]*' LIMIT 1"""

        def do(conn: sqlite3.Connection) -> tuple[str, str] | None:
            found: tuple[str, str] | None = conn.execute(query, (site_id,)).fetchone()
            return found

        return self._writer.read(self._db, do)

    def last_sites(self, limit: int) -> list[tuple[str, bool]]:
        """(site key, whether its last answer was an unbacked refusal) of the sites that answered last, oldest first."""
        query = """SELECT s.key, a.reason IN ('rcpt_rejected', 'refusals_suspect'), MAX(a.checked_at) FROM addresses a
                   JOIN sites s ON s.id = a.site_id WHERE a.stage = 'rcpt' AND a.code IS NOT NULL
                   GROUP BY a.site_id ORDER BY 3 DESC LIMIT ?"""

        def do(conn: sqlite3.Connection) -> list[tuple[str, bool]]:
            return [(key, bool(unbacked)) for key, unbacked, _ in reversed(conn.execute(query, (limit,)).fetchall())]

        return self._writer.read(self._db, do)

    def record(self, outcomes: Sequence[Outcome], rows: Sequence[audit.AuditRow]) -> Ticket[Any]:
        """Write replies: audit rows, address states and evidence in one transaction; the ticket tells the head."""
        return self._writer.enqueue(self._db, partial(_do_record, outcomes, rows))

    def settle_accepted(self, domain_id: int, reason: str, catch_all: str) -> Ticket[Any]:
        """A domain's control question is answered: its accepted addresses get their verdict."""
        query = """UPDATE addresses SET state = 3, reason = ?, catch_all = ?
                   WHERE domain_id = ? AND state = 2 AND reason = 'rcpt_ok'"""
        return self._writer.enqueue(self._db, lambda c: c.execute(query, (reason, catch_all, domain_id)).rowcount)

    def settle_refused(
        self, reason: str = "rcpt_rejected", *, site_id: int | None = None, lane: str | None = None
    ) -> Ticket[int]:
        """Unbacked refusals of a site, a lane, or of all stand, or become `refusals_suspect`."""
        query = "UPDATE addresses SET state = 3, reason = ? WHERE state = 2 AND reason = 'rcpt_rejected'"
        where, value = _where(site_id=site_id, lane=lane)
        return self._writer.enqueue(self._db, lambda c: c.execute(query + where, (reason, *value)).rowcount)

    def settle_unasked(self, domain_id: int, reason: str, detail: str, catch_all: str, at: str) -> Ticket[int]:
        """What still waits at a domain needs no asking (any more): it gets this verdict."""
        query = """UPDATE addresses SET state = 3, reason = ?, detail = ?, catch_all = ?, checked_at = ?, stage = 'none'
                   WHERE domain_id = ? AND state = 1"""
        values = (reason, detail, catch_all, at, domain_id)
        return self._writer.enqueue(self._db, lambda c: c.execute(query, values).rowcount)

    def settle_site(self, site_id: int, columns: dict[str, Any]) -> Ticket[int]:
        """Standard mode: what one connection to a site said holds for each address that waits there."""
        return self._writer.enqueue(self._db, partial(_do_settle_site, site_id, columns))

    def end(self, reason: str, at: str, *, domain_id: int | None = None, lane: str | None = None) -> Ticket[int]:
        """End what is open (everywhere, at one domain, in one lane) without a verdict; `reopen` takes it up again.

        Where an address was itself refused before, its own reason says more than the ending's, and stays. What was
        provisional becomes no verdict either: its evidence never came.
        """
        where, value = _where(domain_id=domain_id, lane=lane)
        own = "''" if not value else "reason"
        waiting = f"""UPDATE addresses SET state = {ENDED}, reason = CASE {own} WHEN '' THEN ? ELSE reason END,
                             checked_at = CASE checked_at WHEN '' THEN ? ELSE checked_at END
                      WHERE state IN ({NEW}, {WAITING}) {where}"""  # noqa: S608 - our own words
        provisional = f"""UPDATE addresses SET state = {ENDED}, catch_all = 'unknown', reason = CASE reason
                                 WHEN 'rcpt_ok' THEN 'accepted_unconfirmed' ELSE 'refusals_suspect' END
                          WHERE state = {PROVISIONAL} {where}"""  # noqa: S608 - our own words

        def do(conn: sqlite3.Connection) -> int:
            count = conn.execute(waiting, (reason, at, *value)).rowcount
            return count + conn.execute(provisional, value).rowcount

        return self._writer.enqueue(self._db, do)

    # --- rows out ---------------------------------------------------------------------------------------------

    def rows(self, after: int = -1, limit: int = 2000, *, settled_only: bool = False) -> Iterator[dict[str, Any]]:
        """Every input row in input order with its address's columns; a chunk at a time."""
        query = """SELECT r.n, r.cells, r.text AS row_text, a.*, d.name AS domain FROM rows r
                   JOIN addresses a ON a.id = r.address_id LEFT JOIN domains d ON d.id = a.domain_id
                   WHERE r.n > ? ORDER BY r.n LIMIT ?"""

        def do(conn: sqlite3.Connection) -> list[dict[str, Any]]:
            cursor = conn.execute(query, (after, limit))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

        while True:
            chunk = self._writer.read(self._db, do)
            for row in chunk:
                if not settled_only or row["state"] >= SETTLED:
                    yield row
            if len(chunk) < limit:
                return
            after = chunk[-1]["n"]

    def untold(self, limit: int = 2000) -> list[dict[str, Any]]:
        """Rows whose addresses are settled and were not told yet; they count as told from now on."""
        query = """SELECT r.n, r.cells, r.text AS row_text, a.*, d.name AS domain
                   FROM (SELECT * FROM addresses WHERE state >= 3 AND told = 0 ORDER BY id LIMIT ?) a
                   JOIN rows r ON r.address_id = a.id AND r.n > 0 LEFT JOIN domains d ON d.id = a.domain_id"""

        def do(conn: sqlite3.Connection) -> list[dict[str, Any]]:
            cursor = conn.execute(query, (limit,))
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
            conn.execute(
                "UPDATE addresses SET told = 1 WHERE id IN (SELECT id FROM addresses WHERE state >= 3 AND told = 0 "
                "ORDER BY id LIMIT ?)",
                (limit,),
            )
            return rows

        return self._writer.call(do, self._db)

    def row_of(self, key: str) -> dict[str, Any] | None:
        """An address's columns, settled or not, in the form of `rows`; None where the job does not have it."""
        query = """SELECT 0 AS n, '[]' AS cells, a.key AS row_text, a.*, d.name AS domain FROM addresses a
                   LEFT JOIN domains d ON d.id = a.domain_id WHERE a.key = ?"""

        def do(conn: sqlite3.Connection) -> dict[str, Any] | None:
            cursor = conn.execute(query, (key,))
            names = [column[0] for column in cursor.description]
            row = cursor.fetchone()
            return dict(zip(names, row, strict=True)) if row else None

        return self._writer.read(self._db, do)

    def site(self, site_id: int) -> Site:
        """A site by its id."""
        query = "SELECT id, key, lane, policy, hosts FROM sites WHERE id = ?"
        return self._writer.read(self._db, lambda c: Site(*c.execute(query, (site_id,)).fetchone()))

    def reroute(self, domain: str) -> None:
        """Let the survey look at a domain again, for an address that came after it."""
        self._writer.call(lambda c: c.execute("UPDATE domains SET routed = 0 WHERE name = ?", (domain,)), self._db)

    def counts(self) -> dict[str, int]:
        """How many addresses there are by reason (settled and ended), and how many are still open (key '')."""
        query = """SELECT CASE WHEN state >= 3 THEN reason ELSE '' END, COUNT(*) FROM addresses a
                   WHERE EXISTS (SELECT 1 FROM rows r WHERE r.address_id = a.id AND r.n > 0) GROUP BY 1"""
        return self._writer.read(self._db, lambda c: dict(c.execute(query).fetchall()))

    def census(self) -> dict[str, tuple[int, int]]:
        """(addresses that wait, sites) by policy name: what the forecast is made of."""
        query = """SELECT s.policy, COUNT(*), COUNT(DISTINCT s.id) FROM addresses a JOIN sites s ON s.id = a.site_id
                   WHERE a.state = 1 GROUP BY s.policy"""
        return self._writer.read(
            self._db, lambda c: {name: (addresses, sites) for name, addresses, sites in c.execute(query)}
        )

    def waiting_domains(self, limit: int) -> list[tuple[str, str, str, str, int]]:
        """(domain, site, lane, policy, addresses that wait) of at most `limit` domains: what is simulated."""
        query = """SELECT d.name, s.key, s.lane, s.policy, COUNT(*)
                   FROM addresses a JOIN domains d ON d.id = a.domain_id JOIN sites s ON s.id = a.site_id
                   WHERE a.state = 1 GROUP BY d.id LIMIT ?"""
        return self._writer.read(self._db, lambda c: c.execute(query, (limit,)).fetchall())

    def count_settled(self) -> None:
        """From now on note each address that is settled, until `take_settled` asks."""

        def do(conn: sqlite3.Connection) -> None:
            for statement in _TALLY:
                conn.execute(statement)

        self._writer.read(self._db, do)

    def take_settled(self) -> list[tuple[str, str, int]]:
        """(provider, reason, how many) settled since the last call; what was rolled back is not in it."""
        return self._writer.enqueue(self._db, _do_take_settled).wait()

    def audit(self, rows: Sequence[audit.AuditRow]) -> Ticket[Any]:
        """Append audit rows that change no address (orders, events of the run)."""
        return self._writer.enqueue(self._db, partial(_do_record, (), rows))

    def close(self) -> None:
        """Close the file; everything enqueued before is in it."""
        self._writer.close_database(self._db)


def _where(
    *, site_id: int | None = None, domain_id: int | None = None, lane: str | None = None
) -> tuple[str, tuple[Any, ...]]:
    """What narrows an update to a site, a domain or a lane."""
    if site_id is not None:
        return " AND site_id = ?", (site_id,)
    if domain_id is not None:
        return " AND domain_id = ?", (domain_id,)
    if lane is not None:
        return " AND site_id IN (SELECT id FROM sites WHERE lane = ?)", (lane,)
    return "", ()


def _do_add_rows(rows: Sequence[NewRow], conn: sqlite3.Connection) -> None:
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


def _do_route(found: Sequence[Routed], conn: sqlite3.Connection) -> None:
    for one in found:
        site_id = None
        if one.site_key:
            conn.execute(
                "INSERT OR IGNORE INTO sites (key, lane, policy, hosts) VALUES (?, ?, ?, ?)",
                (one.site_key, one.lane, one.policy, one.hosts),
            )
            (site_id,) = conn.execute("SELECT id FROM sites WHERE key = ?", (one.site_key,)).fetchone()
        conn.execute("UPDATE domains SET routed = 1, site_id = ? WHERE id = ?", (site_id, one.domain_id))
        if one.reason:
            conn.execute(
                f"""UPDATE addresses SET state = {SETTLED}, site_id = ?, provider = ?, policy = ?, reason = ?,
                          detail = ?, stage = ?, mx_host = ?, catch_all = ?, checked_at = ?
                    WHERE domain_id = ? AND state = {NEW}""",  # noqa: S608 - our own numbers
                (
                    site_id, one.policy, one.policy, one.reason, one.detail, one.stage, one.mx_host, one.catch_all,
                    one.checked_at, one.domain_id,
                ),
            )  # fmt: skip
        else:
            conn.execute(
                f"""UPDATE addresses SET state = {WAITING}, site_id = ?, provider = ?, policy = ?
                    WHERE domain_id = ? AND state = {NEW}""",  # noqa: S608 - our own numbers
                (site_id, one.policy, one.policy, one.domain_id),
            )


_WAITING = """SELECT a.id, a.local, d.name, a.domain_id, a.site_id, a.next_at, a.attempts, a.greylist_steps,
                     a.tempfail_steps, a.reconnects, a.first_at, a.reason
              FROM addresses a JOIN domains d ON d.id = a.domain_id
              WHERE a.site_id = ? AND a.state = 1 AND a.id > ? ORDER BY a.id LIMIT ?"""
_OPEN_SITES = """SELECT id, key, lane, policy, hosts FROM sites s WHERE id > ? AND EXISTS
                 (SELECT 1 FROM addresses a WHERE a.site_id = s.id AND a.state IN (1, 2)) ORDER BY id LIMIT ?"""
_DISTRUSTED = "SELECT EXISTS (SELECT 1 FROM addresses WHERE site_id = ? AND state = 3 AND reason = 'refusals_suspect')"
_PROVISIONAL = """SELECT d.id, d.name, a.reason, a.code, a.text, a.local
                  FROM addresses a JOIN domains d ON d.id = a.domain_id
                  WHERE a.site_id = ? AND a.state = 2 ORDER BY a.checked_at, a.id"""


def _do_waiting(site_id: int, after: int, limit: int, conn: sqlite3.Connection) -> list[Pending]:
    return [Pending(*row) for row in conn.execute(_WAITING, (site_id, after, limit))]


def _do_load(after: int, limit: int, share: int, conn: sqlite3.Connection) -> list[Load]:
    loads = []
    for row in conn.execute(_OPEN_SITES, (after, limit)).fetchall():
        site = Site(*row)
        unconfirmed: dict[int, str] = {}
        unbacked = []
        for domain_id, name, reason, code, text, local in conn.execute(_PROVISIONAL, (site.id,)):
            if reason == "rcpt_ok":
                unconfirmed[domain_id] = name
            else:
                unbacked.append((domain_id, name, code, text, local))
        (distrusted,) = conn.execute(_DISTRUSTED, (site.id,)).fetchone()
        pending = _do_waiting(site.id, 0, share, conn)
        loads.append(Load(site, pending, list(unconfirmed.items()), unbacked, bool(distrusted)))
    return loads


def _do_record(
    outcomes: Sequence[Outcome], rows: Sequence[audit.AuditRow], conn: sqlite3.Connection
) -> audit.Head | None:
    for outcome in outcomes:
        columns = outcome.columns
        if "text" in columns:
            columns["text"] = columns["text"][:MAX_TEXT]
        assignments = ", ".join(f"{name} = ?" for name in columns)
        conn.execute(
            f"UPDATE addresses SET state = ?, {assignments} WHERE id = ? AND state != {SETTLED}",  # noqa: S608
            (outcome.state, *columns.values(), outcome.address_id),
        )
    return audit.append(conn, rows) if rows else None


def _do_take_settled(conn: sqlite3.Connection) -> list[tuple[str, str, int]]:
    taken = conn.execute("SELECT provider, reason, COUNT(*) FROM tally GROUP BY 1, 2").fetchall()
    conn.execute("DELETE FROM tally")
    return taken


def _do_settle_site(site_id: int, columns: dict[str, Any], conn: sqlite3.Connection) -> int:
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
