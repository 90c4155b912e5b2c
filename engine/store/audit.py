"""The audit of a job: an append-only chain of what was asked and answered, in the table `attempts` of its journal.

1. Rows are only ever appended, numbered 1, 2, 3, ... without a gap; each carries the hash of its predecessor.
2. Personal values (address, reply text) are outside the hash. The row commits to each by SHA-256(salt + value), the
   salt being 16 random bytes. `erase` deletes salt and value; the commitment stays, and so the chain stays whole.
3. A row's hash is SHA-256 of one JSON array, ASCII only, without spaces:
   [1, seq, at, kind, stage, code, enhanced, reason, identity, consent, mx_host, mx_ip, note, address_id,
   address commitment, text commitment, previous hash], the last three in hex, an absent commitment as null.
   The leading 1 is the version of this encoding. Row 1 follows SHA-256 of "probe-engine audit 1 " + job id.
4. `attempts_head` holds the newest row's number and hash, and the identity state a copy that may lag behind. What ends
   before one of them has been cut. Who can rewrite the journal *and* the state can forge: keep exports elsewhere.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

VERSION = 1
SALT_BYTES = 16

SCHEMA = """
CREATE TABLE attempts (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, stage TEXT NOT NULL, code INTEGER,
    enhanced TEXT NOT NULL, reason TEXT NOT NULL, identity TEXT NOT NULL, consent TEXT NOT NULL,
    mx_host TEXT NOT NULL, mx_ip TEXT NOT NULL, note TEXT NOT NULL, address_id INTEGER,
    address_commitment BLOB, text_commitment BLOB, previous BLOB NOT NULL, hash BLOB NOT NULL,
    address_salt BLOB, address TEXT, text_salt BLOB, text TEXT
);
CREATE TABLE attempts_head (
    one INTEGER PRIMARY KEY CHECK (one = 1), job TEXT NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL
);
"""

_COLUMNS = (
    "seq, at, kind, stage, code, enhanced, reason, identity, consent, mx_host, mx_ip, note, address_id, "
    "address_commitment, text_commitment, previous, hash, address_salt, address, text_salt, text"
)
_INSERT = f"INSERT INTO attempts ({_COLUMNS}) VALUES ({', '.join('?' * 21)})"  # noqa: S608 - our own names
_SELECT = f"SELECT {_COLUMNS} FROM attempts ORDER BY seq"  # noqa: S608 - our own names

_ERASE = "UPDATE attempts SET address_salt = NULL, address = NULL, text_salt = NULL, text = NULL"

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), check_circular=False).encode


class AuditRow(NamedTuple):
    """One thing that happened. `at` is Unix time in seconds; `code` is None where there was no reply.

    `kind` says what it was: `connect`, `rcpt`, `control`, `positive_control`, `order`, `policy`, `breaker`, ...
    `address` and `text` (the reply) are personal and can be erased. All else stays as long as the chain does, so
    `note` (plain facts of rows that are no replies) must never name a person's address.
    """

    at: float
    kind: str
    stage: str = ""
    code: int | None = None
    enhanced: str = ""
    reason: str = ""
    identity: str = ""
    consent: str = ""
    mx_host: str = ""
    mx_ip: str = ""
    address: str = ""
    text: str = ""
    address_id: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest row of a chain: its number (0 when there is none yet) and its hash."""

    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """Rows, from `seq` to `last`, that are not what was appended.

    `kind`: `changed`, `removed`, `inserted`, `swapped` (its content belongs to another number), `replaced` (consistent
    in itself, but its successor or a head vouches for another row), `cut` (missing at the end), `head`.
    """

    seq: int
    last: int
    kind: str
    detail: str


def begin(conn: sqlite3.Connection, job: str) -> Head:
    """Begin the chain of a job, once; where it has begun, give its head. Runs in the caller's transaction."""
    conn.execute("INSERT OR IGNORE INTO attempts_head VALUES (1, ?, 0, ?)", (job, _genesis(job)))
    return head(conn)


def head(conn: sqlite3.Connection) -> Head:
    """The head that the journal keeps."""
    found = conn.execute("SELECT seq, hash FROM attempts_head").fetchone()
    if found is None:
        raise ValueError("This journal's audit was not begun: call audit.begin(conn, job) when the journal is made.")
    return Head(*found)


def job_of(conn: sqlite3.Connection) -> str:
    """The job whose chain this is; heads are kept under it. Empty where no chain was begun."""
    found = conn.execute("SELECT job FROM attempts_head").fetchone()
    return found[0] if found else ""


