"""Who holds an identity, or the watch over a machine: one process, by a lock that the kernel lets go when it dies.

1. The lock is `flock` on `identity-<public address>.lock` in the state's folder. The file is never removed: two
   processes could then lock two files of one name.
2. What is written in it (pid, job, since) tells others who holds it. It is worth nothing without the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from engine.store.database import store_error


class HeldByOther(Exception):  # noqa: N818 - it states a fact
    """Another process probes under this identity. `pid` is 0 where the holder has not yet said who it is."""

    def __init__(self, address: str, pid: int, job: str, since: float) -> None:
        super().__init__(address, pid, job, since)
        self.address, self.pid, self.job, self.since = address, pid, job, since

    def __str__(self) -> str:
        if not self.pid:
            return f"The identity {self.address} is held by another process: wait for it, or stop it."
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return (
            f"The identity {self.address} is held by process {self.pid} (job {self.job}) since {since}: "
            "wait for it, stop it, or probe from another identity."
        )


class Watched(Exception):  # noqa: N818 - it states a fact
    """Another process watches this machine's reputation. `pid` is 0 where it has not yet said who it is."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.pid = pid

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        return f"The reputation of this machine is watched by {who} already: stop that one first, or leave it to it."


class IdentityLock:
    """Holds an identity from construction to `release`. Raises HeldByOther, or StoreError where it can't be known."""

    def __init__(self, folder: Path, address: str, *, job: str, since: float) -> None:
        self.address = str(ip_address(address))  # one spelling for an IPv6 address, and no path in it
        self._file, told = _taken(folder / f"identity-{self.address}.lock", {"job": job, "since": since})
        if self._file < 0:
            try:
                raise HeldByOther(self.address, int(told["pid"]), str(told["job"]), float(told["since"]))
            except (ValueError, KeyError, TypeError):
                raise HeldByOther(self.address, 0, "", 0.0) from None

    def __enter__(self) -> IdentityLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go. A second call does nothing."""
        self._file = _let_go(self._file)


class MonitorLock:
    """Holds the watch over this machine's reputation. Raises Watched, or StoreError where it can't be known."""

    def __init__(self, folder: Path) -> None:
        self._file, told = _taken(folder / "monitor.lock", {})
        if self._file < 0:
            raise Watched(int(told.get("pid", 0)))

    def __enter__(self) -> MonitorLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go. A second call does nothing."""
        self._file = _let_go(self._file)


def _taken(path: Path, about: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Lock a file and write into it who we are; its descriptor, or -1 and what its holder wrote."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise store_error(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), **about}).encode(), 0)
    except BlockingIOError:
        told = os.pread(descriptor, 4096, 0)
        os.close(descriptor)
        try:
            found = json.loads(told)
        except ValueError:
            found = {}
        return -1, found if isinstance(found, dict) else {}
    except OSError as error:
        os.close(descriptor)
        raise store_error(path, error) from error
    return descriptor, {}


def _let_go(descriptor: int) -> int:
    if descriptor >= 0:
        os.ftruncate(descriptor, 0)  # so that the next holder's file never names this one
        os.close(descriptor)
    return -1


def holders(folder: Path) -> list[HeldByOther]:
    """The processes that say, in the lock files of a state's folder, that they hold an identity, and are alive."""
    found = []
    for path in sorted(folder.glob("identity-*.lock")):
        try:
            told = json.loads(path.read_bytes())
            pid, job, since = int(told["pid"]), str(told["job"]), float(told["since"])
        except (OSError, ValueError, KeyError, TypeError):  # nobody's, or not yet written
            continue
        if _alive(pid):
            found.append(HeldByOther(path.stem.removeprefix("identity-"), pid, job, since))
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
