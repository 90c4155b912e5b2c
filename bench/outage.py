"""Whether the engine stops by itself: a provider that starts to block in mid-run, and a block list that catches us.

Judged by the server's log: sessions that start after a breaker opened and before it is half open, sessions that start
after the third reply that names one block list, and no address that a block made `invalid`.

    python -m bench outage [--short] [--sites 2000]
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure.engine import LIFTED, QUICK, STOPPED, Setup, accepted, moves
from bench.measure.judge import measured_jitter
from bench.measure.report import Report, options
from bench.measure.watch import Running
from bench.world import Plan, World
from bench.world.log import Row
from bench.world.persona import LISTED

OPEN_S = 3  # how long the provider's breaker stays open at first
BLOCK_AT, RELENT_AT = (
    0.25,
    3.0,
)  # blocking begins at this share of the provider's addresses, and lasts so many open times
AT_MOST = 10  # sessions after the third reply that names the list
SHARE = 0.4  # of the sites begin to refuse us
REPLY_S = 0.1
WATCHED_S = 8.0  # after the third such reply
FEW = 50  # sessions at once, so that there are still some to start when sites turn
FAST = {"sessions": "1200/min..1200/min"}  # the shipped ceiling of an identity's limits, from the start


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("outage", __doc__)
    parser.add_argument("--sites", type=int, help="default sites of which 40 % turn; 2000, or 400 with --short")
    chosen = parser.parse_args(arguments)
    sites = chosen.sites or (400 if chosen.short else 2000)
    report = Report("outage")
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.keep or Path(name)
        provider(folder / "provider", 300 if chosen.short else 1000, report)
        for limits, what in ((FAST, "shipped limits"), (LIFTED, "limits lifted")):
            for later in (True, False):
                when = "in mid-run" if later else "from the start"
                listed(
                    folder / f"{what}-{when}".replace(" ", "-"), sites, report, limits, f"{when}, {what}", later=later
                )
    return report.finish(chosen)


def provider(folder: Path, addresses: int, report: Report) -> None:
    """A provider that blocks for a while, beside one that doesn't."""
    plan = Plan()
    plan.persona("normal", delay_s=REPLY_S / 5)
    plan.persona("turning", delay_s=REPLY_S / 5)
    ip = plan.host("mx.turning.lab", "turning")
    plan.host("mx.calm.lab")
    policies: dict[str, dict[str, Any]] = {}
    for name in ("turning", "calm"):
        plan.domain(f"{name}.lab", [f"mx.{name}.lab"])
        policies[name] = {
            "match": {"mx": [f"*.{name}.lab"]}, "scope": "provider", **QUICK,
            "sessions": {"concurrency": 10, "rate": "50/s", "burst": 5},
            "recipients": {"rate": "50/s..50/s", "per_session": 5, "per_transaction": 2},
            "refusals": {"per_session": 10, "rate": "1000000/h..1000000/h"},
            "breaker": {"open": f"{OPEN_S}s", "max_open": f"{4 * OPEN_S}s"},
        }  # fmt: skip
    with World(plan) as world:
        rows = [f"user{each}@{name}.lab" for each in range(addresses) for name in ("turning", "calm")]
        setup = Setup(folder, world, rows, policies, LIFTED)
        switch = _Switch(world, addresses)
        running = setup.start()
        spent = accepted(running.until_done(lambda: switch.tick(running), limit_s=300))
        log, audit, results = world.log(), setup.audit(), setup.rows()
    offset = time.time() - time.monotonic()
    jitter_s = measured_jitter(audit, log)
    opened = [row for row in moves(spent) if row.get("event") == "breaker_moved" and row.get("to") == "open"]
    starts = [row.t for row in log if row.ip == ip and row.event == "+"]
    # `for_s` is rounded to a second, so the last half second of an open time is left out
    late = sum(
        row["at"] - offset + jitter_s < start < row["at"] - offset + row["for_s"] - 0.5
        for row in opened
        for start in starts
    )
    verdicts = [row["reason"] for row in results if row["email"].endswith("@turning.lab")]
    what = "a provider that blocks"
    report.figure("times its breaker opened", len(opened))
    report.figure("jitter between sending and the server", jitter_s * 1000, "ms")
    opened_at = opened[0]["at"] - offset if opened else float("inf")
    report.figure("sessions there before it first opened", sum(start < opened_at for start in starts))
    report.figure("sessions there afterwards", sum(start > opened_at for start in starts))
    none = late == 0 < len(opened)
    report.claim(f"{what}: sessions after its breaker opened, until half-open", "0", str(late), met=none)
    invalid = sum(row["category"] == "invalid" for row in results)
    report.at_most(f"{what}: addresses that are invalid", invalid, 0)
    got = sum(reason == "rcpt_ok" for reason in verdicts)
    report.claim(f"{what}: verdicts after it relents", f"all {addresses}", str(got), met=got == addresses)


