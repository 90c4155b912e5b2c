"""Whole verifications against a lab, and what its log says of them.

1. `verify(lab, rows, ...)` is one run of `Verification` in this process: what it returns was read back from its files.
2. Each test has a state of its own, unless it hands one on: what one test learns binds no other.
3. The lab's log is the judge of what was asked; a run sees only the rows that were logged since it began.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import gevent
import pytest
import yaml

from engine.core.identity import Consent, Mode
from engine.core.policy import PolicySet
from engine.flow.intake import open_intake
from engine.flow.policies import load_policies
from engine.flow.verification import Request, Verification
from engine.identity_file import load_identity
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

LAB = SHIPPED.parent
CONSENT = Consent("TICKET-7", "A. Owner", datetime(2026, 1, 1, tzinfo=UTC))
RUN_LIMIT_S = 90.0  # a run that takes longer hangs: the test says so instead of waiting for ever
_RCPT = re.compile(r"RCPT TO:<([^>]*)>", re.IGNORECASE)
_MAIL = re.compile(r"MAIL FROM:<([^>]*)>", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """One RCPT in the lab's log, with the reply that it got (empty: none)."""

    t: float
    session: int
    host: str
    recipient: str
    reply: str
    transaction: int


class Log:
    """The lab's log since a moment, read as a mail server's operator reads his."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = rows

    @property
    def asked(self) -> list[Asked]:
        """Every RCPT in order of time."""
        found: list[Asked] = []
        transactions: Counter[int] = Counter()
        open_questions: dict[int, int] = {}  # session -> place of its RCPT that has no reply yet
        for row in self.rows:
            session = row["session"]
            if row["event"] == "reply" and session in open_questions:
                place = open_questions.pop(session)
                found[place] = replace(found[place], reply=row["text"])
            if row["event"] != "command":
                continue
            transactions[session] += bool(_MAIL.match(row["text"]))
            if match := _RCPT.match(row["text"]):
                open_questions[session] = len(found)
                found.append(Asked(row["t"], session, row["host"], match[1], "", transactions[session]))
        return found

    def recipients(self, domain: str = "") -> list[str]:
        """Whom RCPT named, in order of time; of one domain, or of all."""
        return [one.recipient for one in self.asked if not domain or one.recipient.endswith(f"@{domain}")]

    def sessions(self, host: str = "") -> list[int]:
        """The sessions with a host (a name's end), or with all."""
        return [row["session"] for row in self.rows if row["event"] == "connect" and row["host"].endswith(host)]

    @property
    def commands(self) -> list[str]:
        """Every command line of every session."""
        return [row["text"] for row in self.rows if row["event"] == "command"]

    @property
    def senders(self) -> set[str]:
        """Whom MAIL FROM named."""
        return {match[1] for text in self.commands if (match := _MAIL.match(text))}

    def peak(self, host: str) -> int:
        """The most sessions that were open at a host together."""
        steps = {"connect": 1, "close": -1}
        moves = [steps[row["event"]] for row in self.rows if row["event"] in steps and row["host"].endswith(host)]
        return max(itertools.accumulate(moves), default=0)


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    done: bool
    rows: list[dict[str, Any]]  # of OUTPUT, or of OUTPUT.part where the run was stopped
    log: Log
    journal: Path
    output: Path
    state: Path
    verification: Verification

    def row(self, address: str) -> dict[str, Any]:
        """The one row of an address."""
        (found,) = (row for row in self.rows if row["address"] == address)
        return found

    @property
    def reasons(self) -> dict[str, str]:
        """Reason by address."""
        return {row["address"]: row["reason"] for row in self.rows}

    def having(self, key: str, value: Any) -> set[str]:
        """The addresses of all rows with that value."""
        return {row["address"] for row in self.rows if row[key] == value}

    def controls(self, domain: str) -> list[str]:
        """Recipients at a domain that are not on the list: what the engine made up, or postmaster."""
        listed = {row["normalized"] for row in self.rows}
        return [each for each in self.log.recipients(domain) if each not in listed]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """What the journal holds."""
        with closing(sqlite3.connect(f"file:{self.journal}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()


@cache
def _policies(layers: tuple[str, ...]) -> Any:
    return load_policies([LAB / "policies", *map(Path, layers)])


class Verify:
    """Runs lists against a lab; `policies` are fields of policy files over the lab's, by provider."""

    def __init__(self, folder: Path, layers: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> None:
        self.folder = folder
        self._layers = layers
        self._runs = 0

    def __call__(
        self,
        lab: LabProcess,
        rows: Iterable[str] | Path,
        *,
        policies: Mapping[str, Mapping[str, Any]] | None = None,
        policy_set: PolicySet | None = None,
        mode: Mode = Mode.ENHANCED,
        output: str = "",
        state: Path | None = None,
        journal: Path | None = None,
        column: str | None = None,
        stop_when: Callable[[Verification], bool] | None = None,
        **changes: Any,
    ) -> Outcome:
        self._runs += 1
        path = rows if isinstance(rows, Path) else self.folder / "list.txt"
        if not isinstance(rows, Path):
            path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        out = self.folder / (output or f"out-{self._runs}.jsonl")
        journal = journal or out.with_name(f"{out.name}.journal")
        state = state or self.folder / "state" / "state.db"
        since = time.monotonic()
        with open_intake(path, column) as intake:
            found = policy_set or _policies(self._layers(policies or {}))
            given: dict[str, Any] = {
                "intake": intake, "mode": mode, "policies": found, "journal": journal,
                "state": state, "output": out, "identities": load_identity(LAB / "identity.yaml"), "consent": CONSENT,
                "dns": (lab.dns,), "smtp_port": lab.smtp_port, "allow_private": True,
            }  # fmt: skip
            if "identity" in changes:
                changes["identities"] = tuple(filter(None, [changes.pop("identity")]))
            with Verification(Request(**(given | changes))) as verification:
                done = _within_the_limit(verification, stop_when)
        log = Log([row for row in lab.log() if row["t"] >= since])
        shown = out if done else out.with_name(f"{out.name}.part")
        found = _read(shown) if shown.exists() and out.suffix != ".csv" else []
        return Outcome(done, found, log, journal, out, state, verification)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _within_the_limit(verification: Verification, stop_when: Callable[[Verification], bool] | None) -> bool:
    """Run it, stopped where that is asked for; a run that hangs is stopped and fails its test."""
    late: list[str] = []

    def watch() -> None:
        ends = time.monotonic() + RUN_LIMIT_S
        while time.monotonic() < ends:
            if stop_when is not None and verification.job is not None and stop_when(verification):
                verification.stop()
                return
            gevent.sleep(0.005)
        late.append(repr(verification.watch()))
        verification.stop()

    watcher = gevent.spawn(watch)
    try:
        done = verification.run()
    finally:
        watcher.kill()
    assert not late, f"the run had not ended after {RUN_LIMIT_S:g} s: {late[0]}"
    return done


@pytest.fixture
def verify(tmp_path: Path, policy_layers: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> Verify:
    """Runs a list against a lab in this process."""
    return Verify(tmp_path, policy_layers)


@pytest.fixture(scope="session")
def policy_layers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """Policy files of {provider: fields}, each set written once a session."""
    written: dict[str, tuple[str, ...]] = {}

    def layers(policies: Mapping[str, Any]) -> tuple[str, ...]:
        if not policies:
            return ()
        key = json.dumps(policies, sort_keys=True)
        if key not in written:
            folder = tmp_path_factory.mktemp("policies")
            for name, fields in policies.items():
                (folder / f"{name}.yaml").write_text(yaml.safe_dump({"provider": name, **fields}), encoding="utf-8")
            written[key] = (str(folder),)
        return written[key]

    return layers


@pytest.fixture
def states() -> Callable[[Path], dict[str, tuple[int, str]]]:
    """Reads from a journal each address's state and reason."""

    def read(journal: Path) -> dict[str, tuple[int, str]]:
        with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
            return {
                key: (state, reason)
                for key, state, reason in connection.execute("SELECT key, state, reason FROM addresses")
            }

    return read


@pytest.fixture(scope="session")
def addresses_of() -> Callable[..., Iterator[str]]:
    """`u01@domain` ... for so many addresses."""

    def make(domain: str, count: int, prefix: str = "u") -> Iterator[str]:
        return (f"{prefix}{number:04}@{domain}" for number in range(1, count + 1))

    return make
