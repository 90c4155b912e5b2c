"""Runs `engine verify` as an operator does: a list, policy files, an identity file, the console command.

1. Each run has a folder of its own with everything in it; the state and journal of one are what a resume goes on with.
2. Policies layer over the shipped set, as `--policies` does.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from bench.measure import compiled
from bench.measure.watch import Running, Spent
from bench.world import World
from bench.world.dns import free_port

STOPPED = 1  # the exit status of a run that was stopped and can be resumed
LIFTED: dict[str, Any] = {"sessions": None, "refusals": None}
# A lane that no limit of ours holds back: what the engine itself can do.
UNLIMITED: dict[str, Any] = {
    "sessions": {"concurrency": 1000, "rate": "100000/s", "burst": 10},
    "recipients": {"rate": "100000/s..100000/s", "per_session": 50, "per_transaction": 20},
    "refusals": {"per_session": 20, "rate": "100000000/h..100000000/h"},
}
QUICK: dict[str, Any] = {  # ladders and time-outs of a world in which nothing is far away
    "timeouts": {"connect": "30s", "greeting": "60s", "command": "60s", "session": "5m"},
    "retry": {"greylist": ["2s", "4s"], "tempfail": ["2s", "4s"], "give_up": "60s"},
}


@dataclass(slots=True)
class Setup:
    """One list to verify against a world; `limits` are the identity's (None: as shipped)."""

    folder: Path
    world: World
    addresses: Iterable[str]
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limits: Mapping[str, Any] | None = None
    concurrency: int = 500
    more: tuple[str, ...] = ()  # further options of `engine verify`
    plain: bool = False  # as its sources stand, also where the compiled engine is in use

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "policies").mkdir(exist_ok=True)
        with self.list.open("w", encoding="utf-8") as file:
            file.write("email\n")
            file.writelines(f"{each}\n" for each in self.addresses)
        for name, fields in self.policies.items():
            text = yaml.safe_dump({"provider": name, **fields})
            (self.folder / "policies" / f"{name}.yaml").write_text(text, encoding="utf-8")
        identity: dict[str, Any] = {
            "name": "bench", "helo_name": "probe.lab", "mail_from_address": "probe@probe.lab",
            "public_address": "127.0.0.1",
        }  # fmt: skip
        if self.limits is not None:
            identity["limits"] = dict(self.limits)
        (self.folder / "identity.yaml").write_text(yaml.safe_dump(identity), encoding="utf-8")

    @property
    def list(self) -> Path:
        """The input."""
        return self.folder / "list.csv"

    @property
    def first(self) -> str:
        """The first address of the list."""
        with self.list.open(encoding="utf-8") as file:
            file.readline()
            return file.readline().strip()

    @property
    def output(self) -> Path:
        """Where the rows go."""
        return self.folder / "out.csv"

    @property
    def journal(self) -> Path:
        """The job's journal."""
        return self.folder / "out.csv.journal"

    def command(self, *more: str) -> list[str]:
        """The command line."""
        folder = self.folder
        return [
            sys.executable, "-m", "engine", "verify", str(self.list), "-o", str(self.output), "--mode", "enhanced",
            "--consent", "BENCH-1", "--consent-by", "the bench", "--identity", str(folder / "identity.yaml"),
            *(("--policies", str(folder / "policies")) if self.policies else ()),
            "--state", str(folder / "state" / "state.db"),
            "--dns", self.world.dns, "--smtp-port", str(self.world.smtp_port), "--allow-private",
            "--concurrency", str(self.concurrency), *self.more, *more,
        ]  # fmt: skip

    def start(self, *more: str) -> Running:
        """Start it."""
        return Running(self.command(*more), self.folder, compiled.plain() if self.plain else None)

    def run(self, *more: str, tick: Callable[[], object] = lambda: None, limit_s: float = 3600.0) -> Spent:
        """Run it to its end, which has to be a good one."""
        return accepted(self.start(*more).until_done(tick, limit_s=limit_s))

    def rows(self) -> list[dict[str, str]]:
        """What it wrote; where it was stopped, what was settled by then."""
        part = self.output.with_name(self.output.name + ".part")
        with (part if part.exists() else self.output).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def audit(self) -> list[dict[str, Any]]:
        """Its audit, by `engine audit export`."""
        exported = self.folder / "audit.jsonl"
        exported.unlink(missing_ok=True)
        command = [sys.executable, "-m", "engine", "audit", "export", str(self.journal), "-o", str(exported)]
        subprocess.run(command, check=True, capture_output=True)
        with exported.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def accepted(spent: Spent, *statuses: int) -> Spent:
    """A run that ended as it should, with exit 0 or one of these; raises RuntimeError with its last words otherwise."""
    if spent.exit not in (0, *statuses):
        raise RuntimeError(f"engine verify ended with exit {spent.exit}: {spent.stderr[-500:]}")
    return spent


def moves(spent: Spent) -> list[dict[str, Any]]:
    """What the engine logged, with `at` in Unix time."""
    found = []
    for line in spent.stderr.splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "timestamp" in row:
                row["at"] = datetime.fromisoformat(row["timestamp"]).timestamp()
                found.append(row)
    return found


class HubLag:
    """Scrapes the hub's lag while a run lasts: pass `options` to it and call `tick` now and then."""

    NAME = "engine_hub_lag_seconds"

    def __init__(self) -> None:
        self._port = free_port()
        self.options = ("--metrics", f"127.0.0.1:{self._port}")
        self.buckets: dict[float, float] = {}
        self._before: dict[float, float] = {}

    def tick(self) -> None:
        """Read the histogram; a run that does not answer yet, or any more, changes nothing."""
        with suppress(OSError, ValueError):
            address = f"http://127.0.0.1:{self._port}/metrics"
            with urllib.request.urlopen(address, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
            head = f'{self.NAME}_bucket{{le="'
            self.buckets = {
                float(line[len(head) :].partition('"')[0]): float(line.rpartition(" ")[2])
                for line in lines
                if line.startswith(head)
            }

    def mark(self) -> None:
        """Count from here on: what was before is another phase."""
        self.tick()
        self._before = dict(self.buckets)

    def quantile(self, share: float) -> float | None:
        """The upper bound of the bucket that holds this share of the beats, in seconds; None without any."""
        counts = {bound: count - self._before.get(bound, 0.0) for bound, count in self.buckets.items()}
        total = counts.get(float("inf"), 0.0)
        if not total:
            return None
        return next(bound for bound in sorted(counts) if counts[bound] >= share * total)