class _Switch:
    """Has the provider block when part of its work is done, and relent some open times later."""

    def __init__(self, world: World, addresses: int) -> None:
        self._world = world
        self._at = addresses * 2 * BLOCK_AT
        self._relent_at = float("inf")
        self._blocking = False

    def tick(self, running: Running) -> None:
        """Called while the run lasts."""
        if not self._blocking and self._world.stats()["recipients"] >= self._at:
            self._blocking = True
            self._world.set("turning", rcpt=LISTED)
            self._relent_at = time.monotonic() + RELENT_AT * OPEN_S
        elif time.monotonic() > self._relent_at:
            self._relent_at = float("inf")
            self._world.set("turning", rcpt="")


def listed(folder: Path, sites: int, report: Report, limits: dict[str, Any], what: str, *, later: bool) -> None:
    """Default sites of which some begin to name one block list; the run is stopped when it is seen what it does."""
    plan, chance = Plan(), random.Random(5)
    plan.persona("normal", delay_s=REPLY_S)
    plan.persona("turning", delay_s=REPLY_S, **({} if later else {"rcpt": LISTED}))
    names = [
        plan.site(f"s{number:05}.lab", "turning" if number < SHARE * sites else "normal") for number in range(sites)
    ]
    rows = [f"user{each}@{name}" for name in names for each in range(2)]
    chance.shuffle(rows)
    with World(plan) as world:
        setup = Setup(folder, world, rows, {}, limits, concurrency=FEW if later else 500)
        running = setup.start()
        watched = _Listed(world, running, sites // 20 if later else 0)
        accepted(running.until_done(watched.tick, limit_s=300), STOPPED)
        log, results = world.log(), setup.rows()
    named = [row.t for row in log if row.event == "RCPT" and "zen.spamhaus.org" in row.reply]
    after = after_the_third(log, named)
    report.figure("sessions", sum(row.event == "+" for row in log), per=what)
    report.figure("replies that name the list", len(named), per=what)
    report.figure("sessions after the third", after, per=what)
    met = after <= AT_MOST if len(named) >= 3 else None
    report.claim(f"{what}: sessions after the third reply", f"at most {AT_MOST}", str(after), met=met)
    report.at_most(f"{what}: addresses that are invalid", sum(row["category"] == "invalid" for row in results), 0)


def after_the_third(log: Sequence[Row], named: Sequence[float]) -> int:
    """Sessions that the server accepted after its third reply that names the list had left."""
    return sum(row.event == "+" and row.t > sorted(named)[2] + REPLY_S for row in log) if len(named) >= 3 else 0


class _Listed:
    """Has the sites turn when so many sessions were seen, and stops the run some seconds after the third refusal."""

    def __init__(self, world: World, running: Running, turn_at: int) -> None:
        self._world = world
        self._running = running
        self._turn_at = turn_at
        self._stop_at = float("inf")

    def tick(self) -> None:
        """Called while the run lasts."""
        sessions = self._world.stats()["sessions"]
        if self._stop_at == float("inf") and sessions and sessions >= self._turn_at:
            if self._turn_at:
                self._world.set("turning", rcpt=LISTED)
            self._stop_at = time.monotonic() + WATCHED_S
        elif time.monotonic() > self._stop_at:
            self._stop_at = float("inf")
            self._turn_at = 1 << 60
            self._running.process.terminate()
