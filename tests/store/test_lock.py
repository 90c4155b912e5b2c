"""An identity is held by one process at a time."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.store.database import StoreError
from engine.store.lock import HeldByOther, IdentityLock

HOLDS = """
import sys
from pathlib import Path
from engine.store.lock import IdentityLock
lock = IdentityLock(Path(sys.argv[1]), "192.0.2.1", job="job-1", since=1790000000.0)
print("held", flush=True)
sys.stdin.readline()
"""


def hold(folder: Path, address: str = "192.0.2.1") -> IdentityLock:
    return IdentityLock(folder, address, job="job-2", since=1_790_000_100.0)


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    """Pid, job and since of the holder; and the kernel lets go when it is killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(HeldByOther) as caught:
            hold(tmp_path)
        error = caught.value
        assert (error.pid, error.job, error.since) == (child.pid, "job-1", 1_790_000_000.0)
        assert f"held by process {child.pid} (job job-1) since 2026-09-21T" in str(error)
        hold(tmp_path, "192.0.2.2").release()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    hold(tmp_path).release()


def test_one_process_holds_it_once(tmp_path: Path) -> None:
    """Two runs in one process exclude each other too, until the first lets go."""
    with hold(tmp_path) as lock:
        with pytest.raises(HeldByOther):
            hold(tmp_path)
        lock.release()
        hold(tmp_path).release()


def test_a_holder_that_has_not_spoken_is_still_a_holder(tmp_path: Path) -> None:
    """Locked and not yet written: held by somebody unknown."""
    with hold(tmp_path):
        (tmp_path / "identity-192.0.2.1.lock").write_text("")
        with pytest.raises(HeldByOther, match="held by another process") as caught:
            hold(tmp_path)
        assert caught.value.pid == 0


def test_an_address_has_one_spelling(tmp_path: Path) -> None:
    """Two spellings of an IPv6 address are one identity; what is no address is no file name."""
    with hold(tmp_path, "2001:db8:0::1"), pytest.raises(HeldByOther, match="2001:db8::1"):
        hold(tmp_path, "2001:DB8::1")
    with pytest.raises(ValueError, match="etc"):
        hold(tmp_path, "../etc")


def test_the_file_is_private_and_its_folder_must_exist(tmp_path: Path) -> None:
    """Mode 0600, and one sentence where it can't be made."""
    with hold(tmp_path):
        assert stat.S_IMODE((tmp_path / "identity-192.0.2.1.lock").stat().st_mode) == 0o600
    with pytest.raises(StoreError, match="identity-192"):
        hold(tmp_path / "nowhere")
