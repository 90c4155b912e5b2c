"""Runs one measurement by its name: `python -m bench rates --short`. Each is a module here with a `main(arguments)`.

`python -m bench all --short` runs those of the whole engine one after the other: what `make bench` does.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import bench
from bench.measure import compiled
from bench.measure.report import MISSING, SHORT

ENGINE = (
    "schedule", "dns", "longtail", "zipf", "growth", "resume", "concurrency", "tls", "drain", "rates", "fairness",
    "outage",
)  # fmt: skip
INSTRUCTIONS = ("hotpaths",)  # counted in Python code, which compiled code is not
LIMIT_S = 6 * 3600  # of one measurement
BROKE = 70

TEACHING = """
Options that (nearly) all of them take; `python -m bench NAME --help` has the rest:
  --short       small sizes, as `make bench` runs them
  --check       exit 1 when a requirement falls short, 3 when something is missing (a peer, a tool): what is
                absent is neither passed nor failed; else 0
  --json FILE   the report with the machine, versions and the points of its pictures
  --plots DIR   pictures as SVG: throughput and memory against concurrency, latency, cost against list size
  --keep DIR    leaves lists, journals, outputs and logs there
  --plain       the engine as its sources stand; without it, what `make compiled` made of them, where that is fresh

What it takes:
  pip install --group bench     uvloop for a fast world, matplotlib, aiosmtplib
  .ci/fetch-mtas                NSD for the zones and Postfix's smtp-source, unpacked into .cache/mtas
  python -m bench.peers         fetches and builds the npm, Go and Rust peers, where npm, go and cargo are there
  root, or user namespaces      unmodified peers know no ports but 25 and 53; longtail and zipf run in a network
                                namespace for them, which the kernel removes at the end

How to read it: CPU is user and system time of all processes of a contestant, over the addresses of the list; ratios
within one run hold on any machine, figures only on the one that the report names. The world is a process of its own,
and each report says what it could have served at most.
"""


def names() -> list[str]:
    """Every measurement there is: the modules here; packages are what they are made of."""
    return sorted(
        found.name
        for found in pkgutil.iter_modules(bench.__path__)
        if not found.ispkg and not found.name.startswith("_")
    )


def main(arguments: list[str]) -> int:
    """Dispatch; without a known name list what there is and exit 2 (0 when nothing was asked)."""
    if arguments[:1] == ["all"]:
        return run_all(arguments[1:])
    if compiled.PLAIN in arguments:
        arguments = [each for each in arguments if each != compiled.PLAIN]
    elif arguments and arguments[0] not in INSTRUCTIONS and not compiled.missing():
        compiled.use()
    if arguments and arguments[0] in names():
        result: int = importlib.import_module(f"bench.{arguments[0]}").main(arguments[1:])
        return result
    helping = arguments[:1] in (["--help"], ["-h"])
    if helping:
        print("python -m bench NAME [--short] [--check] [--json FILE] [--plots DIR] ...\n")
    elif arguments:
        print(f"There is no measurement named {arguments[0]!r}; choose one of these:", file=sys.stderr)
    for name in names():
        first_line = (importlib.import_module(f"bench.{name}").__doc__ or "").strip().partition("\n")[0]
        print(f"{name:12} {first_line}")
    print(f"{'all':12} Those of the whole engine, one after the other: {', '.join(ENGINE)}")
    if helping:
        print(TEACHING.rstrip())
    return 2 if arguments and not helping else 0


def run_all(arguments: list[str]) -> int:
    """Every measurement of the whole engine; the worst exit status, one that falls short before one that is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench all")
    parser.add_argument("--short", action="store_true", help="small sizes: under 10 minutes on 2 cores")
    parser.add_argument("--check", action="store_true", help="exit 1 when a claim falls short, 3 when one is missing")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write each report there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw all pictures there")
    parser.add_argument(compiled.PLAIN, action="store_true", help="the engine as its sources stand")
    chosen = parser.parse_args(arguments)
    if chosen.json:
        chosen.json.mkdir(parents=True, exist_ok=True)
    statuses, seconds = {}, {}
    for name in ENGINE:
        given = ["--check", *(["--short"] if chosen.short else []), *([compiled.PLAIN] if chosen.plain else [])]
        given += ["--json", str(chosen.json / f"{name}.json")] if chosen.json else []
        given += ["--plots", str(chosen.plots)] if chosen.plots else []
        began = time.monotonic()
        statuses[name] = _alone(name, given)
        seconds[name] = time.monotonic() - began
    said = {0: "met", SHORT: "SHORT", MISSING: "not all measured"}
    print(f"\n{sum(seconds.values()):.0f} s in all")
    for name, status in statuses.items():
        print(f"  {name:12} {seconds[name]:5.0f} s  {said.get(status, f'BROKE (exit {status})')}")
    worst = max((status for status in statuses.values() if status not in said), default=0)
    worst = worst or (SHORT if SHORT in statuses.values() else max(statuses.values()))
    return worst if chosen.check else 0


def _alone(name: str, arguments: list[str]) -> int:
    """In a process of its own, so that none inherits memory, limits or the network namespace of another."""
    try:
        return subprocess.run(
            [sys.executable, "-m", "bench", name, *arguments], check=False, timeout=LIMIT_S
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"{name} did not end within {LIMIT_S} s", file=sys.stderr)
        return BROKE


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, AssertionError) as error:  # no verdict: neither met nor short
        print(f"The measurement broke: {error}", file=sys.stderr)
        sys.exit(BROKE)
