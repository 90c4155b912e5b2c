"""What block lists said of us, what came of it, and who was told: tables of the identity state.

1. These functions run on the writer's thread, or on a read-only connection of a command line (`Writer`, rule 1).
2. A check that says what the one before it said lengthens its row: a row is a stretch of equal answers, so that months
   of history are small and the newest answer always has its age.
3. An event, its request and its notice are committed together. A notice becomes a message, and a message a row a
   channel, in one transaction as well: a crash loses none and makes none twice.
4. Whoever delivers a message takes it for LEASE_S; if it dies meanwhile, the next one takes it again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.core.listing import Check, Severity, Status
from engine.core.listing_event import Close, ListingEvent, Method, Note, Progress, Request, Step
from engine.core.notice import Kind, Message, Notice

LEASE_S = 300.0  # longer than a delivery takes, time-outs included
KEEP_S = 90 * 86_400.0  # closed events, old answers, messages
KEEP_TOLD_S = 4 * KEEP_S  # what was told: the end of an event is told only where its beginning was


@dataclass(frozen=True, slots=True)
class Answers:
    """A stretch of equal answers of one list about one target."""

    target: str
    list: str
    status: Status
    since: float
    checked_at: float
    times: int
    reliable: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way to one channel."""

    message: Message
    channel: str
    attempts: int  # this one included


@dataclass(frozen=True, slots=True)
class Unsent:
    """A message that one channel did not take yet."""

    message: str
    channel: str
    title: str
    at: float
    attempts: int
    problem: str  # of the newest attempt


# --- checks


def put_check(conn: sqlite3.Connection, check: Check) -> None:
    """Keep an answer: a longer stretch, or a new one."""
    said = (
        check.status.value, int(check.reliable), json.dumps([[one.sublist, one.code] for one in check.listings]),
        json.dumps(check.text), check.detail,
    )  # fmt: skip
    last = conn.execute(
        """SELECT id, status, reliable, listings, txt, detail FROM engine_server_reputation_checks
           WHERE ip = ? AND rbl = ? ORDER BY checked_at DESC LIMIT 1""",
        (check.target, check.list),
    ).fetchone()
    if last is not None and tuple(last[1:]) == said:
        conn.execute(
            """UPDATE engine_server_reputation_checks
               SET checked_at = max(checked_at, ?), times = times + 1, latency_ms = ?, ttl_s = ? WHERE id = ?""",
            (check.at, check.latency_ms, check.ttl_s, last[0]),
        )
        return
    conn.execute(
        """INSERT INTO engine_server_reputation_checks (ip, rbl, status, since, checked_at, times, reliable, listings,
               txt, detail, latency_ms, ttl_s) VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?)""",
        (check.target, check.list, said[0], check.at, check.at, *said[1:], check.latency_ms, check.ttl_s),
    )


def newest_answers(conn: sqlite3.Connection) -> list[Answers]:
    """The newest stretch of each target and list."""
    query = """SELECT ip, rbl, status, since, max(checked_at), times, reliable, detail
               FROM engine_server_reputation_checks GROUP BY ip, rbl ORDER BY ip, rbl"""
    return [
        Answers(row[0], row[1], Status(row[2]), row[3], row[4], row[5], bool(row[6]), row[7])
        for row in conn.execute(query)
    ]


def mark_unreliable(conn: sqlite3.Connection, name: str, since: float, doubted: Iterable[Status] = Status) -> int:
    """What a list said after `since` does not count, as far as it is doubted: it failed its own probes.

    Says how many stretches that are.
    """
    query = """UPDATE engine_server_reputation_checks SET reliable = 0
               WHERE rbl = ? AND checked_at > ? AND reliable AND status IN (SELECT value FROM json_each(?))"""
    return conn.execute(query, (name, since, json.dumps([each.value for each in doubted]))).rowcount


# --- events


_EVENT = """id, ip, rbl, sublist, severity, first_seen, confirmed_at, opened_at, last_seen, closed_at, close_reason,
            flaps, seen, seen_since, ask_at, code, meaning, txt, expected_expiry,
            EXISTS (SELECT 1 FROM engine_server_delist_requests r WHERE r.event = e.id AND r.requested_at >= e.opened_at
                    AND r.status <> 'refused')"""


