"""A stop with thousands of sessions open: hub lag before, a clean end within the drain time, nothing lost on resume.

One run of the list is left alone; another gets SIGTERM when all its sessions are open, and is resumed. Both have to end
with the same rows, and no address may have been asked twice.

    python -m bench drain [--short] [--sessions 5000]
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.measure.engine import LIFTED, STOPPED, UNLIMITED, HubLag, Setup, accepted
from bench.measure.report import Report, options
from bench.measure.watch import Running
from bench.world import Plan, World
from engine.flow.run import DRAIN_S

REPLY_S = 2.0  # far and busy servers: sessions last, and the core has room
LAG_S = 0.1
KNOWN = 9  # of ten addresses exist
SAME = (
    "email", "address", "normalized", "category", "reason", "answered", "fault", "retry", "catch_all", "provider",
    "policy", "role", "disposable", "free", "tagged", "suggestion", "classifier_version",
)  # fmt: skip
LISTEN_S = 3.0  # how long all sessions stay open before the stop


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("drain", __doc__)
    parser.add_argument("--sessions", type=int, help="open at once; 5000, or 500 with --short")
    chosen = parser.parse_args(arguments)
    size = chosen.sessions or (500 if chosen.short else 5000)
    report, plan = Report("drain"), Plan()
    plan.persona("normal", delay_s=REPLY_S)
    names = [plan.site(f"d{number:06}.lab") for number in range(2 * size)]
    rows = [f"{'user' if number % 10 < KNOWN else 'gone'}{number}@{name}" for number, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.keep or Path(name)
        with World(plan) as world:
            alone = Setup(folder / "alone", world, rows, {"default": UNLIMITED}, LIFTED, concurrency=size)
            alone.run()
        with World(plan) as world:
            setup = Setup(folder / "stopped", world, rows, {"default": UNLIMITED}, LIFTED, concurrency=size)
            stop = _Stop(setup, world, size)
            took_s, status = stop.run()
            open_then, part = stop.open, setup.rows()
            setup.run("--resume")
            asked = Counter(row.argument for row in world.log() if row.event == "RCPT" and row.argument in set_of(rows))
            messages, differ = world.stats()["messages"], compared(alone, setup)
    settled = sum(bool(row["reason"]) for row in part)
    report.figure("sessions open at the stop", open_then)
    report.figure("rows settled at the stop", settled)
    report.figure("worst hub lag until the stop, at most", (stop.lag.quantile(1.0) or 0) * 1000, "ms")
    report.claim("sessions open at once", f"{size:,}", f"{open_then:,.0f}", met=open_then >= 0.99 * size)
    lag_s = stop.lag.quantile(0.99)
    report.at_most("hub lag p99 until the stop", None if lag_s is None else lag_s * 1000, LAG_S * 1000, "ms")
    report.at_most("from SIGTERM to the end", took_s, DRAIN_S, "s")
    report.claim("its exit status", f"{STOPPED}", f"{status}", met=status == STOPPED)
    report.claim("rows after the resume that differ", "0", str(differ), met=differ == 0)
    twice = sum(count > 1 for count in asked.values())
    report.at_most("addresses that were asked twice", twice, 0)
    report.at_most("messages sent", messages, 0)
    return report.finish(chosen)


def set_of(rows: list[str]) -> frozenset[str]:
    """The listed addresses; a control is none of them."""
    return frozenset(rows)


def compared(one: Setup, other: Setup) -> int:
    """How many rows are not the same in what a resume must not change."""
    pairs = zip(one.rows(), other.rows(), strict=True)
    return sum(any(first[name] != second[name] for name in SAME) for first, second in pairs)


class _Stop:
    """Sends SIGTERM some seconds after every session is open."""

    def __init__(self, setup: Setup, world: World, size: int) -> None:
        self.lag = HubLag()
        self.open = 0.0
        self._setup = setup
        self._world = world
        self._size = size
        self._stop_at = float("inf")
        self._marked = False
        self._sent_at = 0.0
        self._began = time.monotonic()

    def run(self) -> tuple[float, int]:
        """(seconds from the signal to the end, exit status)."""
        running = self._setup.start(*self.lag.options)
        spent = accepted(running.until_done(lambda: self._tick(running), limit_s=600), STOPPED)
        return running.began + spent.wall_s - self._sent_at, spent.exit

    def _tick(self, running: Running) -> None:
        stats, now = self._world.stats(), time.monotonic()
        if self._sent_at:
            return
        if stats["sessions"] and not self._marked:
            self._marked = True
            self.lag.mark()
        if self._stop_at == float("inf") and stats["open"] >= 0.99 * self._size:
            self._stop_at = now + LISTEN_S
        if now >= self._stop_at:
            self.lag.tick()
            self.open, self._sent_at = self._world.stats()["open"], time.monotonic()
            running.process.send_signal(signal.SIGTERM)
