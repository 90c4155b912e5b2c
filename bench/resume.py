"""How soon a job of a million rows goes on: from `--resume` to the first session, and until it says that it is ready.

The journal is made as an operator's would be: the list is read, its domains are resolved, sessions are under way, and
then the run is stopped.

    python -m bench resume [--short] [--rows 1000000]
"""

from __future__ import annotations

import signal
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from bench.measure.engine import LIFTED, STOPPED, Setup, accepted
from bench.measure.report import Report, options
from bench.measure.watch import Running
from bench.world import Plan, World
from bench.world.dns import free_port
from bench.world.log import CONNECTIONS

READY_S = 5.0
DOMAINS = 5000
AFTER = 500  # sessions, the run is stopped
SLOW = {  # so that the job is not done before it is stopped
    "sessions": {"concurrency": 1, "rate": "30/min", "burst": 1},
    "recipients": {"rate": "30/min..30/min", "per_session": 10, "per_transaction": 4},
    "refusals": {"per_session": 10, "rate": "1000/h..1000/h"},
}


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("resume", __doc__)
    parser.add_argument("--rows", type=int, help="1000000, or 100000 with --short")
    chosen = parser.parse_args(arguments)
    rows = chosen.rows or (100_000 if chosen.short else 1_000_000)
    report, plan = Report("resume"), Plan()
    names = [plan.site(f"d{number:06}.lab") for number in range(DOMAINS)]
    with tempfile.TemporaryDirectory() as name, World(plan, level=CONNECTIONS) as world:
        folder = chosen.keep or Path(name)
        listed = (f"user{number}@{names[number % DOMAINS]}" for number in range(rows))
        setup = Setup(folder, world, listed, {"default": SLOW}, LIFTED)
        first = _Course(setup, world, stop_after=AFTER)
        again = _Course(setup, world, stop_after=1)
        began = first.run()
        went_on = again.run("--resume")
        size = sum(each.stat().st_size for each in folder.glob(f"{setup.journal.name}*"))
    report.figure("rows", rows)
    report.figure("journal", size / 2**20, "MB")
    report.figure("first run, until it read, resolved and connected", began, "s")
    report.figure("its exit and that of the resumed one", f"{first.exit}, {again.exit}")
    report.figure("resumed, until it says that it is ready", again.ready_s, "s")
    report.at_most("resumed, until its first session", went_on, READY_S, "s")
    return report.finish(chosen)


class _Course:
    """One process: when it was ready, when it connected first; stopped after so many sessions."""

    def __init__(self, setup: Setup, world: World, *, stop_after: int) -> None:
        self.ready_s = 0.0
        self.exit = 0
        self._setup = setup
        self._world = world
        self._after = stop_after
        self._first_s = float("inf")
        self._asked = False
        self._port = free_port()

    def run(self, *more: str) -> float:
        """Seconds until its first session."""
        self._before = self._world.stats()["sessions"]
        running = self._setup.start("--metrics", f"127.0.0.1:{self._port}", *more)
        self.exit = accepted(running.until_done(lambda: self._tick(running)), STOPPED).exit
        return self._first_s

    def _tick(self, running: Running) -> None:
        now_s = time.monotonic() - running.began
        sessions = self._world.stats()["sessions"] - self._before
        if sessions:
            self._first_s = min(self._first_s, now_s)
        if not self.ready_s:
            with suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=1).close()
                self.ready_s = now_s
        if sessions >= self._after and not self._asked:
            self._asked = True
            running.process.send_signal(signal.SIGTERM)