def _event(row: Sequence[Any]) -> ListingEvent:
    return ListingEvent(
        id=row[0], target=row[1], list=row[2], sublist=row[3], severity=Severity(row[4]), first_seen=row[5],
        confirmed_at=row[6], opened_at=row[7], last_seen=row[8], closed_at=row[9],
        close_reason=Close(row[10]) if row[10] else None, flaps=row[11],
        seen=Severity(row[12]) if row[12] is not None else None, seen_since=row[13], ask_at=row[14], code=row[15],
        meaning=row[16], text=tuple(json.loads(row[17])), expected_expiry=row[18], asked=bool(row[19]),
    )  # fmt: skip


def events_of(conn: sqlite3.Connection, target: str, name: str, closed_since: float) -> list[ListingEvent]:
    """The events of one target at one list that are not closed, or were closed after `closed_since`."""
    query = f"""SELECT {_EVENT} FROM engine_server_blacklist_events e
                WHERE ip = ? AND rbl = ? AND (closed_at IS NULL OR closed_at > ?) ORDER BY id"""  # noqa: S608
    return [_event(row) for row in conn.execute(query, (target, name, closed_since))]


def events_at(conn: sqlite3.Connection, name: str, closed_since: float) -> list[ListingEvent]:
    """The same for all targets of a list."""
    query = f"""SELECT {_EVENT} FROM engine_server_blacklist_events e
                WHERE rbl = ? AND (closed_at IS NULL OR closed_at > ?) ORDER BY id"""  # noqa: S608
    return [_event(row) for row in conn.execute(query, (name, closed_since))]


def events(
    conn: sqlite3.Connection, *, closed_since: float | None = None, target: str = "", name: str = ""
) -> list[ListingEvent]:
    """Events that were confirmed: the open ones, and those closed after `closed_since`; the worst come first."""
    query = f"""SELECT {_EVENT} FROM engine_server_blacklist_events e
                WHERE confirmed_at IS NOT NULL AND (closed_at IS NULL OR closed_at > ?)
                  AND ? IN ('', ip) AND ? IN ('', rbl)
                ORDER BY closed_at IS NOT NULL, severity DESC, first_seen, id"""  # noqa: S608
    since = float("inf") if closed_since is None else closed_since
    return [_event(row) for row in conn.execute(query, (since, target, name))]


def event(conn: sqlite3.Connection, number: int) -> ListingEvent | None:
    """One event."""
    row = conn.execute(
        f"SELECT {_EVENT} FROM engine_server_blacklist_events e WHERE id = ?",  # noqa: S608 - our own names
        (number,),
    ).fetchone()
    return _event(row) if row else None


def unconfirmed(conn: sqlite3.Connection) -> list[ListingEvent]:
    """The events whose newest answer waits for a second one: each says when to ask."""
    query = f"""SELECT {_EVENT} FROM engine_server_blacklist_events e
                WHERE ask_at IS NOT NULL ORDER BY ask_at"""  # noqa: S608 - our own names
    return [_event(row) for row in conn.execute(query)]