def append(conn: sqlite3.Connection, rows: Sequence[AuditRow], *, salts: Callable[[int], bytes] = os.urandom) -> Head:
    """Append rows in the caller's transaction and give the new head. `salts(n)` gives n random bytes."""
    newest = head(conn)
    if not rows:
        return newest
    seq, previous = newest.seq, newest.hash
    pool, used = salts(2 * SALT_BYTES * len(rows)), 0
    cells: list[tuple[Any, ...]] = []
    for row in rows:
        seq += 1
        address_salt = text_salt = address_commitment = text_commitment = None
        if row.address:
            address_salt = pool[used : used + SALT_BYTES]
            address_commitment = sha256(address_salt + row.address.encode()).digest()
        if row.text:
            text_salt = pool[used + SALT_BYTES : used + 2 * SALT_BYTES]
            text_commitment = sha256(text_salt + row.text.encode()).digest()
        used += 2 * SALT_BYTES
        plain = (
            seq,
            float(row.at),
            row.kind,
            row.stage,
            row.code,
            row.enhanced,
            row.reason,
            row.identity,
            row.consent,
            row.mx_host,
            row.mx_ip,
            row.note,
            row.address_id,
            address_commitment,
            text_commitment,
            previous,
        )
        previous = _hash(plain)
        cells.append((*plain, previous, address_salt, row.address or None, text_salt, row.text or None))
    conn.executemany(_INSERT, cells)
    conn.execute("UPDATE attempts_head SET seq = ?, hash = ?", (seq, previous))
    return Head(seq, previous)


