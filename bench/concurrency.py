"""Sessions open at once in one process, 300 ms a reply: memory a session, hub lag, rate.

How many are open is their rate times how long they last, and a core sets a limit to the rate: with slower replies
(--reply) more of them can be open.

Each session is at a site of its own. The base of the memory is what the process takes when the lanes are filled and
nobody is dialled yet. With --tls every host offers STARTTLS, and the smallest size is run in the clear before.

    python -m bench concurrency [--short] [--sizes 1000 2000 5000 10000] [--reply 0.3] [--tls]
"""

from __future__ import annotations

import gc
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gevent

from bench.measure.contest import world_says
from bench.measure.engine import LIFTED, UNLIMITED, HubLag, Setup, accepted
from bench.measure.judge import counted
from bench.measure.plots import LINES, SHARES, shares
from bench.measure.report import Report, options
from bench.measure.watch import Running, Spent
from bench.world import Plan, World
from bench.world.log import CONNECTIONS
from engine.core.identity import Identity
from engine.core.policy import Timeouts
from engine.net.session import Endpoint, Session

REPLY_S = 0.3
KB_A_SESSION, TOTAL_MB, LAG_S = 20, 250, 0.1
LINEAR, FULL = 0.9, 0.85  # of the rate that more sessions would give; of a core
CONTEXT_SESSIONS = 20
IDENTITY = Identity("bench", "probe.lab", "probe@probe.lab")
SHARE_OPEN = 0.99  # of the wanted sessions, for the size to count as reached
EVERY_S = 1.0
WAVES = 4  # sites for each session that is open at once: the first and the last are not all of it