def save(conn: sqlite3.Connection, step: Step) -> dict[tuple[str, str, str], int]:
    """Write what a step changed; gives the numbers of those that are new, by (target, list, sublist)."""
    numbers: dict[tuple[str, str, str], int] = {}
    for one in step.changed:
        values = (
            one.severity, one.first_seen, one.confirmed_at, one.opened_at, one.last_seen, one.closed_at,
            one.close_reason, one.flaps, one.seen, one.seen_since, one.ask_at, one.code, one.meaning,
            json.dumps(one.text), one.expected_expiry,
        )  # fmt: skip
        if one.id:
            conn.execute(
                """UPDATE engine_server_blacklist_events SET severity = ?, first_seen = ?, confirmed_at = ?,
                       opened_at = ?, last_seen = ?, closed_at = ?, close_reason = ?, flaps = ?, seen = ?,
                       seen_since = ?, ask_at = ?, code = ?, meaning = ?, txt = ?, expected_expiry = ? WHERE id = ?""",
                (*values, one.id),
            )
            continue
        added = conn.execute(
            """INSERT INTO engine_server_blacklist_events (severity, first_seen, confirmed_at, opened_at, last_seen,
                   closed_at, close_reason, flaps, seen, seen_since, ask_at, code, meaning, txt, expected_expiry,
                   ip, rbl, sublist) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (*values, one.target, one.list, one.sublist),
        )
        numbers[one.target, one.list, one.sublist] = int(added.lastrowid or 0)
    conn.executemany("DELETE FROM engine_server_blacklist_events WHERE id = ?", [(one.id,) for one in step.dropped])
    return numbers


# --- requests to be taken off


_REQUEST = """id, event, method, url, instructions, status, opened_at, moved_at, cooldown_s, expiry_s, requested_at,
              cooldown_until, actor, notes"""


def _request(row: Sequence[Any]) -> Request:
    return Request(
        id=row[0], event=row[1], method=Method(row[2]), url=row[3], procedure=row[4], status=Progress(row[5]),
        opened_at=row[6], moved_at=row[7], cooldown_s=row[8], expiry_s=row[9], requested_at=row[10],
        cooldown_until=row[11], actor=row[12], notes=tuple(Note(*note) for note in json.loads(row[13])),
    )  # fmt: skip


def request_of(conn: sqlite3.Connection, number: int) -> Request | None:
    """The newest request of an event."""
    row = conn.execute(
        f"SELECT {_REQUEST} FROM engine_server_delist_requests WHERE event = ? ORDER BY id DESC LIMIT 1",  # noqa: S608
        (number,),
    ).fetchone()
    return _request(row) if row else None


def requests(conn: sqlite3.Connection, *, over: bool = False) -> list[tuple[Request, ListingEvent]]:
    """The requests under way (`over`: those that are done, too) with their events; the worst come first."""
    query = f"SELECT {_REQUEST} FROM engine_server_delist_requests"  # noqa: S608 - our own names
    if not over:
        query += " WHERE status <> 'done'"
    found = []
    for row in conn.execute(query).fetchall():
        request = _request(row)
        about = event(conn, request.event)
        assert about is not None  # ON DELETE CASCADE
        found.append((request, about))
    return sorted(found, key=lambda each: (each[1].closed_at is not None, -each[1].severity, each[0].id))


def put_request(conn: sqlite3.Connection, one: Request) -> None:
    """Add a request, or write how it stands now."""
    notes = json.dumps([[note.at, note.by, note.text] for note in one.notes])
    moving = (one.status, one.moved_at, one.requested_at, one.cooldown_until, one.actor, notes)
    if one.id:
        conn.execute(
            """UPDATE engine_server_delist_requests SET status = ?, moved_at = ?, requested_at = ?, cooldown_until = ?,
                   actor = ?, notes = ? WHERE id = ?""",
            (*moving, one.id),
        )
        return
    conn.execute(
        """INSERT INTO engine_server_delist_requests (status, moved_at, requested_at, cooldown_until, actor, notes,
               event, method, url, instructions, opened_at, cooldown_s, expiry_s)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (*moving, one.event, one.method, one.url, one.procedure, one.opened_at, one.cooldown_s, one.expiry_s),
    )


# --- notices and messages


_NOTICE = "key, kind, at, severity, subject, rbl, target, facts"


def _notice(row: Sequence[Any]) -> Notice:
    return Notice(row[0], Kind(row[1]), row[2], Severity(row[3]), row[4], row[5], row[6], json.loads(row[7]))


def put_notices(conn: sqlite3.Connection, notices: Iterable[Notice]) -> int:
    """Add notices; one whose key is there already is dropped. Says how many are new."""
    query = f"INSERT OR IGNORE INTO engine_server_alert_notices ({_NOTICE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
    rows = [
        (one.key, one.kind, one.at, one.severity, one.subject, one.list, one.target, json.dumps(dict(one.facts)))
        for one in notices
    ]
    return sum(conn.execute(query, row).rowcount for row in rows)


def has_notice(conn: sqlite3.Connection, key: str) -> bool:
    """Whether that notice was ever there."""
    return conn.execute("SELECT 1 FROM engine_server_alert_notices WHERE key = ?", (key,)).fetchone() is not None


def waiting_notices(conn: sqlite3.Connection) -> list[Notice]:
    """The notices that are not settled, oldest first."""
    query = f"SELECT {_NOTICE} FROM engine_server_alert_notices WHERE settled_at IS NULL ORDER BY at, key"  # noqa: S608
    return [_notice(row) for row in conn.execute(query)]


def notices_since(conn: sqlite3.Connection, since: float, *, told: bool = False) -> list[Notice]:
    """The notices that came after `since`; with `told`, those of which a message went out after it."""
    where = "settled_at > ? AND message IS NOT NULL" if told else "at > ?"
    query = f"SELECT {_NOTICE} FROM engine_server_alert_notices WHERE {where} ORDER BY at, key"  # noqa: S608
    return [_notice(row) for row in conn.execute(query, (since,))]


def told_subjects(conn: sqlite3.Connection, subjects: Iterable[str]) -> frozenset[str]:
    """Of these subjects, those of which a message went out."""
    query = """SELECT DISTINCT subject FROM engine_server_alert_notices
               WHERE message IS NOT NULL AND subject IN (SELECT value FROM json_each(?))"""
    return frozenset(row[0] for row in conn.execute(query, (json.dumps(list(subjects)),)))


