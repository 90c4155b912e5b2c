"""Who holds an identity: one process a public address, by a lock that the kernel lets go when the holder dies.

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


class IdentityLock:
    """Holds an identity from construction to `release`. Raises HeldByOther, or StoreError where it can't be known."""

    def __init__(self, folder: Path, address: str, *, job: str, since: float) -> None:
        self.address = str(ip_address(address))  # one spelling for an IPv6 address, and no path in it
        path = folder / f"identity-{self.address}.lock"
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise store_error(path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(json.dumps({"pid": os.getpid(), "job": job, "since": since}).encode())
        except BlockingIOError:
            told = os.pread(self._descriptor, 4096, 0)
            os.close(self._descriptor)
            raise self._held(told) from None
        except OSError as error:
            os.close(self._descriptor)
            raise store_error(path, error) from error

    def __enter__(self) -> IdentityLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go. A second call does nothing."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)  # so that the next holder's file never names this one
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, told: bytes) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, told, 0)

    def _held(self, told: bytes) -> HeldByOther:
        try:
            holder = json.loads(told)
            return HeldByOther(self.address, int(holder["pid"]), str(holder["job"]), float(holder["since"]))
        except (ValueError, KeyError, TypeError):
            return HeldByOther(self.address, 0, "", 0.0)


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
