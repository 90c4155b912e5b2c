"""Runs one measurement by its name: `python -m bench rates --short`. Each is a module here with a `main(arguments)`.

`python -m bench all --short` runs those of the whole engine one after the other: what `make bench` does.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
from pathlib import Path

import bench
from bench.measure.report import MISSING, SHORT

ENGINE = (
    "schedule", "longtail", "zipf", "growth", "resume", "concurrency", "drain", "rates", "fairness", "outage",
)  # fmt: skip


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
    if arguments and arguments[0] in names():
        return _run(arguments[0], arguments[1:])
    if arguments:
        print(f"There is no measurement named {arguments[0]!r}; choose one of these:", file=sys.stderr)
    for name in names():
        first_line = (importlib.import_module(f"bench.{name}").__doc__ or "").strip().partition("\n")[0]
        print(f"{name:12} {first_line}")
    print(f"{'all':12} Those of the whole engine, one after the other: {', '.join(ENGINE)}")
    return 2 if arguments else 0


def run_all(arguments: list[str]) -> int:
    """Every measurement of the whole engine; the worst exit status, one that falls short before one that is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench all")
    parser.add_argument("--short", action="store_true", help="small sizes: under 10 minutes on 2 cores")
    parser.add_argument("--check", action="store_true", help="exit 1 when a claim falls short, 3 when one is missing")
    parser.add_argument("--json", type=Path, metavar="DIR", help="write each report there")
    chosen = parser.parse_args(arguments)
    if chosen.json:
        chosen.json.mkdir(parents=True, exist_ok=True)
    statuses, began = {}, time.monotonic()
    for name in ENGINE:
        given = ["--short"] * chosen.short + ["--check"]
        statuses[name] = _run(name, [*given, *(["--json", str(chosen.json / f"{name}.json")] if chosen.json else [])])
    said = {0: "met", SHORT: "SHORT", MISSING: "not all measured"}
    print(
        f"\n{time.monotonic() - began:.0f} s in all. " + ", ".join(f"{name}: {said[statuses[name]]}" for name in ENGINE)
    )
    worst = SHORT if SHORT in statuses.values() else max(statuses.values())
    return worst if chosen.check else 0


def _run(name: str, arguments: list[str]) -> int:
    result: int = importlib.import_module(f"bench.{name}").main(arguments)
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
