"""Runs one measurement by its name: `python -m bench replies FILE`. Each is a module here with a `main(arguments)`."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench


def names() -> list[str]:
    """Every measurement there is: the modules here; packages are what they are made of."""
    return sorted(
        found.name
        for found in pkgutil.iter_modules(bench.__path__)
        if not found.ispkg and not found.name.startswith("_")
    )


def main(arguments: list[str]) -> int:
    """Dispatch; without a known name list what there is and exit 2 (0 when nothing was asked)."""
    if arguments and arguments[0] in names():
        result: int = importlib.import_module(f"bench.{arguments[0]}").main(arguments[1:])
        return result
    if arguments:
        print(f"There is no measurement named {arguments[0]!r}; choose one of these:", file=sys.stderr)
    for name in names():
        first_line = (importlib.import_module(f"bench.{name}").__doc__ or "").strip().partition("\n")[0]
        print(f"{name:12} {first_line}")
    return 2 if arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
