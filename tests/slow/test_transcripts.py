"""What README and quick start show of a run is what a run prints: those transcripts that take their time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README, QUICK_START = ROOT / "README.md", ROOT / "docs" / "quick-start.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def transcript(page: Path, command: str) -> str:
    """What the page says that the command prints; the command's line is there once."""
    blocks = [block for kind, block in FENCED.findall(page.read_text("utf-8")) if kind == "console"]
    (found,) = [block for block in blocks if block.startswith(f"$ {command}\n")]
    return found.partition("\n")[2].strip()


def prints(command: str, folder: Path) -> str:
    """What it prints, as a newcomer types it."""
    homes = dict.fromkeys(("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"), str(folder))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | homes | {"PATH": path}, stdout=subprocess.PIPE, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def says(told: str, printed: str) -> None:
    """The same, where `...` may be anything."""
    assert re.fullmatch(re.escape(told).replace(re.escape("..."), ".*"), printed, re.DOTALL), printed


def test_the_list_comes_out_as_both_pages_say(tmp_path: Path) -> None:
    """The list is the page's own, and so are the columns that it cuts out."""
    listed = {
        block
        for page in (README, QUICK_START)
        for kind, block in FENCED.findall(page.read_text("utf-8"))
        if kind == "csv"
    }
    (text,) = listed
    (tmp_path / "list.csv").write_text(text, "utf-8")
    command = "engine verify list.csv -o out.csv --mode enhanced --lab"
    printed = prints(command, tmp_path)
    says(transcript(README, command), printed)
    says(transcript(QUICK_START, command), printed)
    cut = "cut -d, -f1,2,5,6,8,9,17,18,19 out.csv"
    says(transcript(README, cut), prints(cut, tmp_path))


def test_the_demonstration_ends_as_the_readme_says(tmp_path: Path) -> None:
    """The counts that are shown are the same each time; the others stand where the page has `...`."""
    says(transcript(README, "engine lab demo"), prints("engine lab demo", tmp_path))
