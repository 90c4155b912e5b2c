"""Runs a command and watches it from outside: CPU of all its processes, resident memory, wall time, exit status."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.world.dns import children, die_with_parent

EVERY_S = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Spent:
    """What a command used. CPU is user and system time of it and of every process below it."""

    exit: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    rss_peak: int = 0  # bytes
    stdout: str = ""
    stderr: str = ""
    samples: list[tuple[float, float, int]] = field(default_factory=list)  # (seconds, cpu_s so far, rss bytes)

    def rss_at(self, moment_s: float) -> int:
        """Resident memory at a moment, as last sampled before it."""
        return max((sample for sample in self.samples if sample[0] <= moment_s), default=(0.0, 0.0, 0))[2]


class Running:
    """A started command. `until_done` waits; `sample` may be called by whoever has a loop of his own."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
        self._out = folder / "stdout.txt"
        self._err = folder / "stderr.txt"
        env = dict(os.environ if env is None else env)
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled once, and not at every start
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - no threads here
            )  # fmt: skip
        self.began = time.monotonic()
        self.spent = Spent()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def errors(self) -> str:
        """What it has written to standard error so far."""
        return self._err.read_text(encoding="utf-8", errors="replace")

    def sample(self) -> bool:
        """Look at it once; False when it has ended."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        spent = self.spent
        if pid:
            spent.wall_s = time.monotonic() - self.began
            spent.cpu_s = usage.ru_utime + usage.ru_stime
            spent.exit = self.process.returncode = os.waitstatus_to_exitcode(status)
            spent.stdout = self._out.read_text(encoding="utf-8", errors="replace")
            spent.stderr = self.errors()
            return False
        rss = sum(_rss(each) for each in children(self.pid))
        spent.rss_peak = max(spent.rss_peak, rss, _rss_highest(self.pid))
        spent.samples.append((time.monotonic() - self.began, sum(_cpu(each) for each in children(self.pid)), rss))
        return True

    def until_done(self, tick: Callable[[], object] = lambda: None, *, limit_s: float = 3600.0) -> Spent:
        """Wait for its end; `tick` is called between two looks. What takes longer than `limit_s` is killed."""
        while self.sample():
            tick()
            if time.monotonic() - self.began > limit_s:
                self.process.kill()
            time.sleep(EVERY_S)
        return self.spent


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _rss_highest(pid: int) -> int:
    """What it had at most since its program began; rusage counts from the fork, with our own memory in it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
