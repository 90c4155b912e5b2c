"""A real server as a child of the tests: found, started, waited for, stopped.

1. A server lives as long as its rig: it leaves with `close()`, and with the test process however that ends (PDEATHSIG).
2. A rig writes only into its own folder under the system's temporary folder. The folder is open to read, because the
   servers give up root; pytest's own temporary folders are not.
3. A server that cannot start says why: `start` raises with the end of its log.
4. An absent daemon skips its tests with one line, and fails them where `CI` is set.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

CACHE = Path(__file__).resolve().parents[3] / ".cache" / "mtas"
DENIED = "127.30.9.1"
"""The source address that every rig with a block list refuses; connect with it as the local address to be blocked."""
MAILBOXES = ("alice", "bob", "carol", "dave", "erin", "postmaster")
"""Local parts with a mailbox in every domain of every rig that has mailboxes."""
KEEPER = """trap 'kill $child; wait $child; exit' TERM; "$@" & child=$!; wait $child"""
"""A shell that stays root and ends its child when it is told to: a server that changes its user loses PDEATHSIG."""
START_S = 15.0
STOP_S = 5.0


Rig = TypeVar("Rig")


class AbsentError(Exception):
    """This daemon is not on this machine; `.ci/fetch-mtas` fetches it."""


@dataclass(frozen=True, slots=True)
class Host:
    """One listening address of a mail server rig, and the domains whose only mail host it is."""

    name: str
    ip: str
    domain: str
    catch_all: str = ""
    """A second domain, where every local part is accepted."""


def or_skip(make: Callable[[], Rig]) -> Rig:
    """The rig; where its daemon is absent the tests that want it skip, and fail where `CI` is set."""
    try:
        return make()
    except AbsentError as absent:
        if os.environ.get("CI"):
            pytest.fail(str(absent), pytrace=False)
        pytest.skip(str(absent))


def unpacked(name: str) -> Path:
    """The root that `.ci/fetch-mtas` unpacked this daemon into; raises AbsentError."""
    if os.geteuid() != 0:
        raise AbsentError(f"{name} needs root: it binds as root and then gives it up")
    root = CACHE / name
    if not root.is_dir():
        raise AbsentError(f"{name} is not here: run .ci/fetch-mtas as root")
    return root


def own_folder(name: str) -> Path:
    """A new folder that a server can read after it gave up root; the caller removes it."""
    folder = Path(tempfile.mkdtemp(prefix=f"rig-{name}-"))
    folder.chmod(0o755)
    return folder


def free_port() -> int:
    """A TCP and UDP port, below the ephemeral range, that is free on every loopback address."""
    for port in random.sample(range(20_000, 30_000), 100):
        if _is_free("0.0.0.0", port):
            return port
    raise RuntimeError("no free port between 20000 and 30000 in 100 tries: look at `ss -ltn`")


def free_address(port: int) -> str:
    """A loopback address where this port is free, for a server that cannot have another port."""
    for third in random.sample(range(100, 200), 100):
        address = f"127.30.{third}.53"
        if _is_free(address, port):
            return address
    raise RuntimeError(f"port {port} is taken on 100 loopback addresses, or needs root")


def _is_free(address: str, port: int) -> bool:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        contextlib.suppress(OSError),
    ):
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((address, port))
        udp.bind((address, port))
        return True
    return False


class Daemon:
    """One server process, its folder and its log."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.log_file = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        argv: Sequence[str | Path],
        listens: Sequence[tuple[str, int]] = (),
        *,
        says: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it in the foreground; return when it listens (TCP) at each address and its log says so.

        Raises RuntimeError with the end of its log when that takes longer than START_S or it ends.
        """
        with (self.folder / "stdio.log").open("ab") as stdio:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "sh", "-c", KEEPER, "keeper", *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=stdio,
                stderr=stdio,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **(env or {})},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while says not in self.log or not all(_answers(address) for address in listens):
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self.log[-3000:]
                self.close()
                raise RuntimeError(f"{self.name} does not start at {listens}; the end of its log:\n{log}")
            time.sleep(0.02)

    @property
    def log(self) -> str:
        """What it logged and printed so far."""
        files = (self.folder / "stdio.log", self.log_file)
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def close(self, *, keep: bool = False) -> None:
        """Stop it and its children, and remove its folder unless told to keep it."""
        if self._process is not None:
            _end(self._process)
            self._process = None
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1.0).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process group it leads, SIGKILL to what stays."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