def settle(conn: sqlite3.Connection, keys: Sequence[str], now: float, message: str | None = None) -> None:
    """These notices are told by that message, or by none."""
    conn.executemany(
        "UPDATE engine_server_alert_notices SET settled_at = ?, message = ? WHERE key = ? AND settled_at IS NULL",
        [(now, message, key) for key in keys],
    )


def put_message(conn: sqlite3.Connection, message: Message, channels: Sequence[str], now: float) -> None:
    """Put a message into the outbox, once for each channel; one that is there already stays as it is."""
    body = json.dumps(asdict(message))
    conn.executemany(
        """INSERT OR IGNORE INTO engine_server_alert_outbox (message, channel, at, body, next_at, attempts, problem)
           VALUES (?, ?, ?, ?, ?, 0, '')""",
        [(message.id, channel, now, body, now) for channel in channels],
    )


def take_parcel(conn: sqlite3.Connection, channel: str, now: float) -> Parcel | None:
    """The message that has waited longest for this channel, for whoever asks and nobody else during LEASE_S."""
    row = conn.execute(
        """SELECT message, body, attempts FROM engine_server_alert_outbox
           WHERE channel = ? AND sent_at IS NULL AND next_at <= ? ORDER BY next_at, at, message LIMIT 1""",
        (channel, now),
    ).fetchone()
    if row is None:
        return None
    conn.execute(
        """UPDATE engine_server_alert_outbox SET next_at = ?, attempts = attempts + 1
           WHERE message = ? AND channel = ?""",
        (now + LEASE_S, row[0], channel),
    )
    return Parcel(_message(row[1]), channel, row[2] + 1)


def _message(body: str) -> Message:
    values = json.loads(body)
    values["severity"], values["parts"] = Severity(values["severity"]), tuple(map(tuple, values["parts"]))
    return Message(**values)


def parcel_sent(conn: sqlite3.Connection, parcel: Parcel, now: float, problem: str = "") -> None:
    """It is there; `problem` says for whom it is not."""
    conn.execute(
        "UPDATE engine_server_alert_outbox SET sent_at = ?, problem = ? WHERE message = ? AND channel = ?",
        (now, problem, parcel.message.id, parcel.channel),
    )


def parcel_failed(conn: sqlite3.Connection, parcel: Parcel, next_at: float, problem: str) -> None:
    """It is not there: try again at `next_at`."""
    conn.execute(
        "UPDATE engine_server_alert_outbox SET next_at = ?, problem = ? WHERE message = ? AND channel = ?",
        (next_at, problem, parcel.message.id, parcel.channel),
    )


def parcels_waiting(conn: sqlite3.Connection) -> dict[str, tuple[int, float]]:
    """By channel: how many messages wait for their delivery, and since when the oldest does."""
    query = "SELECT channel, count(*), min(at) FROM engine_server_alert_outbox WHERE sent_at IS NULL GROUP BY channel"
    return {channel: (count, oldest) for channel, count, oldest in conn.execute(query)}


def unsent(conn: sqlite3.Connection) -> list[Unsent]:
    """The messages that did not arrive yet, those that wait longest first."""
    query = """SELECT message, channel, json_extract(body, '$.title'), at, attempts, problem
               FROM engine_server_alert_outbox WHERE sent_at IS NULL ORDER BY at, message, channel"""
    return [Unsent(*row) for row in conn.execute(query)]


def prune(conn: sqlite3.Connection, now: float) -> int:
    """Forget what ended long ago; says how many rows that were. What is open stays."""
    old, told = now - KEEP_S, now - KEEP_TOLD_S
    return sum(
        conn.execute(query, (before,)).rowcount
        for query, before in (
            ("DELETE FROM engine_server_reputation_checks WHERE checked_at < ?", old),
            ("DELETE FROM engine_server_blacklist_events WHERE closed_at < ?", old),
            ("DELETE FROM engine_server_blacklist_events WHERE confirmed_at IS NULL AND seen_since < ?", old),
            ("DELETE FROM engine_server_alert_notices WHERE at < ?", told),
            ("DELETE FROM engine_server_alert_outbox WHERE at < ?", old),
        )
    )


def has_tables(conn: sqlite3.Connection) -> bool:
    """Whether the file has these tables; for command lines that read a state that no newer engine has opened."""
    query = "SELECT 1 FROM sqlite_master WHERE name = 'engine_server_blacklist_events'"
    return conn.execute(query).fetchone() is not None
