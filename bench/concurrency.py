"""Sessions open at once in one process, 300 ms a reply: memory a session, hub lag, rate.

Each session is at a site of its own. The base of the memory is what the process takes when the lanes are filled and
nobody is dialled yet. With --tls every host offers STARTTLS.

    python -m bench concurrency [--short] [--sizes 1000 2000 5000 10000] [--tls]
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.measure.contest import world_says
from bench.measure.engine import LIFTED, UNLIMITED, HubLag, Setup, accepted
from bench.measure.report import Report, options
from bench.measure.watch import Running, Spent
from bench.world import Plan, World
from bench.world.log import CONNECTIONS

REPLY_S = 0.3
KB_A_SESSION, TOTAL_MB, LAG_S = 20, 250, 0.1
SHARE_OPEN = 0.99  # of the wanted sessions, for the size to count as reached
EVERY_S = 1.0


@dataclass(slots=True)
class Opened:
    """What was seen while one size ran."""

    spent: Spent
    peak: float
    base: int  # bytes before the first session
    first_s: float  # from the first session on
    lag_s: float | None
    worst_s: float | None


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("concurrency", __doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="1000 2000 5000 10000, or 500 1000 with --short")
    parser.add_argument("--tls", action="store_true", help="every host offers STARTTLS")
    chosen = parser.parse_args(arguments)
    sizes = chosen.sizes or ([500, 1000] if chosen.short else [1000, 2000, 5000, 10000])
    report = Report("tls" if chosen.tls else "concurrency")
    with tempfile.TemporaryDirectory() as name:
        for size in sizes:
            with _world(2 * size, tls=chosen.tls) as world:
                setup = _setup((chosen.keep or Path(name)) / str(size), world, size)
                opened = watch(setup, world)
                _tell(report, size, opened, world)
                if size == sizes[-1]:
                    world_says(report, world)
    return report.finish(chosen)


def _world(sites: int, *, tls: bool) -> World:
    plan = Plan()
    plan.persona("normal", delay_s=REPLY_S, starttls=tls)
    for number in range(sites):
        plan.site(f"d{number:06}.lab")
    return World(plan, level=CONNECTIONS)


def _setup(folder: Path, world: World, size: int) -> Setup:
    rows = [f"user{number}@d{number:06}.lab" for number in range(2 * size)]
    return Setup(folder, world, rows, {"default": UNLIMITED}, LIFTED, concurrency=size)


def watch(setup: Setup, world: World) -> Opened:
    """Run it; base memory and hub lag count from the first session on."""
    lag, eye = HubLag(), _Eye(world)
    running = setup.start(*lag.options)
    eye.lag, eye.running = lag, running
    spent = accepted(running.until_done(eye.tick, limit_s=1200))
    return Opened(
        spent, world.stats()["peak"], eye.base, eye.first_s, lag.quantile(0.99), lag.quantile(1.0)
    )  # fmt: skip


class _Eye:
    """Looks at the world and at the metrics while a run lasts."""

    lag: HubLag
    running: Running

    def __init__(self, world: World) -> None:
        self._world = world
        self._next = 0.0
        self.base = 0
        self.first_s = 0.0

    def tick(self) -> None:
        """Between two samples."""
        if not self.base:
            if self._world.stats()["sessions"]:
                self.lag.mark()
                samples = self.running.spent.samples
                self.base, self.first_s = samples[-2 if len(samples) > 1 else -1][2], samples[-1][0]
        elif time.monotonic() > self._next:
            self._next = time.monotonic() + EVERY_S
            self.lag.tick()


def _tell(report: Report, size: int, opened: Opened, world: World) -> None:
    """The figures and claims of one size."""
    spent, row = opened.spent, f"{size:,} sessions"
    kb = (spent.rss_peak - opened.base) / opened.peak / 1024 if opened.peak else 0.0
    sessions = world.stats()["sessions"]
    lasted = spent.wall_s - opened.first_s
    used = spent.cpu_s - next((cpu for at, cpu, _ in spent.samples if at >= opened.first_s), 0.0)
    report.figure("open at once", opened.peak, per=row)
    report.figure("RSS MB", spent.rss_peak / 2**20, per=row)
    report.figure("KB a session", kb, per=row)
    report.figure("hub lag p99 <= ms", (opened.lag_s or 0) * 1000, per=row)
    report.figure("worst <= ms", (opened.worst_s or 0) * 1000, per=row)
    report.figure("sessions/s", sessions / lasted, per=row)
    report.figure("CPU us a session", used / sessions * 1e6, per=row)
    report.figure("CPU % of a core", used / lasted * 100, per=row)
    reached = opened.peak >= SHARE_OPEN * size
    report.claim(f"{row}: open at once", f"{size:,}", f"{opened.peak:,.0f}", met=reached)
    report.at_most(f"{row}: memory a session over the base", kb, KB_A_SESSION, "KB")
    report.at_most(f"{row}: resident in all", spent.rss_peak / 2**20, TOTAL_MB, "MB")
    lag_ms = None if opened.lag_s is None else opened.lag_s * 1000
    report.at_most(f"{row}: hub lag p99", lag_ms, LAG_S * 1000, "ms")
