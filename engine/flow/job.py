"""The life of a job's journal: begun, resumed, refused; rows in and results out.

1. `--resume` goes on only with the same list, column, mode and mail settings; anything else is wrong use.
2. Whatever is wrong is said before anything is sent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from engine.core import classify as classifier
from engine.core.address import Address, BadAddress, parse
from engine.core.flags import flags
from engine.core.identity import Consent, Identity, Job
from engine.core.reasons import Stage
from engine.core.result import CatchAll, Result, of_reason
from engine.flow.intake import Intake, IntakeRow
from engine.flow.records import spoiled
from engine.store.job_tables import DISPOSABLE, FREE, ROLE, SETTLED, TAGGED, NewRow
from engine.store.journal import Journal
from engine.store.writer import Writer

CHUNK = 2000  # rows a transaction of intake
_dumped = json.JSONEncoder(ensure_ascii=False).encode  # of a string at a time: for a list it makes an encoder each time
_loaded = json.JSONDecoder().raw_decode  # of what was dumped here: nothing stands around it


class WrongUse(Exception):  # noqa: N818 - it is the caller's, not ours
    """The command can't be carried out as given; the message says what, where and what to do. Exit code 2."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """Addresses and domains that are never probed."""

    addresses: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()

    def covers(self, address: Address) -> bool:
        """Whether the address, its domain or a domain above it is on the list."""
        if not self.addresses and not self.domains:
            return False
        if address.normalized.casefold() in self.addresses:
            return True
        above = address.domain
        while above and above not in self.domains:
            above = above.partition(".")[2]
        return above != ""


