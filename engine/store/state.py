"""The identity state, one a machine: what one run has learnt or spent binds the next.

1. What reads waits and gives its value; what writes gives a Ticket, so that sessions that start together share one
   commit. Who must not go on before it is durable (grants, controls) calls `wait()`; the others go on.
2. A grant is written before it is used. What is never given back counts as spent, after a crash as well.
3. The number of controls begun at a domain only grows, and outlives its facts: a local part is never used for two
   questions, and is the same for one question that is asked again.
4. What sessions write is gathered (`Writer`, rule 3) by what it is about: tokens granted, tokens returned, questions
   with facts, breakers. None minds the order of another: tokens return to grants of earlier transactions only.
5. This file trails the job journals (`Writer`, rule 3): its heads are never ahead of their chains.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from engine.store import list_health, push_outbox, reputation_tables
from engine.store.audit import Head
from engine.store.database import store_error
from engine.store.writer import Function, Ticket, Writer

_T = TypeVar("_T")
KIND = "identity state"
FORGET_SPENT_S = 25 * 3600.0  # the longest window is a day; an hour more for clocks that were set
FORGET_FACTS_S = 30 * 86400.0  # an expired fact is of no use; kept a while for those who look into the file
FORGET_EVERY_S = 60.0

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (
    domain TEXT PRIMARY KEY, site TEXT NOT NULL, answer TEXT NOT NULL, basis TEXT NOT NULL,
    at REAL NOT NULL, expires REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX facts_by_site ON facts (site);
CREATE INDEX facts_by_expiry ON facts (expires);
CREATE TABLE controls (domain TEXT PRIMARY KEY, begun INTEGER NOT NULL, open INTEGER NOT NULL) WITHOUT ROWID;
-- AUTOINCREMENT: the id of a grant that was dropped never comes back as another one's
CREATE TABLE windows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, session TEXT NOT NULL, at REAL NOT NULL,
    tokens INTEGER NOT NULL CHECK (tokens >= 0)
);
CREATE INDEX windows_by_key ON windows (key, at);
CREATE INDEX windows_by_time ON windows (at);
CREATE TABLE learned (
    site TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (site, name)
) WITHOUT ROWID;
CREATE TABLE breakers (key TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT, identity TEXT NOT NULL, at REAL NOT NULL, by TEXT NOT NULL,
    why TEXT NOT NULL, kind TEXT NOT NULL, arguments TEXT NOT NULL, until REAL, taken_at REAL,
    answered_at REAL, answer TEXT
);
CREATE INDEX orders_open ON orders (identity, id) WHERE answered_at IS NULL;
CREATE INDEX orders_standing ON orders (id) WHERE kind IN ('lane limit', 'lane reset');
CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, at REAL NOT NULL, detail TEXT NOT NULL);
CREATE TABLE heads (job TEXT PRIMARY KEY, seq INTEGER NOT NULL, hash BLOB NOT NULL) WITHOUT ROWID;
"""

UPGRADES = (  # each made a file of the version before it into the next
    reputation_tables.SCHEMA,
    """
DROP INDEX orders_standing;
CREATE INDEX orders_standing ON orders (id) WHERE kind IN ('lane limit', 'lane reset', 'identity');
""",
    push_outbox.SCHEMA + list_health.SCHEMA,
)

REFUSES, ACCEPTS, INCONCLUSIVE = "refuses", "accepts", "inconclusive"
CONTROL, LISTED_REFUSAL = "control", "listed_refusal"
LIMIT, RESET, IDENTITY = "lane limit", "lane reset", "identity"
# Orders that hold for every process, until their time is over.
_STANDING = f"kind IN ('{LIMIT}', '{RESET}', '{IDENTITY}')"


class Fact(NamedTuple):
    """What is known of a domain's answer to unknown recipients at a site. Times are Unix seconds.

    `answer` is refuses, accepts or inconclusive; `basis` control or listed_refusal (a listed address was refused with
    recipient evidence). `controls_begun` is told when it is read, and ignored when it is put.
    """

    domain: str
    site: str
    answer: str
    basis: str
    at: float
    expires: float
    controls_begun: int = 0


class Grant(NamedTuple):
    """Tokens of one window (`key`: a lane, a cap or an identity) that a session may spend from `at` on."""

    key: str
    session: str
    at: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Order:
    """An order to the engine that holds `identity`; nobody takes it after `until`, and None is no limit.

    A standing order (LIMIT, RESET, IDENTITY) is taken by nobody: each engine reads and obeys it. There `identity` is a
    name or public address, and empty for all; `answer` is of the engine that obeyed last.
    """

    id: int
    identity: str
    at: float
    by: str
    why: str
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    until: float | None = None
    taken_at: float | None = None
    answered_at: float | None = None
    answer: dict[str, Any] | None = None


