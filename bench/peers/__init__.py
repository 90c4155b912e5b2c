"""What the engine is measured against; each peer is a process of its own that asks a list.

1. A peer says in one sentence why it can't run here (`missing`, empty when it can): it is then named in the report, and
   what depends on it is neither passed nor failed.
2. Those of other people are unmodified, at their defaults but for sender, HELO name and time-outs, driven by a few
   lines that keep so many checks open. They know no ports but 25 and 53, so they need the world's namespace.
3. Ours (the floor, smtplib, aiosmtplib) ask the MX of a domain once and dial every address anew. All of that is in
   a peer's CPU, and so is reading the list.
4. A peer prints one JSON object, {"addresses": ..., "answered": ...}; what it asked is counted by the world.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.measure.watch import Running, Spent
from bench.peers.build import Build
from bench.world import World

MODULES = (
    "bare", "smtp_source", "smtplib_gevent", "aiosmtplib_uvloop", "deep_email_validator", "devmehq_email_validator",
    "aftership_email_verifier", "check_if_email_exists",
)  # fmt: skip
LIMIT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Task:
    """A list to ask, and where."""

    listed: Path
    world: World
    concurrency: int


@dataclass(frozen=True, slots=True)
class Peer:
    """One contestant. `group` is what requirements name: floor, c, python, npm, go or rust."""

    name: str
    group: str
    command: Callable[[Task], list[str]]
    missing: Callable[[], str] = lambda: ""
    build: Build | None = None
    version: Callable[[], str] = lambda: ""
    unmodified: bool = False  # asks port 25 and port 53, and nothing else
    verifier: bool = True  # asks the addresses of the list; one that doesn't is no measure of an address


class PeerError(Exception):
    """A peer that ended badly or did not end."""


def peers() -> Iterator[Peer]:
    """All there are."""
    for name in MODULES:
        peer: Peer = importlib.import_module(f"bench.peers.{name}").PEER
        yield peer


def of_python(module: str) -> Callable[[Task], list[str]]:
    """The command of a peer that is a module here."""

    def command(task: Task) -> list[str]:
        world = task.world
        return [
            sys.executable, "-m", module, str(task.listed), "--dns", world.dns, "--port", str(world.smtp_port),
            "--concurrency", str(task.concurrency),
        ]  # fmt: skip

    return command


def peer_options() -> argparse.ArgumentParser:
    """What every peer of ours is told."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.NAME")
    parser.add_argument("list", type=Path)
    parser.add_argument("--dns", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=200)
    return parser


def addresses(path: Path) -> list[str]:
    """The first column of a list."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row[0] for row in csv.reader(file)][1:]


def run(peer: Peer, task: Task, folder: Path) -> tuple[Spent, int]:
    """Run a peer on a list; what it used, and how many addresses it says it has an answer for.

    Raises:
        PeerError: it ended badly, or not within LIMIT_S.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spent = Running(peer.command(task), folder).until_done(limit_s=LIMIT_S)
    if spent.exit:
        raise PeerError(f"it ended with exit {spent.exit} after {spent.wall_s:.0f} s: {spent.stderr[-300:].strip()}")
    return spent, int(json.loads(spent.stdout)["answered"]) if peer.verifier else 0
