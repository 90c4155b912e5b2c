"""The audit chain: whatever is done to it behind its back is found and named; erasing leaves it whole."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.store import audit
from engine.store.audit import AuditRow, Fault, Head

ROWS = 12
HASHED = ("at", "kind", "stage", "code", "enhanced", "reason", "identity", "consent", "mx_host", "mx_ip", "note")
OTHERS = ("address_id", "address_commitment", "text_commitment", "previous", "hash")
PERSONAL = ("address_salt", "address", "text_salt", "text")


def row(n: int) -> AuditRow:
    """A reply, as many a run would bring."""
    return AuditRow(
        at=1_790_000_000.0 + n / 8,
        kind="control" if n % 4 == 0 else "rcpt",
        stage="rcpt",
        code=550,
        enhanced="5.1.1",
        reason="mailbox_not_found",
        identity="192.0.2.1",
        consent="TICKET-7",
        mx_host="mx.example.lab",
        mx_ip="198.51.100.7",
        address=f"user{n}@example.lab",
        text=f"5.1.1 <user{n}@example.lab>: unknown" if n % 3 else "",
        address_id=n,
    )


@contextmanager
def chain(rows: int = ROWS) -> Iterator[tuple[sqlite3.Connection, Head]]:
    """A journal with only its audit, and the head that the state would keep."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.executescript(audit.SCHEMA)
        audit.begin(conn, "job-1")
        head = audit.append(conn, [row(n) for n in range(1, rows // 2 + 1)])
        head = audit.append(conn, [row(n) for n in range(rows // 2 + 1, rows + 1)])
        yield conn, head


def named(faults: list[Fault]) -> set[int]:
    return {seq for fault in faults for seq in range(fault.seq, fault.last + 1)}


def test_what_was_appended_is_whole() -> None:
    """An untouched chain has no fault, whether the state knows its head, an older one, or none."""
    with chain() as (conn, head):
        older = Head(3, conn.execute("SELECT hash FROM attempts WHERE seq = 3").fetchone()[0])
        assert head == audit.head(conn) == Head(ROWS, head.hash)
        for known in (None, head, older):
            assert audit.verify(conn, known) == []


def test_an_empty_chain_is_whole() -> None:
    """A job that has asked nothing yet has nothing to hide."""
    with chain(0) as (conn, head):
        assert head.seq == 0
        assert audit.verify(conn, head) == []
        assert audit.append(conn, []) == head


def test_a_chain_is_begun_once_and_never_silently() -> None:
    """Beginning again changes nothing; appending to a journal without a chain says what is missing."""
    with chain() as (conn, head):
        assert audit.begin(conn, "another job") == head
        assert audit.job_of(conn) == "job-1"
        conn.execute("DELETE FROM attempts_head")
        with pytest.raises(ValueError, match=r"audit\.begin"):
            audit.append(conn, [row(1)])


def test_the_encoding_is_the_documented_one() -> None:
    """Anybody can recompute a hash and a commitment from an exported row and the module's rule 3."""
    with chain() as (conn, _):
        odd = {"code": None, "address_id": None, "note": 'a "quoted" \\ line\n\x00 \u00e9\U0001f4ee', "consent": ""}
        audit.append(conn, [row(ROWS + 1)._replace(**odd), row(ROWS + 2)._replace(at=1e300, text="\u00fc")])
        before = sha256(b"probe-engine audit 1 job-1").hexdigest()
        for told in map(json.loads, map(json.dumps, audit.export(conn))):
            plain = [told[name] for name in ("seq", *HASHED, "address_id", "address_commitment", "text_commitment")]
            text = json.dumps([1, *plain, before], separators=(",", ":"))
            assert told["previous"] == before
            before = sha256(text.encode("ascii")).hexdigest()
            assert told["hash"] == before
            salted = bytes.fromhex(told["address_salt"]) + told["address"].encode()
            assert told["address_commitment"] == sha256(salted).hexdigest()


def test_equal_values_have_unequal_commitments() -> None:
    """Each value has a salt of its own: a commitment can't be matched against another one, nor guessed."""
    with chain(0) as (conn, _):
        asked: list[int] = []

        def salts(count: int) -> bytes:
            asked.append(count)
            return bytes(range(count))

        audit.append(conn, [row(1)._replace(text=row(1).address)] * 2, salts=salts)
        found = conn.execute("SELECT address_commitment, text_commitment, address_salt, text_salt FROM attempts")
        assert len({cell for cells in found.fetchall() for cell in cells}) == 8
        assert asked == [64]


def _field(draw: st.DrawFn, conn: sqlite3.Connection) -> set[int]:
    """Change one cell to another value."""
    seq = draw(st.integers(1, ROWS))
    name = draw(st.sampled_from(HASHED + OTHERS + PERSONAL))
    (old,) = conn.execute(f"SELECT {name} FROM attempts WHERE seq = ?", (seq,)).fetchone()
    new = draw(_other(old, nullable=name in ("code", "address_id", *OTHERS[1:3], *PERSONAL)))
    conn.execute(f"UPDATE attempts SET {name} = ? WHERE seq = ?", (new, seq))
    (stored,) = conn.execute(f"SELECT {name} FROM attempts WHERE seq = ?", (seq,)).fetchone()
    return set() if (type(stored), stored) == (type(old), old) else {seq}


def _other(old: object, *, nullable: bool) -> st.SearchStrategy[object]:
    plain = [st.text(max_size=8), st.integers(-(2**40), 2**40), st.binary(max_size=33), st.floats(allow_nan=False)]
    if isinstance(old, bytes):  # one bit of it
        plain.append(
            st.integers(0, 8 * len(old) - 1).map(lambda bit: (int.from_bytes(old) ^ 1 << bit).to_bytes(len(old)))
        )
    if isinstance(old, float):
        plain.append(st.just(old + 2**-20))
    return st.one_of(*plain, *([st.none()] if nullable else []))


def _delete(draw: st.DrawFn, conn: sqlite3.Connection) -> set[int]:
    seq = draw(st.integers(1, ROWS))
    conn.execute("DELETE FROM attempts WHERE seq = ?", (seq,))
    return {seq}


def _cut(draw: st.DrawFn, conn: sqlite3.Connection) -> set[int]:
    seq = draw(st.integers(1, ROWS))
    conn.execute("DELETE FROM attempts WHERE seq >= ?", (seq,))
    return set(range(seq, ROWS + 1))


def _insert(draw: st.DrawFn, conn: sqlite3.Connection) -> set[int]:
    """A copy of a row under a new number."""
    source, seq = draw(st.integers(1, ROWS)), draw(st.sampled_from([-3, 0, ROWS + 1, ROWS + 9, 2**62]))
    conn.execute("CREATE TEMP TABLE copy AS SELECT * FROM attempts WHERE seq = ?", (source,))
    conn.execute("UPDATE copy SET seq = ?", (seq,))
    conn.execute("INSERT INTO attempts SELECT * FROM copy")
    return {seq}


def _insert_between(draw: st.DrawFn, conn: sqlite3.Connection) -> set[int]:
    """A copy of a row in the middle; the rows behind it are numbered anew."""
    source, seq = draw(st.integers(1, ROWS)), draw(st.integers(1, ROWS))
    conn.execute("CREATE TEMP TABLE copy AS SELECT * FROM attempts WHERE seq = ?", (source,))
    conn.execute("UPDATE copy SET seq = ?", (seq,))
    for later in range(ROWS, seq - 1, -1):
        conn.execute("UPDATE attempts SET seq = seq + 1 WHERE seq = ?", (later,))
    conn.execute("INSERT INTO attempts SELECT * FROM copy")
    return set(range(seq + 1, ROWS + 2))  # `seq` itself is named unless it is a true copy of the row before


def _swap(draw: st.DrawFn, conn: sqlite3.Connection) -> set[int]:
    one, two = draw(st.lists(st.integers(1, ROWS), min_size=2, max_size=2, unique=True))
    for old, new in ((one, -1), (two, one), (-1, two)):
        conn.execute("UPDATE attempts SET seq = ? WHERE seq = ?", (new, old))
    return {one, two}


def _forge(draw: st.DrawFn, conn: sqlite3.Connection) -> set[int]:
    """Change a row and give it the right hash for what it says now."""
    seq = draw(st.integers(1, ROWS))
    conn.execute("UPDATE attempts SET reason = 'rcpt_ok', code = 250 WHERE seq = ?", (seq,))
    cells = conn.execute(f"SELECT {audit._COLUMNS} FROM attempts WHERE seq = ?", (seq,)).fetchone()
    conn.execute("UPDATE attempts SET hash = ? WHERE seq = ?", (audit._hash(cells[:16]), seq))
    return {seq}


EXACT = (_field, _delete, _cut, _insert, _swap, _forge)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_single_mutation_is_found_and_named(data: st.DataObject) -> None:
    """A changed, removed, inserted, swapped, cut or forged row is named, by its number, and no innocent one is."""
    mutate: Callable[..., set[int]] = data.draw(st.sampled_from(EXACT))
    with chain() as (conn, head):
        guilty = data.draw(st.composite(mutate)(conn))
        known = data.draw(st.sampled_from([None, head]))
        assert named(audit.verify(conn, known)) == guilty


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_row_put_between_is_found(data: st.DataObject) -> None:
    """Whoever numbers rows anew to make room is found: every row that was moved is named."""
    with chain() as (conn, head):
        moved = data.draw(st.composite(_insert_between)(conn))
        assert moved <= named(audit.verify(conn, head))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_two_mutations_do_not_hide_each_other(data: st.DataObject) -> None:
    """A row forged and another one changed, neighbours included: both are named."""
    with chain() as (conn, head):
        guilty = data.draw(st.composite(_forge)(conn)) | data.draw(st.composite(_field)(conn))
        assert guilty <= named(audit.verify(conn, head))


def test_a_journal_that_is_rewritten_whole_is_found_by_the_state() -> None:
    """A forger who recomputes every later hash and the journal's head fails at the head that the state keeps."""
    with chain() as (conn, head):
        conn.execute("DELETE FROM attempts WHERE seq > 4")
        (kept,) = conn.execute("SELECT hash FROM attempts WHERE seq = 4").fetchone()
        conn.execute("UPDATE attempts_head SET seq = 4, hash = ?", (kept,))
        assert audit.verify(conn) == []
        assert [(fault.seq, fault.last, fault.kind) for fault in audit.verify(conn, head)] == [(5, ROWS, "cut")]
        audit.append(conn, [row(n) for n in range(20, 20 + ROWS)])
        assert audit.verify(conn) == []
        assert [(fault.seq, fault.kind) for fault in audit.verify(conn, head)] == [(ROWS, "replaced")]


def test_appending_after_a_cut_does_not_heal_it() -> None:
    """Rows cut behind the engine's back stay missing, however many follow."""
    with chain() as (conn, _):
        conn.execute("DELETE FROM attempts WHERE seq > 10")
        audit.append(conn, [row(20), row(21)])
        assert [(fault.seq, fault.last, fault.kind) for fault in audit.verify(conn)] == [(11, 12, "removed")]


def test_a_lost_or_foreign_head_is_named() -> None:
    """Without its head, or with another job's, a journal is not whole."""
    with chain() as (conn, head):
        conn.execute("UPDATE attempts_head SET job = 'job-2'")
        assert named(audit.verify(conn, head)) == {1}
        conn.execute("DELETE FROM attempts_head")
        assert [fault.kind for fault in audit.verify(conn, head)] == ["head"]
    with chain(0) as (conn, _):
        conn.execute("UPDATE attempts_head SET hash = x'00'")
        assert [fault.kind for fault in audit.verify(conn)] == ["head"]


def test_text_that_is_no_text_is_a_fault_and_no_crash() -> None:
    """Bytes that are not UTF-8 in a cell end in a named row."""
    with chain() as (conn, _):
        conn.execute("UPDATE attempts SET reason = CAST(x'ff' AS TEXT) WHERE seq = 2")
        conn.execute("UPDATE attempts SET address = CAST(x'ff' AS TEXT) WHERE seq = 5")
        assert named(audit.verify(conn)) == {2, 5}
        assert conn.execute("SELECT kind FROM attempts WHERE seq = 1").fetchone() == ("rcpt",)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(1, ROWS)), st.integers(0, ROWS + 1))
def test_erasing_leaves_the_chain_whole(users: set[int], before: int) -> None:
    """Whatever is erased, no row is at fault and every hash and commitment is still there."""
    with chain() as (conn, head):
        kept = conn.execute("SELECT hash, address_commitment, text_commitment FROM attempts").fetchall()
        assert sum(audit.erase(conn, address=row(n).address) for n in users) == len(users)
        audit.erase(conn, before=row(before).at)
        assert audit.verify(conn, head) == []
        assert conn.execute("SELECT hash, address_commitment, text_commitment FROM attempts").fetchall() == kept
        left = {cells[0] for cells in conn.execute("SELECT address_id FROM attempts WHERE address NOTNULL")}
        assert left == set(range(max(before, 1), ROWS + 1)) - users


def test_an_address_is_erased_wherever_it_stands() -> None:
    """Whatever its case, and in the reply to another address that quotes it; the other address itself stays."""
    with chain(0) as (conn, _):
        quoting = row(1)._replace(address="bob@example.lab", text="not for bob, but ZÖE@example.lab")
        audit.append(conn, [row(1)._replace(address="Zöe@example.lab", text="no"), quoting, row(2)])
        assert audit.erase(conn, address="zöe@EXAMPLE.lab") == 2
        found = conn.execute("SELECT address, text FROM attempts ORDER BY seq").fetchall()
        assert found == [(None, None), ("bob@example.lab", None), (row(2).address, row(2).text)]
        assert audit.erase(conn, address="zöe@EXAMPLE.lab") == 0


def test_all_can_be_erased_and_nothing_by_mistake() -> None:
    """`everything` takes every value; no selection takes none and is refused."""
    with chain() as (conn, head):
        with pytest.raises(ValueError, match="Nothing was chosen"):
            audit.erase(conn)
        assert audit.erase(conn, everything=True) == ROWS
        assert audit.verify(conn, head) == []
        assert conn.execute("SELECT count(address) + count(text) + count(address_salt) FROM attempts").fetchone() == (
            0,
        )


def test_an_append_that_is_rolled_back_never_was() -> None:
    """Rows and head move in the caller's transaction."""
    with chain() as (conn, head):
        conn.execute("BEGIN")
        audit.append(conn, [row(1)])
        conn.execute("ROLLBACK")
        assert audit.head(conn) == head
        assert audit.verify(conn, head) == []