def default_path(environ: Mapping[str, str]) -> Path:
    """Where this machine's state is: $ENGINE_STATE, else $XDG_STATE_HOME/engine/state.db, else under ~/.local/state."""
    if environ.get("ENGINE_STATE"):
        return Path(environ["ENGINE_STATE"])
    base = Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():  # the XDG specification: a relative path is ignored
        base = Path.home() / ".local" / "state"
    return base / "engine" / "state.db"


def outweighs(new: Fact, old: Fact | None) -> bool:
    """Whether a new fact takes the place of the one that is kept.

    A failed probe never overwrites a good fact, nor a listed refusal an accepted control, within the old one's time
    and at the same site.
    """
    if old is None or old.expires <= new.at or old.site != new.site:
        return True
    if new.answer == INCONCLUSIVE:
        return old.answer == INCONCLUSIVE
    accepted_control = old.answer == ACCEPTS and old.basis == CONTROL
    return not (accepted_control and new.basis == LISTED_REFUSAL)


class State:
    """The file, opened by the writer; its folder is made with mode 0700 where there is none."""

    def __init__(self, writer: Writer, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(path.parent, error) from error
        self.path = path
        self.folder = path.parent
        self._writer = writer
        self._forgot_at: dict[str, float] = {}  # by table, the moment up to which it was looked through
        self._db = writer.open(
            path, SCHEMA, kind=KIND, version=1 + len(UPGRADES), upgrades=UPGRADES, trails=True
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<State {self.path}>"

    def secret(self) -> bytes:
        """The 32 random bytes that make this machine's controls unpredictable; made at the first use."""

        def do(conn: sqlite3.Connection) -> bytes:
            conn.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (os.urandom(32),))
            return bytes(conn.execute("SELECT value FROM meta WHERE key = 'secret'").fetchone()[0])

        return self._writer.call(do, self._db)

    def _oldest(self, table: str, now: float, kept_s: float) -> float | None:
        """What is older than this can be forgotten; None where somebody has looked a short while ago."""
        if abs(now - self._forgot_at.get(table, 0.0)) < FORGET_EVERY_S:
            return None
        self._forgot_at[table] = now
        return now - kept_s

    # --- for the tables that stand in a file of their own -------------------------------------------------------

    def enqueue(self, do: Function[_T]) -> Ticket[_T]:
        """Run a function of the store on the writer's thread, in its next transaction."""
        return self._writer.enqueue(self._db, do)

    def read(self, do: Function[_T]) -> _T:
        """Run a function that only reads, and wait for what it gives."""
        return self._writer.read(self._db, do)

    # --- facts and controls -----------------------------------------------------------------------------------

    def facts(self, domains: Sequence[str], now: float) -> dict[str, Fact]:
        """The facts of these domains that hold at `now`. Who asks compares the site."""
        return self._writer.read(self._db, lambda conn: read_facts(conn, domains, now))

    def put_facts(self, facts: Sequence[Fact]) -> Ticket[None]:
        """Keep facts where they outweigh what is kept. A control's fact, of whatever answer, settles its question."""
        oldest = self._oldest("facts", facts[-1].at, FORGET_FACTS_S) if facts else None
        return self._writer.gather_each(self._db, _ask_and_learn, (facts, oldest))

    def forget_facts(self, *, domain: str = "", site: str = "") -> Ticket[int]:
        """Drop the facts of a domain, or of all domains at a site (the tripwire); says how many. Numbers stay."""
        if bool(domain) == bool(site):
            raise ValueError("Name either the domain or the site whose facts are to be forgotten.")
        query = f"DELETE FROM facts WHERE {'domain' if domain else 'site'} = ?"  # noqa: S608 - our own names
        return self._writer.enqueue(self._db, lambda c: c.execute(query, (domain or site,)).rowcount)

    def begin_control(self, domain: str) -> Ticket[int]:
        """The number of the control that may now be asked, counted from 1: wait for it before asking.

        The same number until a fact settles the question, whoever asks and however often.
        """
        return self._writer.gather_each(self._db, _ask_and_learn, domain)

    # --- budgets ----------------------------------------------------------------------------------------------

    def grant(self, grants: Sequence[Grant]) -> Ticket[list[int]]:
        """Spend tokens, all or none; the ids are for giving back. Wait for it before the first RCPT."""
        oldest = self._oldest("windows", grants[-1].at, FORGET_SPENT_S) if grants else None
        return self._writer.gather_each(self._db, _grant, (grants, oldest))

    def give_back(self, tokens: Sequence[tuple[int, int]]) -> Ticket[None]:
        """Return (grant id, tokens) that no refusal has used up; more than was granted is an IntegrityError."""
        return self._writer.gather_each(self._db, _give_back, tokens)

    def spent(self, keys: Sequence[str], since: float) -> dict[str, list[tuple[float, int]]]:
        """(at, tokens) of what was spent of each window after `since`, oldest first. Every key is in the answer."""
        query = """SELECT key, at, tokens FROM windows
                   WHERE key IN (SELECT value FROM json_each(?)) AND at > ? ORDER BY at, id"""

        def do(conn: sqlite3.Connection) -> dict[str, list[tuple[float, int]]]:
            found: dict[str, list[tuple[float, int]]] = {key: [] for key in keys}
            for key, at, tokens in conn.execute(query, (json.dumps(list(keys)), since)):
                found[key].append((at, tokens))
            return found

        return self._writer.read(self._db, do)

    # --- what a site taught -----------------------------------------------------------------------------------

    def learned(self, sites: Sequence[str]) -> dict[str, dict[str, float]]:
        """Limits and adapted rates by name, for those sites or lanes of which something was learnt."""
        query = "SELECT site, name, value FROM learned WHERE site IN (SELECT value FROM json_each(?))"

        def do(conn: sqlite3.Connection) -> dict[str, dict[str, float]]:
            found: dict[str, dict[str, float]] = {}
            for site, name, value in conn.execute(query, (json.dumps(list(sites)),)):
                found.setdefault(site, {})[name] = value
            return found

        return self._writer.read(self._db, do)

    def learn(self, site: str, name: str, value: float, now: float) -> Ticket[None]:
        """Remember a limit (`per_transaction`, `per_session`, `connections`) or an adapted rate."""

        def do(conn: sqlite3.Connection) -> None:
            conn.execute("REPLACE INTO learned VALUES (?, ?, ?, ?)", (site, name, value, now))

        return self._writer.enqueue(self._db, do)

    def breakers(self, keys: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """What was saved of these breakers and what surrounds them (None: of all), by key."""

        def do(conn: sqlite3.Connection) -> dict[str, dict[str, Any]]:
            if keys is None:
                rows = conn.execute("SELECT key, state FROM breakers")
            else:
                some = "SELECT key, state FROM breakers WHERE key IN (SELECT value FROM json_each(?))"
                rows = conn.execute(some, (json.dumps(list(keys)),))
            return {key: json.loads(text) for key, text in rows}

        return self._writer.read(self._db, do)

    def save_breaker(self, key: str, state: Mapping[str, Any] | None) -> Ticket[None]:
        """Keep a breaker's state; None forgets it (closed, with nothing to remember)."""
        return self.save_breakers({key: state})

    def save_breakers(self, states: Mapping[str, Mapping[str, Any] | None]) -> Ticket[None]:
        """The same for many. A state's `until` (Unix seconds) says when it is of no use any more."""
        texts = {key: None if state is None else json.dumps(dict(state)) for key, state in states.items()}
        return self._writer.gather(self._db, _save_breakers, texts)

    def forget_breakers(self, now: float) -> Ticket[int]:
        """Drop what is of no use any more; says how much. It reads the whole table: once in a while is enough."""
        query = "DELETE FROM breakers WHERE json_extract(state, '$.until') < ?"
        return self._writer.enqueue(self._db, lambda c: c.execute(query, (now,)).rowcount)

    # --- orders -----------------------------------------------------------------------------------------------

    def place_order(
        self,
        identity: str,
        kind: str,
        arguments: Mapping[str, Any],
        *,
        by: str,
        why: str,
        at: float,
        until: float | None = None,
    ) -> Ticket[int]:
        """Leave an order for whoever holds the identity (its public address); the ticket tells the id."""
        row = (identity, at, by, why, kind, json.dumps(dict(arguments)), until)
        return self._writer.enqueue(self._db, lambda conn: insert_order(conn, row))

    def take_orders(self, identity: str, now: float, *, again: bool = False) -> list[Order]:
        """The orders that wait for this identity, oldest first; nobody is given them a second time.

        `again` is for a new holder's first look: it also takes what the last one took and never answered, dead as it
        is. Looking costs no commit where nothing waits.
        """
        waits = f"identity = ? AND answered_at IS NULL AND (until IS NULL OR until > ?) AND NOT {_STANDING}"
        if not again:
            waits += " AND taken_at IS NULL"
        query = f"SELECT {_ORDER} FROM orders WHERE {waits} ORDER BY id"  # noqa: S608 - our own names

        def look(conn: sqlite3.Connection) -> list[Order]:
            return [_order(row) for row in conn.execute(query, (identity, now))]

        def take(conn: sqlite3.Connection) -> list[Order]:
            waiting = look(conn)
            conn.executemany("UPDATE orders SET taken_at = ? WHERE id = ?", [(now, order.id) for order in waiting])
            return [replace(order, taken_at=now) for order in waiting]

        return self._writer.call(take, self._db) if self._writer.read(self._db, look) else []

    def standing_orders(self, now: float) -> list[Order]:
        """Limits of lanes and orders about identities whose time is not over, and what lifts them, oldest first."""
        return self._writer.read(self._db, lambda conn: read_standing_orders(conn, now))

    def answer_order(self, order_id: int, answer: Mapping[str, Any], now: float) -> Ticket[None]:
        """Tell the issuer what came of it."""
        text = json.dumps(dict(answer))

        def do(conn: sqlite3.Connection) -> None:
            conn.execute("UPDATE orders SET answered_at = ?, answer = ? WHERE id = ?", (now, text, order_id))

        return self._writer.enqueue(self._db, do)

    def forget_check(self, order_id: int, now: float) -> Ticket[None]:
        """A check's addresses and answers have been read: they are in the job's journal, where they can be erased.

        With it go those whose issuer was killed before it could say so.
        """
        query = "DELETE FROM orders WHERE kind = 'check' AND (id = ? OR until < ?)"

        def do(conn: sqlite3.Connection) -> None:
            conn.execute(query, (order_id, now))

        return self._writer.enqueue(self._db, do)

    def order(self, order_id: int) -> Order | None:
        """An order as it stands; its issuer polls this."""
        query = f"SELECT {_ORDER} FROM orders WHERE id = ?"  # noqa: S608 - our own names

        def do(conn: sqlite3.Connection) -> Order | None:
            row = conn.execute(query, (order_id,)).fetchone()
            return _order(row) if row else None

        return self._writer.read(self._db, do)

    # --- heads and events -------------------------------------------------------------------------------------

    def head(self, job: str) -> Head | None:
        """The newest head of a job's audit that this state knows."""
        return self._writer.read(self._db, lambda conn: read_head(conn, job))

    def put_head(self, job: str, seq: int, hash: bytes) -> Ticket[None]:
        """Keep an audit's head, after the journal's commit; an older one than the one that is kept changes nothing."""
        query = """INSERT INTO heads VALUES (?, ?, ?) ON CONFLICT (job)
                   DO UPDATE SET seq = excluded.seq, hash = excluded.hash WHERE excluded.seq > seq"""

        def do(conn: sqlite3.Connection) -> None:
            conn.execute(query, (job, seq, hash))

        return self._writer.enqueue(self._db, do)

    def event(self, kind: str, at: float, detail: Mapping[str, Any]) -> Ticket[None]:
        """Append an event."""
        row = (kind, at, json.dumps(dict(detail)))

        def do(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO events (kind, at, detail) VALUES (?, ?, ?)", row)

        return self._writer.enqueue(self._db, do)

    def close(self) -> None:
        """Close the file; everything enqueued before is in it."""
        self._writer.close_database(self._db)


def insert_order(conn: sqlite3.Connection, row: tuple[str, float, str, str, str, str, float | None]) -> int:
    """Leave an order (identity, at, by, why, kind, arguments as JSON, until); its id. On the writer's thread."""
    query = "INSERT INTO orders (identity, at, by, why, kind, arguments, until) VALUES (?, ?, ?, ?, ?, ?, ?)"
    return int(conn.execute(query, row).lastrowid or 0)


_ORDER = "id, identity, at, by, why, kind, arguments, until, taken_at, answered_at, answer"


def _order(row: tuple[Any, ...]) -> Order:
    values = list(row)
    values[6], values[10] = json.loads(row[6]), row[10] and json.loads(row[10])
    return Order(*values)


def read_head(conn: sqlite3.Connection, job: str) -> Head | None:
    """The head that a state file keeps for a job; for command lines that only read."""
    row = conn.execute("SELECT seq, hash FROM heads WHERE job = ?", (job,)).fetchone()
    return Head(*row) if row else None


def read_standing_orders(conn: sqlite3.Connection, now: float) -> list[Order]:
    """See `State.standing_orders`; for command lines that only read."""
    query = f"SELECT {_ORDER} FROM orders WHERE {_STANDING} AND (until IS NULL OR until > ?) ORDER BY id"  # noqa: S608
    return [_order(row) for row in conn.execute(query, (now,))]


def _grant(asked: Sequence[tuple[Sequence[Grant], float | None]], conn: sqlite3.Connection) -> list[list[int]]:
    """The ids of each who asked; each with the moment before which what was spent can be forgotten."""
    for oldest in (oldest for _, oldest in asked if oldest is not None):
        conn.execute("DELETE FROM windows WHERE at < ?", (oldest,))
    last = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'windows'").fetchone()
    numbers = count(last[0] + 1 if last else 1)
    ids = [[next(numbers) for _ in grants] for grants, _ in asked]
    rows = zip(chain.from_iterable(ids), chain.from_iterable(grants for grants, _ in asked), strict=True)
    conn.executemany("INSERT INTO windows VALUES (?, ?, ?, ?, ?)", [(id, *grant) for id, grant in rows])
    return ids


def _give_back(returned: Sequence[Sequence[tuple[int, int]]], conn: sqlite3.Connection) -> list[None]:
    rows = list(chain.from_iterable(returned))
    whole = conn.executemany("DELETE FROM windows WHERE id = ? AND tokens = ?", rows).rowcount
    if whole < len(rows):
        conn.executemany("UPDATE windows SET tokens = tokens - ? WHERE id = ?", [(tokens, id) for id, tokens in rows])
        conn.executemany("DELETE FROM windows WHERE id = ? AND tokens = 0", [(id,) for id, _ in rows])
    return [None] * len(returned)


def _save_breakers(saved: Sequence[Mapping[str, str | None]], conn: sqlite3.Connection) -> None:
    last: dict[str, str | None] = {}
    for states in saved:
        last.update(states)
    conn.executemany("DELETE FROM breakers WHERE key = ?", [(key,) for key, state in last.items() if state is None])
    conn.executemany("REPLACE INTO breakers VALUES (?, ?)", [row for row in last.items() if row[1] is not None])


Learnt = tuple[Sequence[Fact], float | None]  # facts, and the moment before which expired ones can be forgotten


def _ask_and_learn(values: Sequence[str | Learnt], conn: sqlite3.Connection) -> list[Any]:
    """Begin the controls of domains, for their numbers, and put facts; in their order where it matters."""
    asked = [value for value in values if isinstance(value, str)]
    learnt = [value for value in values if not isinstance(value, str)]
    if asked and not {fact.domain for facts, _ in learnt for fact in facts}.isdisjoint(asked):
        return [_ask_and_learn([value], conn)[0] for value in values]
    begun = _begin_controls(asked, conn) if asked else {}
    if learnt:
        _put_facts(learnt, conn)
    return [begun[value] if isinstance(value, str) else None for value in values]


def _begin_controls(domains: Sequence[str], conn: sqlite3.Connection) -> dict[str, int]:
    query = """INSERT INTO controls SELECT value, 1, 1 FROM json_each(?) WHERE true ON CONFLICT (domain)
               DO UPDATE SET begun = begun + 1 - open, open = 1 RETURNING domain, begun"""
    return dict(conn.execute(query, (json.dumps(domains),)).fetchall())


def _put_facts(put: Sequence[Learnt], conn: sqlite3.Connection) -> None:
    found = [fact for facts, _ in put for fact in facts]
    query = """SELECT domain, site, answer, basis, at, expires FROM facts
               WHERE domain IN (SELECT value FROM json_each(?))"""
    known = {row[0]: Fact(*row) for row in conn.execute(query, (json.dumps([fact.domain for fact in found]),))}
    kept = {}
    for fact in found:
        if outweighs(fact, known.get(fact.domain)):
            kept[fact.domain] = known[fact.domain] = fact
    conn.executemany("REPLACE INTO facts VALUES (?, ?, ?, ?, ?, ?)", [fact[:6] for fact in kept.values()])
    settled = [(fact.domain,) for fact in found if fact.basis == CONTROL]
    conn.executemany("UPDATE controls SET open = 0 WHERE domain = ?", settled)
    for oldest in (oldest for _, oldest in put if oldest is not None):
        conn.execute("DELETE FROM facts WHERE expires < ?", (oldest,))


def read_facts(conn: sqlite3.Connection, domains: Sequence[str], now: float) -> dict[str, Fact]:
    """The facts of these domains that hold at `now`; for command lines that only read, too."""
    query = """SELECT f.domain, site, answer, basis, at, expires, coalesce(begun, 0)
               FROM facts f LEFT JOIN controls c ON c.domain = f.domain
               WHERE f.domain IN (SELECT value FROM json_each(?)) AND expires > ?"""
    return {row[0]: Fact(*row) for row in conn.execute(query, (json.dumps(list(domains)), now))}
