"""The job journal: every row, address, site and reply of one job, in one SQLite file.

1. The input is in here whole before the first probe; the journal alone can finish the job.
2. Every method is called on the hub and runs on the writer's thread; what it runs there stands in `job_tables`.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine.store import audit
from engine.store.job_tables import (
    ENDED,
    NEW,
    PROVISIONAL,
    SCHEMA,
    SETTLED,
    TALLY,
    VERSION,
    WAITING,
    Accepted,
    Load,
    NewRow,
    Outcome,
    Pending,
    Routed,
    Site,
    do_add_rows,
    do_hand_over,
    do_load,
    do_record,
    do_route,
    do_settle_site,
    do_take_settled,
    do_untouched,
    do_waiting,
    narrowed,
)
from engine.store.writer import Database, Ticket, Writer

ROUTED_AT_ONCE = 2_000  # addresses a transaction of the survey
COUNTED_AT_ONCE = 50_000
RESULT = """r.n, r.cells, r.text AS row_text, a.key, a.domain_id, a.state, a.reason, a.detail, a.stage, a.probed,
            a.provider, a.policy, a.mx_host, a.mx_ip, a.source_ip, a.code, a.enhanced, a.text, a.catch_all, a.flags,
            a.suggestion, a.attempts, a.checked_at, a.duration_ms"""


class Journal:
    """One job's file. Every method is called on the hub and runs on the writer's thread."""

    def __init__(self, path: Path, writer: Writer) -> None:
        self.path = path
        self.consent = ""  # the job's consent reference: it is in each audit row
        self._writer = writer
        self._db: Database = writer.open(path, SCHEMA, version=VERSION)

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
        self._writer.call(partial(do_add_rows, rows), self._db)

    def unrouted(self, after: int, limit: int) -> list[tuple[int, str]]:
        """Domains that still have to be resolved, by id."""
        query = "SELECT id, name FROM domains WHERE routed = 0 AND id > ? ORDER BY id LIMIT ?"
        return self._writer.read(self._db, lambda c: c.execute(query, (after, limit)).fetchall())

    def route(self, found: Sequence[Routed]) -> None:
        """Store what the survey found, and settle what it ends; a crash in between leaves domains for the next run."""
        while found:
            found = found[self._writer.call(partial(do_route, found, ROUTED_AT_ONCE), self._db) :]

    def reopen(self) -> int:
        """Take up again what a finished or stopped run ended without a verdict; says how many."""
        query = """UPDATE addresses SET state = ?, next_at = 0, greylist_steps = 0, tempfail_steps = 0, reconnects = 0,
                          first_at = NULL, reason = '', told = 0 WHERE state = ?"""
        return self._writer.call(lambda c: c.execute(query, (WAITING, ENDED)).rowcount, self._db)

    # --- work -------------------------------------------------------------------------------------------------

    def load(self, identity: str, after: int, limit: int, share: int) -> list[Load]:
        """An identity's next sites by id that have open addresses, each with up to `share` addresses that wait."""
        return self._writer.call(partial(do_load, identity, after, limit, share), self._db)  # many small looks

    def untouched(self, identity: str, refusals: Sequence[str]) -> list[Site]:
        """An identity's sites that have addresses which were never asked, and that gave it none of these reasons."""
        return self._writer.read(self._db, partial(do_untouched, identity, refusals))

    def hand_over(self, moves: Sequence[tuple[Site, str]]) -> int:
        """Let another identity (by its public address) ask what was never asked at a site; says how many addresses."""
        return self._writer.call(partial(do_hand_over, moves), self._db)

    def waiting(self, site_id: int, after: int, limit: int) -> list[Pending]:
        """Addresses of a site that wait, by id after `after`."""
        return self._writer.read(self._db, partial(do_waiting, site_id, after, limit))

    def accepted_local(self, site_id: int) -> tuple[str, str] | None:
        """(local part, domain) of an address of this job that the site accepted, or None."""
        query = """SELECT a.local, d.name FROM addresses a JOIN domains d ON d.id = a.domain_id
                   WHERE a.site_id = ? AND a.code BETWEEN 200 AND 299 AND a.stage = 'rcpt'
                   AND a.local NOT GLOB '*[^ -~]*' LIMIT 1"""

        def do(conn: sqlite3.Connection) -> tuple[str, str] | None:
            found: tuple[str, str] | None = conn.execute(query, (site_id,)).fetchone()
            return found

        return self._writer.read(self._db, do)

    def last_sites(self, limit: int, identity: str) -> list[tuple[str, bool]]:
        """(site key, whether its last answer was an unbacked refusal) of the sites that answered an identity last.

        Oldest first.
        """
        query = """SELECT s.key, a.reason IN ('rcpt_rejected', 'refusals_suspect'), MAX(a.checked_at) FROM addresses a
                   JOIN sites s ON s.id = a.site_id WHERE a.stage = 'rcpt' AND a.code IS NOT NULL
                   AND s.identity = ? GROUP BY a.site_id ORDER BY 3 DESC LIMIT ?"""

        values = (identity, limit)

        def do(conn: sqlite3.Connection) -> list[tuple[str, bool]]:
            newest = [(key, bool(unbacked)) for key, unbacked, _ in conn.execute(query, values)]
            return newest[::-1]

        return self._writer.read(self._db, do)

    def record(self, outcomes: Sequence[Outcome], rows: Sequence[audit.AuditRow]) -> Ticket[audit.Head | None]:
        """Write replies: audit rows, address states and evidence in one transaction; the ticket tells the head.

        Those that come close together share one ticket.
        """
        return self._writer.gather(self._db, do_record, (outcomes, rows))

    def settle_accepted(self, domain_id: int, reason: str, catch_all: str) -> Ticket[audit.Head | None]:
        """A domain's control question is answered: its accepted addresses get their verdict."""
        return self._writer.gather(self._db, do_record, ([Accepted(domain_id, reason, catch_all)], ()))

    def settle_unconfirmed(self, site_id: int) -> Ticket[int]:
        """The tripwire: a site's controls say nothing any more; what it accepted provisionally is unconfirmed."""
        query = """UPDATE addresses SET state = 3, reason = 'accepted_unconfirmed', catch_all = 'unknown'
                   WHERE site_id = ? AND state = 2 AND reason = 'rcpt_ok'"""
        return self._writer.enqueue(self._db, lambda c: c.execute(query, (site_id,)).rowcount)

    def settle_refused(
        self,
        reason: str = "rcpt_rejected",
        *,
        site_id: int | None = None,
        lane: str | None = None,
        identity: str | None = None,
    ) -> Ticket[int]:
        """Unbacked refusals of a site, a lane, an identity, or of all stand, or become `refusals_suspect`."""
        query = "UPDATE addresses SET state = 3, reason = ? WHERE state = 2 AND reason = 'rcpt_rejected'"
        where, value = narrowed(site_id=site_id, lane=lane, identity=identity)
        return self._writer.enqueue(self._db, lambda c: c.execute(query + where, (reason, *value)).rowcount)

    def settle_unasked(self, domain_id: int, reason: str, detail: str, catch_all: str, at: str) -> Ticket[int]:
        """What still waits at a domain needs no asking (any more): it gets this verdict."""
        query = """UPDATE addresses SET state = 3, reason = ?, detail = ?, catch_all = ?, checked_at = ?, stage = 'none'
                   WHERE domain_id = ? AND state = 1"""
        values = (reason, detail, catch_all, at, domain_id)
        return self._writer.enqueue(self._db, lambda c: c.execute(query, values).rowcount)

    def settle_policy(
        self, policy: str, reason: str, detail: str, at: str, busy: Sequence[str] = (), *, identity: str
    ) -> Ticket[int]:
        """What waits for an identity under a policy that it asks no more gets this verdict; not yet in `busy` lanes."""
        query = """UPDATE addresses SET state = 3, reason = ?, detail = ?, checked_at = ?, stage = 'hosts'
                   WHERE state = 1 AND site_id IN (SELECT id FROM sites WHERE policy = ? AND identity = ?
                       AND lane NOT IN (SELECT value FROM json_each(?)))"""
        values = (reason, detail, at, policy, identity, json.dumps(list(busy)))
        return self._writer.enqueue(self._db, lambda c: c.execute(query, values).rowcount)

    def settle_site(self, site_id: int, columns: dict[str, Any]) -> Ticket[int]:
        """Standard mode: what one connection to a site said holds for each address that waits there."""
        return self._writer.enqueue(self._db, partial(do_settle_site, site_id, columns))

    def end(
        self,
        reason: str,
        at: str,
        *,
        domain_id: int | None = None,
        lane: str | None = None,
        identity: str | None = None,
    ) -> Ticket[int]:
        """End what is open (everywhere, at one domain, in a lane, of an identity) without a verdict.

        `reopen` takes it up again.

        Where an address was itself refused before, its own reason says more than the ending's, and stays. What was
        provisional becomes no verdict either: its evidence never came.
        """
        where, value = narrowed(domain_id=domain_id, lane=lane, identity=identity)
        own = "reason" if domain_id is not None or lane is not None else "''"
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
        """Every input row in input order with what its address's result is made of; a chunk at a time."""
        query = f"""SELECT {RESULT} FROM rows r JOIN addresses a ON a.id = r.address_id
                    WHERE r.n > ? ORDER BY r.n LIMIT ?"""  # noqa: S608 - our own names

        def do(conn: sqlite3.Connection) -> list[dict[str, Any]]:
            return _named(conn.execute(query, (after, limit)))

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
        query = f"""SELECT {RESULT} FROM (SELECT * FROM addresses WHERE state >= 3 AND told = 0 ORDER BY id LIMIT ?) a
                    JOIN rows r ON r.address_id = a.id AND r.n > 0"""  # noqa: S608 - our own names

        def do(conn: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = _named(conn.execute(query, (limit,)))
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

        return next(iter(self._writer.read(self._db, lambda conn: _named(conn.execute(query, (key,))))), None)

    def site(self, site_id: int) -> Site:
        """A site by its id."""
        query = "SELECT id, key, identity, lane, policy, hosts FROM sites WHERE id = ?"
        return self._writer.read(self._db, lambda c: Site(*c.execute(query, (site_id,)).fetchone()))

    def reroute(self, domain: str) -> None:
        """Let the survey look at a domain again, for an address that came after it."""
        self._writer.call(lambda c: c.execute("UPDATE domains SET routed = 0 WHERE name = ?", (domain,)), self._db)

    # What SQLite has to sort for counting it stands in memory, a million rows of it: what is counted here comes in the
    # order of an index, or so many addresses at a time.

    def counts(self) -> dict[str, int]:
        """How many addresses there are by reason (settled and ended), and how many are still open (key '')."""
        query = """SELECT CASE WHEN state >= 3 THEN reason ELSE '' END, COUNT(*) FROM addresses a
                   WHERE a.id > ? AND a.id <= ?
                   AND EXISTS (SELECT 1 FROM rows r WHERE r.address_id = a.id AND r.n > 0) GROUP BY 1"""

        def do(conn: sqlite3.Connection) -> dict[str, int]:
            found: Counter[str] = Counter()
            (last,) = conn.execute("SELECT coalesce(MAX(id), 0) FROM addresses").fetchone()
            for after in range(0, last, COUNTED_AT_ONCE):
                found.update(dict(conn.execute(query, (after, after + COUNTED_AT_ONCE)).fetchall()))
            return dict(found)

        return self._writer.read(self._db, do)

    def census(self) -> dict[str, tuple[int, int]]:
        """(addresses that wait, sites) by policy name: what the forecast is made of."""
        query = """SELECT s.policy, COUNT(*) FROM addresses a JOIN sites s ON s.id = a.site_id
                   WHERE a.state = 1 GROUP BY a.site_id"""

        def do(conn: sqlite3.Connection) -> dict[str, tuple[int, int]]:
            addresses: Counter[str] = Counter()
            sites: Counter[str] = Counter()
            for policy, waiting in conn.execute(query):
                addresses[policy] += waiting
                sites[policy] += 1
            return {policy: (addresses[policy], sites[policy]) for policy in sites}

        return self._writer.read(self._db, do)

    def waiting_domains(self, limit: int) -> list[tuple[str, Site, int]]:
        """(domain, site, addresses that wait) of at most `limit` domains: what is simulated."""
        query = """SELECT d.name, COUNT(*), s.id, s.key, s.identity, s.lane, s.policy, s.hosts
                   FROM domains d CROSS JOIN addresses a ON a.domain_id = d.id AND a.state = 1
                   JOIN sites s ON s.id = a.site_id GROUP BY d.id LIMIT ?"""

        def do(conn: sqlite3.Connection) -> list[tuple[str, Site, int]]:
            return [(name, Site(*site), count) for name, count, *site in conn.execute(query, (limit,))]

        return self._writer.read(self._db, do)

    def count_settled(self) -> None:
        """From now on note each address that is settled, until `take_settled` asks."""

        def do(conn: sqlite3.Connection) -> None:
            for statement in TALLY:
                conn.execute(statement)

        self._writer.read(self._db, do)

    def take_settled(self) -> list[tuple[str, str, int]]:
        """(provider, reason, how many) settled since the last call; what was rolled back is not in it."""
        return self._writer.enqueue(self._db, do_take_settled).wait()

    def audit(self, rows: Sequence[audit.AuditRow]) -> Ticket[Any]:
        """Append audit rows that change no address (orders, events of the run)."""
        told = [row if row.consent else row._replace(consent=self.consent) for row in rows]
        return self.record((), told)

    def close(self) -> None:
        """Close the file; everything enqueued before is in it."""
        self._writer.close_database(self._db)


def _named(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    """The rows of a query by column; fetched here, for cursors can't leave the thread."""
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]
