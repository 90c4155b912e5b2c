"""What a sweep of block lists beside a run costs the run's probes: 200 addresses at 30 lists, in the same process.

The same list is verified with and without the watch, turn about; hosts take 300 ms a reply, so that the hub has time
for both, as beside real hosts. A round's rate is from the first session to the end of the last, by the world's log;
each way's best round counts. The sweep has to have asked all: its checks are counted by the engine's own metric.

    python -m bench rbl [--short] [--addresses 9000] [--rounds 2]
"""

from __future__ import annotations

import tempfile
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.measure.engine import LIFTED, UNLIMITED, Setup, accepted
from bench.measure.report import Report, options
from bench.measure.watch import Spent
from bench.world import Plan, World
from bench.world.dns import free_port
from bench.world.log import CONNECTIONS
from engine.reputation.registry import load_registry

TARGETS, LISTS = 200, 30
COST = 0.05
REPLY_S, CONCURRENCY = 0.3, 300
COUNTED = "engine_rbl_checks_total{"


@dataclass(frozen=True, slots=True)
class Round:
    """One run of the list."""

    rate: float
    spent: Spent
    checks: int


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("rbl", __doc__)
    parser.add_argument("--addresses", type=int, help="9000, or 5500 with --short")
    parser.add_argument("--rounds", type=int, help="2, or 1 with --short")
    chosen = parser.parse_args(arguments)
    report = Report("rbl")
    count = chosen.addresses or (5500 if chosen.short else 9000)
    sweep(report, count, chosen.rounds or (1 if chosen.short else 2), chosen.keep)
    return report.finish(chosen)


def sweep(report: Report, count: int, rounds: int, keep: Path | None = None) -> None:
    """Measure it into a report."""
    plan = Plan()
    plan.persona("normal", delay_s=REPLY_S)
    rows = [f"user{number}@{plan.site(f'd{number:06}.lab')}" for number in range(count)]
    for number in range(LISTS):  # each lists its test point and nobody else
        plan.records.append(f"2.0.0.127.bl{number:02}.lab. A 127.0.0.2")
    plain: list[Round] = []
    watched: list[Round] = []
    with tempfile.TemporaryDirectory() as name:
        folder = keep or Path(name)
        for turn in range(rounds):
            for found, with_lists in ((plain, False), (watched, True)):
                with World(plan, level=CONNECTIONS) as world:
                    found.append(_round(folder / f"{turn}-{with_lists}", world, rows, with_lists=with_lists))
    without, beside = (max(found, key=lambda each: each.rate) for found in (plain, watched))
    asked = max(each.checks for each in watched)
    extra = min(each.spent.cpu_s for each in watched) - min(each.spent.cpu_s for each in plain)
    for say, each in (("probes alone", without), ("probes beside a sweep", beside)):
        report.figure("addresses/s", each.rate, per=say)
        report.figure("CPU us/address", each.spent.cpu_s / count * 1e6, per=say)
        report.figure("checks asked", each.checks, per=say)
    report.figure("CPU of one check", extra / asked * 1e6 if asked else 0.0, "us")
    report.at_least(f"checks of {TARGETS} addresses at {LISTS} lists", asked, TARGETS * LISTS)
    report.at_most("rate of probes lost to the sweep", 100 * (1 - beside.rate / without.rate), 100 * COST, "%")


def _round(folder: Path, world: World, rows: list[str], *, with_lists: bool) -> Round:
    port = free_port()
    setup = Setup(folder, world, rows, {"default": UNLIMITED}, LIFTED, CONCURRENCY)
    more = ["--metrics", f"127.0.0.1:{port}"]
    if with_lists:
        more += ["--config", str(_settings(folder))]
    running, checks = setup.start(*more), 0

    def look() -> None:
        nonlocal checks
        with suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
            checks = round(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(COUNTED)))

    looks = _Every(2.0, look)
    spent = accepted(running.until_done(looks.tick, limit_s=900))
    moments = [row.t for row in world.log() if row.event in "+-"]
    return Round(len(rows) / (max(moments) - min(moments)), spent, checks)


class _Every:
    """Does something every so many ticks of the watcher, which come ten a second."""

    def __init__(self, seconds: float, do: object) -> None:
        self._do, self._every, self._count = do, int(seconds * 10), 0

    def tick(self) -> None:
        self._count += 1
        if self._count % self._every == 0:
            self._do()  # type: ignore[operator]


def _settings(folder: Path) -> Path:
    """A settings file with our lists and targets, and none of the lists that ship."""
    lists = {
        f"bench-{number:02}": {
            "zone": f"bl{number:02}.lab", "kind": "ip", "severity": "medium", "lists": "nobody", "rate": "1000/s",
            "codes": [{"code": "127.0.0.2", "means": "is listed"}],
            "delist": {"url": "https://bench.lab/", "method": "form", "how": "ask there"},
        }
        for number in range(LISTS)
    }  # fmt: skip
    (folder / "lists.yaml").write_text(yaml.safe_dump({"lists": lists}), encoding="utf-8")
    settings = {
        "rbl": {"lists": [str(folder / "lists.yaml")], "skip": sorted(load_registry().lists)},
        "monitor": {"targets": [f"198.51.100.{number}" for number in range(TARGETS)], "quarantine": "no"},
    }
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