def export(conn: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """Every row as a JSON object, bytes in hex: enough to check hashes and commitments elsewhere."""
    cursor = conn.execute(_SELECT)
    names = [column[0] for column in cursor.description]
    for cells in cursor:
        yield {name: cell.hex() if isinstance(cell, bytes) else cell for name, cell in zip(names, cells, strict=True)}


def erase(conn: sqlite3.Connection, *, address: str = "", before: float | None = None, everything: bool = False) -> int:
    """Delete salts and values of an address, of rows before a time, or of all; says how many rows lost something.

    An address is matched whatever its case, and goes from other rows' reply texts that quote it. This reaches
    `attempts` only.
    """
    if everything or before is not None:
        return conn.execute(
            f"{_ERASE} WHERE (address_salt NOTNULL OR text_salt NOTNULL) AND (? OR at < ?)", (everything, before)
        ).rowcount
    if not address:
        raise ValueError("Nothing was chosen to be erased: name an address, a time or everything.")
    conn.create_function("fold", 1, lambda value: value and value.casefold(), deterministic=True)  # lower() is ASCII
    folded = (address.casefold(),)
    own = conn.execute(f"{_ERASE} WHERE fold(address) = ?", folded).rowcount
    quoting = "UPDATE attempts SET text_salt = NULL, text = NULL WHERE instr(fold(text), ?)"
    return own + conn.execute(quoting, folded).rowcount


def verify(conn: sqlite3.Connection, state_head: Head | None = None) -> list[Fault]:
    """Every row that was changed, removed, inserted, swapped, replaced or cut; none when the chain is whole.

    `state_head` is the identity state's copy: it may be behind the journal, never ahead. Reads row by row.
    """
    plain_text, conn.text_factory = conn.text_factory, lambda raw: raw.decode("utf-8", "surrogateescape")
    try:
        found = conn.execute("SELECT job, seq, hash FROM attempts_head").fetchone()
        return _Walk(found, state_head).over(conn.execute(_SELECT))
    finally:
        conn.text_factory = plain_text


class _Walk:
    """One pass over a chain. `_before` is the predecessor's hash, None where it is unknown or itself at fault."""

    KEPT = 200  # misfits whose content is kept, to find out whom they were swapped with

    def __init__(self, found: tuple[Any, ...] | None, state_head: Head | None) -> None:
        self._faults: list[Fault] = []
        self._heads = {"the identity state": state_head} if state_head else {}
        self._last = 0
        self._before: bytes | None = None
        self._limit = 2**63 - 1  # SQLite counts no further
        self._vouched: dict[int, bytes] = {}
        self._misfits: list[tuple[tuple[Any, ...], Any, bool]] = []
        if found is None or not isinstance(found[1], int):
            self._fault(0, "head", "the journal keeps no head: it was removed")
            return
        job, self._limit, kept = found
        self._before = self._vouched[0] = _genesis(job)
        self._heads["the journal's head"] = Head(self._limit, kept)

    def over(self, rows: Iterator[tuple[Any, ...]]) -> list[Fault]:
        for cells in rows:
            if 1 <= cells[0] <= self._limit:
                self._row(cells[:16], cells[16])
                self._values(cells)
            else:
                self._fault(cells[0], "inserted", "its number is outside of the chain that the journal's head closes")
        self._name_misfits()
        self._compare_heads()
        return sorted(self._faults, key=lambda fault: (fault.seq, fault.kind))

    def _fault(self, seq: int, kind: str, detail: str, last: int | None = None) -> None:
        self._faults.append(Fault(seq, seq if last is None else last, kind, detail))

    def _row(self, plain: tuple[Any, ...], stored: Any) -> None:
        seq, previous = plain[0], plain[15]
        if seq > self._last + 1:
            self._fault(self._last + 1, "removed", "missing in the sequence", seq - 1)
            self._before = None
        fits = _fits(plain, stored)
        disowns = self._before is not None and previous != self._before
        if fits and disowns:
            self._disowned(seq)
        elif not fits:
            # Where the true predecessor mends the hash, only the link was changed, and the predecessor is innocent.
            mended = disowns and _fits((*plain[:15], self._before), stored)
            self._misfit(plain, stored, disowns and not mended)
        self._before = stored if fits else None
        if fits and any(head.seq == seq for head in self._heads.values()):
            self._vouched[seq] = stored
        self._last = seq

    def _disowned(self, seq: int) -> None:
        if seq == 1:
            self._fault(1, "replaced", "it does not begin the chain of the job that the journal's head names")
        else:
            self._fault(seq - 1, "replaced", "its successor vouches for another row")

    def _misfit(self, plain: tuple[Any, ...], stored: Any, disowns: bool) -> None:
        seq = plain[0]
        neighbour = next((other for other in (seq - 1, seq + 1) if _fits((other, *plain[1:]), stored)), None)
        if neighbour is not None:
            self._fault(seq, "swapped", f"its content belongs to row {neighbour}")
        elif len(self._misfits) < self.KEPT:
            self._misfits.append((plain, stored, disowns))
        else:
            self._fault(seq, "changed", "its hash is not that of its content")

    def _name_misfits(self) -> None:
        numbers = [plain[0] for plain, _, _ in self._misfits]
        for plain, stored, disowns in self._misfits:
            home = next((other for other in numbers if _fits((other, *plain[1:]), stored)), None)
            if home is not None:
                self._fault(plain[0], "swapped", f"its content belongs to row {home}")
                continue
            self._fault(plain[0], "changed", "its hash is not that of its content")
            if disowns:
                self._disowned(plain[0])

    def _values(self, cells: tuple[Any, ...]) -> None:
        for name, commitment, salt, value in (
            ("address", cells[13], cells[17], cells[18]),
            ("text", cells[14], cells[19], cells[20]),
        ):
            if salt is None and value is None:
                continue  # there was none, or it was erased
            whole = isinstance(salt, bytes) and len(salt) == SALT_BYTES and isinstance(value, str)
            if not whole or sha256(salt + value.encode("utf-8", "surrogateescape")).digest() != commitment:
                self._fault(cells[0], "changed", f"its {name} is not the one that it commits to")

    def _compare_heads(self) -> None:
        end = max((head.seq for head in self._heads.values()), default=0)
        if end > self._last:
            who = " and ".join(name for name, head in self._heads.items() if head.seq > self._last)
            self._fault(self._last + 1, "cut", f"missing at the end, and {who} knew of it", end)
        for name, head in self._heads.items():
            if self._vouched.get(head.seq, head.hash) != head.hash:
                self._fault(head.seq, "replaced" if head.seq else "head", f"{name} vouches for another row")


def _genesis(job: str) -> bytes:
    return sha256(f"probe-engine audit {VERSION} {job}".encode()).digest()


def _hash(plain: Sequence[Any]) -> bytes:
    """See rule 3; `plain` is the row's columns up to `previous`."""
    *fields, address, text, previous = plain
    commitments = (address and address.hex(), text and text.hex(), previous.hex())
    return sha256(_encode((VERSION, *fields, *commitments)).encode()).digest()


def _fits(plain: Sequence[Any], stored: Any) -> bool:
    try:
        return bool(_hash(plain) == stored)
    except (TypeError, AttributeError, ValueError):
        return False  # a value of a type that was never written
