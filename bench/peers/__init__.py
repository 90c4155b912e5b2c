"""What the engine is measured against. Each peer is a module here, and runs as a process of its own.

A peer has `main(arguments)`: it takes the list and the options of `peer_options`, asks every address of the list once,
and prints one JSON object, {"addresses": ..., "answered": ...}. `missing()` says in one sentence why it can't run here;
empty when it can. `NAME` is how reports call it. Nothing of a peer's work is left out of its CPU: it resolves the MX of
each domain itself, once a domain, and dials each address anew.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from bench.measure.watch import Running, Spent
from bench.world import World

PEERS = ("bare", "smtplib_gevent")


def peers(names: Sequence[str] = PEERS) -> Iterator[ModuleType]:
    """The peers of these names."""
    for name in names:
        yield importlib.import_module(f"bench.peers.{name}")


def peer_options() -> argparse.ArgumentParser:
    """What every peer is told."""
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


def run(peer: ModuleType, listed: Path, world: World, folder: Path, concurrency: int) -> tuple[Spent, dict[str, int]]:
    """Run a peer on a list; what it used, and what it says of itself."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", peer.__name__, str(listed), "--dns", world.dns, "--port", str(world.smtp_port),
        "--concurrency", str(concurrency),
    ]  # fmt: skip
    spent = Running(command, folder).until_done()
    if spent.exit:
        raise RuntimeError(f"{peer.NAME} failed: {spent.stderr[-500:]}")
    said: dict[str, int] = json.loads(spent.stdout)
    return spent, said