@dataclass(slots=True)
class Opened:
    """What was seen while one size ran."""

    spent: Spent
    peak: float
    base: int  # bytes before the first session
    first_s: float  # from the first session on
    lag_s: float | None
    worst_s: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """What one size came to; `busy` is the share of a core."""

    size: int
    opened: Opened
    rss_mb: float
    kb: float
    rate: float
    cpu_us: float
    busy: float
    lasted_ms: list[float]  # each session, by the world's log


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("concurrency", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", help="1000 2000 5000 10000, or 500 1000 with --short")
    parser.add_argument("--tls", action="store_true", help="every host offers STARTTLS")
    parser.add_argument("--reply", type=float, default=REPLY_S, metavar="SECONDS", help="until each reply, 0.3")
    chosen = parser.parse_args(arguments)
    sizes = sorted(chosen.sizes or ([500, 1000] if chosen.short else [1000, 2000, 5000, 10000]))
    report = Report("tls" if chosen.tls else "concurrency")
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.keep or Path(name)
        if chosen.tls:
            _one(report, folder / "clear", sizes[0], chosen.reply, tls=False, beside=True)
        for size in sizes:
            found.append(_one(report, folder / str(size), size, chosen.reply, tls=chosen.tls, says=size == sizes[-1]))
    if not chosen.tls:
        _linear(report, found)
    _plots(report, found)
    return report.finish(chosen)


def _one(
    report: Report, folder: Path, size: int, reply_s: float, *, tls: bool, beside: bool = False, says: bool = False
) -> Found:
    with _world(WAVES * size, reply_s, tls=tls) as world:
        setup = _setup(folder, world, size)
        opened = watch(setup, world)
        found = _measured(size, opened, world)
        _figures(report, found, f"{size:,} sessions" + (" in the clear" if beside else ""))
        if not beside:
            _claims(report, found, tls=tls)
        if tls and says:
            _contexts(report, world)
        if says:
            world_says(report, world)
    return found


def _world(sites: int, reply_s: float, *, tls: bool) -> World:
    plan = Plan()
    plan.persona("normal", delay_s=reply_s, starttls=tls)
    for number in range(sites):
        plan.site(f"d{number:06}.lab")
    return World(plan, level=CONNECTIONS)


def _setup(folder: Path, world: World, size: int) -> Setup:
    rows = [f"user{number}@d{number:06}.lab" for number in range(WAVES * size)]
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


def _measured(size: int, opened: Opened, world: World) -> Found:
    """What one size comes to."""
    spent, sessions = opened.spent, world.stats()["sessions"]
    used = spent.cpu_s - next((cpu for at, cpu, _ in spent.samples if at >= opened.first_s), 0.0)
    over = spent.rss_peak - opened.base
    spans = counted(world.log(), set(world.hosts)).spans
    lasted_s = max(ended for _, ended in spans) - min(began for began, _ in spans)
    return Found(
        size,
        opened,
        rss_mb=spent.rss_peak / 2**20,
        kb=over / opened.peak / 1024 if opened.peak else 0.0,
        rate=sessions / lasted_s,
        cpu_us=used / sessions * 1e6,
        busy=used / (spent.wall_s - opened.first_s),
        lasted_ms=[(ended - began) * 1000 for began, ended in spans],
    )


def _figures(report: Report, found: Found, row: str) -> None:
    opened = found.opened
    report.figure("open at once", opened.peak, per=row)
    report.figure("RSS MB", found.rss_mb, per=row)
    report.figure("KB a session", found.kb, per=row)
    report.figure("hub lag p99 <= ms", (opened.lag_s or 0) * 1000, per=row)
    report.figure("worst <= ms", (opened.worst_s or 0) * 1000, per=row)
    report.figure("sessions/s", found.rate, per=row)
    report.figure("CPU us a session", found.cpu_us, per=row)
    report.figure("CPU % of a core", found.busy * 100, per=row)


def _claims(report: Report, found: Found, *, tls: bool) -> None:
    """With TLS memory and CPU are stated and not bound: most of them is OpenSSL's."""
    opened, row = found.opened, f"{found.size:,} sessions"
    reached = opened.peak >= SHARE_OPEN * found.size
    report.claim(f"{row}: open at once", f"{found.size:,}", f"{opened.peak:,.0f}", met=reached)
    if tls:
        return
    report.at_most(f"{row}: memory a session over the base", found.kb, KB_A_SESSION, "KB")
    report.at_most(f"{row}: resident in all", found.rss_mb, TOTAL_MB, "MB")
    lag_ms = None if opened.lag_s is None else opened.lag_s * 1000
    report.at_most(f"{row}: hub lag p99", lag_ms, LAG_S * 1000, "ms")


def _linear(report: Report, found: list[Found]) -> None:
    """From the smallest size on, until the core is full."""
    first = found[0]
    for each in found[1:]:
        share = each.rate / (first.rate * each.size / first.size)
        measured = f"{share:.0%} at {each.busy:.0%} CPU"
        met = share >= LINEAR or each.busy >= FULL or first.busy >= FULL
        say = f"{each.size:,} sessions: rate, of linear from {first.size:,}"
        report.claim(say, f"{LINEAR:.0%} or a full core", measured, met=met)


def _contexts(report: Report, world: World) -> None:
    """How many TLS contexts a process makes for many sessions: in this one, by the engine's own session."""
    before = _alive()
    sessions = [
        Session(Endpoint(name, ip, world.smtp_port), IDENTITY, Timeouts(), "opportunistic")
        for ip, name in list(world.hosts.items())[:CONTEXT_SESSIONS]
    ]
    gevent.joinall([gevent.spawn(session.open) for session in sessions], raise_error=True)
    made, sealed = _alive() - before, sum(session.tls for session in sessions)
    for session in sessions:
        session.close()
    report.claim(f"TLS contexts for {sealed} sessions under TLS", "at most 1", f"{made}", met=made <= 1 < sealed)


def _alive() -> int:
    gc.collect()
    return sum(isinstance(each, ssl.SSLContext) for each in gc.get_objects())


def _plots(report: Report, found: list[Found]) -> None:
    tls, size = report.scenario == "tls", "sessions open at once"
    kind = " with STARTTLS" if tls else ""
    rate = {"engine": [(each.size, each.rate) for each in found]}
    memory = {"engine": [(each.size, each.rss_mb) for each in found]}
    title = f"Sessions a second{kind}, {REPLY_S * 1000:.0f} ms a reply"
    report.plot("throughput", title, size, "sessions/s", LINES, rate)
    report.plot("memory", f"Resident memory{kind}", size, "MB", LINES, memory, limit=None if tls else TOTAL_MB)
    report.plot(
        "latency", f"How long a session lasts{kind}", "ms, from accept to close", "% of sessions", SHARES,
        {f"{each.size:,} sessions": shares(each.lasted_ms) for each in found},
    )  # fmt: skip
