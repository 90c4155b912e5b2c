"""Laws of `engine monitor --once`: exit codes tell clean, listed, not checked and failed apart, for cron and CI."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

LISTS = SHIPPED.with_name("lists.yaml")


@pytest.fixture(scope="module")
def lab() -> Iterator[LabProcess]:
    with LabProcess(log=False) as running:
        yield running


def once(folder: Path, dns: tuple[str, int], target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The monitor in a process of its own, over these settings."""
    config = folder / "engine.yaml"
    config.write_text(
        f"monitor: {{targets: ['{target}']}}\n"
        "rbl: {spamhaus: {public_mirror: I am entitled}}\n"
        f"state: {folder / 'state.db'}\n"
    )
    command = [sys.executable, "-m", "engine", "monitor", "--once", "--config", str(config)]
    asked = ["--dns", f"{dns[0]}:{dns[1]}", *arguments]
    return subprocess.run([*command, *asked], capture_output=True, text=True, timeout=120, check=False)


def test_everything_clean_exits_0(tmp_path: Path) -> None:
    """The lab's own identity is on no list of the lab."""
    command = [sys.executable, "-m", "engine", "monitor", "--once", "--lab", "--state", str(tmp_path / "s.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("127.0.0.1: clean")


def test_a_listing_exits_3(tmp_path: Path, lab: LabProcess) -> None:
    """Whatever else could not be checked."""
    done = once(tmp_path, lab.dns, "203.0.113.67", "--lists", str(LISTS))
    assert done.returncode == 3, done.stderr
    assert "LISTED" in done.stdout


def test_a_critical_list_that_was_not_checked_exits_4(tmp_path: Path, lab: LabProcess) -> None:
    """Spamhaus does not answer through the lab: nobody is clean."""
    done = once(tmp_path, lab.dns, "203.0.113.1", "--lists", str(LISTS))
    assert done.returncode == 4, done.stderr
    assert "NOT CHECKED: spamhaus-zen" in done.stdout


def test_a_resolver_through_which_nobody_answers_exits_1(tmp_path: Path) -> None:
    """In a sentence that says what to do; nothing is called clean, and nothing is told of any list."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    done = once(tmp_path, ("127.0.0.1", port), "203.0.113.1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "No list answered through it: see that it is up" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_to_watch_exits_2(tmp_path: Path) -> None:
    """It says what to give."""
    (tmp_path / "empty.yaml").write_text("")
    command = [sys.executable, "-m", "engine", "monitor", "--once", "--config", str(tmp_path / "empty.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "give --identity FILE, or run `engine identity init` once" in done.stderr
