"""Writes the pages that are made from the code: `python docs/made`; `--check` writes none, names the stale, exits 1.

One row of PAGES is one file. Nothing in it may depend on the machine, the time or the folder that it is made in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import command_reference
import modules

from engine import families
from engine.cli import reasons

DOCS = Path(__file__).parents[1]
PAGES: Mapping[str, Callable[[], str]] = {
    "command-reference.md": command_reference.page,
    "metrics.md": families.reference,
    "modules.md": modules.page,
    "modules.svg": modules.diagram,
    "reasons.md": reasons.markdown,
}


def main(arguments: list[str]) -> int:
    """Write them all, or say which are stale."""
    stale = [name for name, make in PAGES.items() if not _same(DOCS / name, make())]
    if arguments == ["--check"]:
        for name in stale:
            print(f"docs/{name} is not what the code says: run `make docs` and commit it")
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(PAGES[name](), "utf-8")
        print(f"docs/{name}")
    return 0


def _same(file: Path, text: str) -> bool:
    return file.exists() and file.read_text("utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
