"""The engine as `make compiled` leaves it in build/compiled: what is measured where it is there, and fits.

1. It fits the Python that built it, and the sources as they were then. Where it does not, the plain sources are run,
   and the report says so.
2. What is compiled has to come before the checkout on the way to `engine`, here and in every process that we start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILED = ROOT / "build" / "compiled"
PLAIN = "--plain"  # the option of `python -m bench` that leaves it alone


def missing(compiled: Path = COMPILED, sources: Path = ROOT) -> str:
    """Why it can't be measured; empty where it can."""
    built = compiled / "built"
    if not built.exists():
        return "not built: make compiled"
    suffix = EXTENSION_SUFFIXES[0]
    if not (compiled / "engine" / "core" / f"lane{suffix}").exists():
        return "built by another Python: make compiled"
    found = [sources / "setup.py", *(sources / "engine").rglob("*"), *(sources / "policies").rglob("*")]
    changed = [path.stat().st_mtime for path in found if path.is_file() and path.suffix != ".pyc"]
    if max(changed) > built.stat().st_mtime:
        return "older than its sources: make compiled"
    return ""


def use() -> None:
    """From here on `engine` is the compiled one, in this process and those that it starts."""
    sys.path.insert(0, str(COMPILED))
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (COMPILED, ROOT)))
    os.environ["PYTHONSAFEPATH"] = "1"  # or a process's folder would come first


def used(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `use` was called, here or in a process above."""
    return environ.get("PYTHONPATH", "").split(os.pathsep)[0] == str(COMPILED)


def plain() -> dict[str, str]:
    """The environment of a process in which `engine` is the plain one again."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}
