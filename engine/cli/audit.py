"""`engine audit`: check, export and erase what a job's journal keeps of its probes."""

from __future__ import annotations

import getpass
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import click

from engine.core.address import Address, parse
from engine.store import audit as chain
from engine.store import job_tables
from engine.store.database import JOURNAL, StoreError, open_read_only
from engine.store.state import KIND as STATE
from engine.store.state import State, default_path, read_head
from engine.store.writer import Database, Writer

SHOWN = 100  # faults that are printed in full; the rest is counted

# What `erase` runs, all in one transaction; each takes (connection, address=, before=, everything=) and says how many
# rows lost something. Every table of the journal that holds personal values has its function here.
ERASERS: list[Callable[..., int]] = [chain.erase, job_tables.erase]

_journal = click.argument("journal", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def audit() -> None:
    """Check, export or erase the audit in a job's journal."""


@audit.command(short_help="Check that no row was changed, removed or inserted.")
@_journal
@click.option(
    "--state",
    "state_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The identity state that knows the newest row; this machine's, if not given.",
)
def verify(journal: Path, state_path: Path | None) -> None:
    """Check that no row of JOURNAL was changed, removed, inserted, swapped or cut.

    Exit 0: the chain is whole. Exit 1: it is not, and every fault is named. A running job is not disturbed.
    """
    with _reading(journal) as conn:
        # The state first: a job that runs meanwhile can only bring the journal further ahead of it.
        head = _state_head(chain.job_of(conn), state_path)
        conn.execute("BEGIN")
        faults = chain.verify(conn, head)
        rows, erased = conn.execute(
            """SELECT count(*), count(*) FILTER (WHERE (address_commitment NOTNULL AND address_salt ISNULL)
                                                    OR (text_commitment NOTNULL AND text_salt ISNULL)) FROM attempts"""
        ).fetchone()
    for fault in faults[:SHOWN]:
        which = f"row {fault.seq}" if fault.seq == fault.last else f"rows {fault.seq} to {fault.last}"
        click.echo(f"{which}: {fault.kind}: {fault.detail}")
    if len(faults) > SHOWN:
        click.echo(f"and {len(faults) - SHOWN} more")
    told = f"{journal}: {rows} rows, {erased} with erased values"
    if faults:
        click.echo(f"{told}: NOT WHOLE, {len(faults)} faults.")
        sys.exit(1)
    known = f"the identity state knows row {head.seq}" if head else "no identity state knows this job"
    click.echo(f"{told}: whole; {known}.")


@audit.command(short_help="Write every row as one JSON object a line.")
@_journal
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file; stdout, if not given."
)
def export(journal: Path, output: Path | None) -> None:
    """Write every row of JOURNAL as one JSON object a line, with hashes, commitments and what was not erased."""
    with _reading(journal) as conn, _written(output) as out:
        for row in chain.export(conn):
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


@audit.command(short_help="Delete personal values; the chain stays whole.")
@_journal
@click.option("--address", help="Erase what was kept of this address.")
@click.option("--before", help="Erase what is older: a date or time, RFC 3339 (UTC where it names no zone).")
@click.option("--all", "everything", is_flag=True, help="Erase every address and reply text of the job.")
@click.option("--job", help="The same as --all, for the job of this id only.")
@click.option("--by", default=getpass.getuser, show_default="you", help="Who erases; goes into the audit.")
@click.option(
    "--why", default="on request", show_default=True, help="Why; goes into the audit for good: name no address here."
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The identity state that knows the job, and vouches for the erasure too.",
)
def erase(
    journal: Path, address: str | None, before: str | None, everything: bool, job: str | None, by: str, why: str,
    state: Path | None,
) -> None:  # fmt: skip
    """Delete personal values (addresses, reply texts) from JOURNAL; its chain stays whole.

    One of --address, --before, --all and --job is needed. Erase after the job has ended: a job that still runs may
    write what was erased once more.
    """
    if job is not None:
        with _reading(journal) as conn:
            known = chain.job_of(conn)
        if job != known:
            raise click.UsageError(f"{journal} is the journal of job {known}, not of {job}.")
        everything = True
    if (address is not None) + (before is not None) + everything != 1 or address == "":
        raise click.UsageError("Name one of --address, --before, --job and --all.")
    if address and any(address.casefold() in told.casefold() for told in (by, why)):
        raise click.UsageError("--by and --why stay in the audit for good: they must not name the address.")
    until = None if before is None else _moment(before)
    selected = "address" if address else f"before {before}" if before else "all"

    parsed = parse(address) if address else None
    spellings = {address or "", parsed.normalized if isinstance(parsed, Address) else address or ""}

    def do(conn: sqlite3.Connection) -> int:
        count = 0
        for spelling in spellings:
            count += sum(eraser(conn, address=spelling, before=until, everything=everything) for eraser in ERASERS)
        note = json.dumps({"by": by, "why": why, "selected": selected, "rows": count})
        chain.append(conn, [chain.AuditRow(at=time.time(), kind="erasure", note=note)])
        return count

    with Writer() as writer:
        try:
            db = writer.open(journal, "", version=None, create=False)
        except StoreError as error:
            raise click.UsageError(str(error)) from error
        try:
            count = writer.call(do, db)
            # The log still holds the old pages; only an empty one forgets.
            _tell_state(writer, db, state)
            (busy, *_) = writer.read(db, lambda conn: conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
        except (StoreError, sqlite3.Error, ValueError) as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"{journal}: erased values in {count} rows.")
    if busy:
        click.echo(f"A running job reads {journal}: old pages stay in {journal}-wal until it ends.", err=True)
        sys.exit(1)


def _tell_state(writer: Writer, db: Database, path: Path | None) -> None:
    """The erasure is the newest row: an identity state that knows the job vouches for it too."""
    path = path or default_path(os.environ)
    if not path.exists():
        return
    job, head = writer.read(db, lambda conn: (chain.job_of(conn), chain.head(conn)))
    kept = State(writer, path)
    if kept.head(job) is not None:
        kept.put_head(job, head.seq, head.hash).wait()


@contextmanager
def _reading(journal: Path) -> Iterator[sqlite3.Connection]:
    """The journal, read only; what is no journal is wrong use."""
    try:
        with open_read_only(journal, JOURNAL) as conn:
            yield conn
    except StoreError as error:
        raise click.UsageError(str(error)) from error


def _state_head(job: str, path: Path | None) -> chain.Head | None:
    if path is None:
        path = default_path(os.environ)
        if not path.exists():
            return None
    try:
        with open_read_only(path, STATE) as conn:
            return read_head(conn, job)
    except StoreError as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def _written(output: Path | None) -> Iterator[IO[str]]:
    """Stdout, or a new file of mode 0600 that appears under its name when it is complete."""
    if output is None:
        yield sys.stdout
        return
    if output.exists():
        raise click.UsageError(f"{output} exists: name a file that does not.")
    part = output.with_name(output.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise click.UsageError(f"{part}: {error.strerror}: make its folder writable, or name another.") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            yield out
        part.rename(output)
    finally:
        part.unlink(missing_ok=True)


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"{text!r} is no time: write 2026-11-22 or 2026-11-22T20:00:00Z"
        raise click.BadParameter(message, param_hint="--before") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