def read_suppression(path: Path) -> Suppression:
    """One address or domain a line (`@domain` too), `#` for comments. Raises WrongUse naming file and line."""
    addresses, domains = set(), set()
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise WrongUse(f"{path}: the suppression list can't be read ({why}); give a text file in UTF-8.") from error
    for number, line in enumerate(lines, 1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        probe = entry if "@" in entry.lstrip("@") else f"postmaster@{entry.lstrip('@')}"
        found = parse(probe)
        if isinstance(found, BadAddress):
            raise WrongUse(f"{path}:{number}: '{entry}' is neither an address nor a domain.")
        if probe == entry:
            addresses.add(found.normalized.casefold())
        else:
            domains.add(found.domain)
    return Suppression(frozenset(addresses), frozenset(domains))


def check_journal(path: Path, writer: Writer, job: Job, *, resume: bool) -> bool:
    """Whether this job can have its journal at `path`, before anything is sent or touched; True where it goes on.

    Raises WrongUse where an unfinished journal is there without `resume`, or one that belongs to something else.
    """
    if not path.exists():
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise WrongUse(f"{path}: no journal can be written there; make the folder, or name another --journal.")
        return False
    journal = Journal(path, writer)
    try:
        known = journal.get("job")
        if known is None:  # killed before the job was in it: nothing is lost by beginning
            return False
        if resume:
            difference = _difference(known, job)
            if difference:
                raise WrongUse(f"{path}: this journal's job has another {difference}; start it anew without --resume.")
            return True
        if not journal.get("finished_at"):
            raise WrongUse(
                f"{path}: a job that is not finished is in this journal; go on with --resume, "
                "or remove the file to start anew."
            )
        return False
    finally:
        journal.close()


def open_job(path: Path, writer: Writer, job: Job, *, goes_on: bool, output: Path | None) -> tuple[Journal, Job, bool]:
    """The journal at `path` for this job, the job as it goes on, and whether its intake is whole.

    `goes_on` is what `check_journal` said. A finished journal makes room: it is renamed to OUTPUT.<job id>.journal.
    """
    journal = Journal(path, writer)
    known = journal.get("job")
    if known is not None and not goes_on:
        journal.close()
        path.rename(path.with_name(f"{(output or path).name}.{known['id']}.journal"))
        journal, known = Journal(path, writer), None
    if known is None:
        journal.begin(job.id)
        journal.put("job", _facts(job))
        return journal, job, False
    journal.begin(known["id"])
    if journal.get("finished_at"):
        journal.put("finished_at", None)
        journal.reopen()
    return journal, _job(known, job), bool(journal.get("sealed"))


def _facts(job: Job) -> dict[str, Any]:
    consent = job.consent
    return {
        "id": job.id, "mode": job.mode.value, "input": job.input_name, "sha256": job.input_sha256,
        "column": job.column, "mail": job.mail_settings,
        "consent": consent and {
            "reference": consent.reference, "granted_by": consent.granted_by, "purpose": consent.purpose,
            "granted_at": consent.granted_at.isoformat(),
            "expires": consent.expires.isoformat() if consent.expires else None,
        },
    }  # fmt: skip


def _job(known: dict[str, Any], now: Job) -> Job:
    """The job as it was begun, with the consent of today."""
    return Job(known["id"], now.mode, now.input_name, now.input_sha256, now.column, now.consent, now.mail_settings)


def _difference(known: dict[str, Any], job: Job) -> str:
    facts = _facts(job)
    names = {"sha256": "list", "column": "address column", "mode": "mode", "mail": "identity or mail setting"}
    return next((say for key, say in names.items() if known.get(key) != facts[key]), "")


def consent_of(known: dict[str, Any]) -> Consent | None:
    """The consent record that a journal keeps."""
    record = known.get("consent")
    if not record:
        return None
    expires = record["expires"]
    return Consent(
        record["reference"], record["granted_by"], datetime.fromisoformat(record["granted_at"]), record["purpose"],
        datetime.fromisoformat(expires) if expires else None,
    )  # fmt: skip


def take_in(intake: Intake, journal: Journal, suppression: Suppression) -> int:
    """SG1: read the whole input into the journal, judge each address, collapse duplicates; says how many rows."""
    total = 0
    for chunk in _chunks(intake.rows()):
        journal.add_rows([new_row(row, suppression) for row in chunk])
        total += len(chunk)
    journal.put("header", list(intake.header))
    journal.put("format", intake.format)
    journal.put("sealed", total)
    return total


def _chunks(rows: Iterator[IntakeRow]) -> Iterator[tuple[IntakeRow, ...]]:
    while chunk := tuple(islice(rows, CHUNK)):
        yield chunk


def new_row(row: IntakeRow, suppression: Suppression) -> NewRow:
    """SG1: an input row as the journal takes it in."""
    cells = f"[{','.join(map(_dumped, row.cells))}]"
    if spoiled(cells):  # bytes that are no text can't be stored but as escapes
        cells = json.dumps(row.cells)
    if row.problem:
        return NewRow(row.n, cells, row.text, f"?{row.problem}:{row.text}", reason="syntax_invalid", detail=row.problem)
    address = parse(row.text)
    if isinstance(address, BadAddress):
        return NewRow(row.n, cells, row.text, f"!{row.text}", reason=address.reason, detail=address.detail)
    found = flags(address)
    bits = ROLE * found.role | DISPOSABLE * found.disposable | FREE * found.free | TAGGED * found.tagged
    reason = "suppressed_local" if suppression.covers(address) else ""
    return NewRow(
        row.n, cells, row.text, address.normalized, address.local, address.domain, bits, found.suggestion, reason,
        stage=Stage.NONE,
    )  # fmt: skip


def verdict_of(row: dict[str, Any], open_as: str = "cancelled") -> dict[str, Any]:
    """The columns of a journal row's Result; one that is not settled is no verdict, and gets the reason `open_as`."""
    bits = row["flags"]
    return of_reason(row["reason"] if row["state"] >= SETTLED else open_as) | {
        "address": row["row_text"], "normalized": "" if row["domain_id"] is None else row["key"],
        "detail": row["detail"], "stage": row["stage"], "probed": bool(row["probed"]), "provider": row["provider"],
        "mx_host": row["mx_host"], "mx_ip": row["mx_ip"], "source_ip": row["source_ip"], "smtp_code": row["code"],
        "enhanced_code": row["enhanced"], "smtp_text": row["text"], "catch_all": row["catch_all"],
        "role": bool(bits & ROLE), "disposable": bool(bits & DISPOSABLE), "free": bool(bits & FREE),
        "tagged": bool(bits & TAGGED), "suggestion": row["suggestion"], "attempts": row["attempts"],
        "checked_at": row["checked_at"], "duration_ms": row["duration_ms"],
        "classifier_version": classifier.VERSION, "policy": row["policy"],
    }  # fmt: skip


def result_of(row: dict[str, Any], open_as: str = "cancelled") -> Result:
    """A journal row as its Result."""
    found = verdict_of(row, open_as)
    found["stage"], found["catch_all"] = Stage(found["stage"]), CatchAll(found["catch_all"])
    return Result(**found)


def results(journal: Journal) -> Iterator[tuple[tuple[str, ...], Result]]:
    """(the caller's cells, result) of every row in input order."""
    for row in journal.rows():
        yield cells_of(row), result_of(row)


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The caller's own cells of a journal row."""
    return tuple(_loaded(row["cells"])[0])


def mail_settings(identities: Sequence[Identity]) -> dict[str, str]:
    """What must be the same when a job goes on: greylisting and budgets are bound to it."""
    if not identities:
        return {}
    return {
        "helo_name": ",".join(identity.helo_name for identity in identities),
        "mail_from": ",".join(identity.mail_from for identity in identities),
        "public_address": ",".join(identity.key for identity in identities),
    }
