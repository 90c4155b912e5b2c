"""Which engine a bench measures."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from bench.measure import compiled


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with a build that fits it."""
    sources, built = tmp_path / "engine" / "core", tmp_path / "build" / "compiled"
    (built / "engine" / "core").mkdir(parents=True)
    sources.mkdir(parents=True)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "gmail.yaml").touch()
    for path in (
        tmp_path / "setup.py",
        sources / "lane.py",
        built / "engine" / "core" / f"lane{EXTENSION_SUFFIXES[0]}",
    ):
        path.touch()
    (built / "built").touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (1000.0, 1000.0))
    return tmp_path


def missing(tree: Path) -> str:
    return compiled.missing(tree / "build" / "compiled", tree)


def test_a_build_that_fits_is_taken(tree: Path) -> None:
    """Made by this Python, and after the last change."""
    assert missing(tree) == ""


@pytest.mark.parametrize("changed", ["setup.py", "engine/core/lane.py", "policies/gmail.yaml"])
def test_a_build_older_than_its_sources_is_not_measured(tree: Path, changed: str) -> None:
    """It would show what the code no longer is."""
    os.utime(tree / changed, (2000.0, 2000.0))
    assert missing(tree) == "older than its sources: make compiled"


def test_a_build_by_another_python_is_not_measured(tree: Path) -> None:
    """This one would run the plain modules beside it."""
    (tree / "build" / "compiled" / "engine" / "core" / f"lane{EXTENSION_SUFFIXES[0]}").unlink()
    assert missing(tree) == "built by another Python: make compiled"


def test_a_build_that_did_not_end_is_none(tree: Path) -> None:
    """The mark is set last."""
    (tree / "build" / "compiled" / "built").unlink()
    assert missing(tree) == "not built: make compiled"


def test_what_is_in_use_is_what_processes_get(tmp_path: Path) -> None:
    """`use` reaches them, whatever folder they start in; the environment of `plain` takes it back."""
    script = """
import os, subprocess, sys
from pathlib import Path
from bench.measure import compiled
compiled.COMPILED = Path(sys.argv[1])
asked = [sys.executable, "-c", "import engine; print(engine.__file__)"]
assert not compiled.used()
compiled.use()
assert compiled.used()
for environment in (None, compiled.plain()):
    print(subprocess.run(asked, env=environment, cwd=compiled.ROOT, check=True, capture_output=True, text=True).stdout)
"""
    made = tmp_path / "engine" / "__init__.py"
    made.parent.mkdir()
    made.touch()
    environment = {**os.environ, "PYTHONPATH": str(compiled.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment, cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(made), str(compiled.ROOT / "engine" / "__init__.py")]
