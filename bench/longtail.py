"""CPU an address where every address has a domain of its own: cold DNS, control and audit on, CSV in and out.

The engine does all that it does in production; the peers ask one RCPT and keep nothing.

    python -m bench longtail [--short] [--addresses 20000] [--rounds 3]
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from bench.measure.contest import CONCURRENCY, ENGINE, Contest
from bench.measure.engine import LIFTED, UNLIMITED, Setup
from bench.measure.report import Report, options
from bench.world import Plan

KNOWN = 0.92  # of the addresses exist; for these the engine asks a control too
FLOOR, BEST_PEER = 2.2, 1.8


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("longtail", __doc__)
    parser.add_argument("--addresses", type=int, help="20000, or 4000 with --short")
    parser.add_argument("--rounds", type=int, help="3, or 1 with --short")
    chosen = parser.parse_args(arguments)
    count = chosen.addresses or (4000 if chosen.short else 20000)
    chance, plan = random.Random(1), Plan()
    names = [plan.site(f"shop{number:06}.com") for number in range(count)]
    rows = [f"{'user' if chance.random() < KNOWN else 'gone'}{number}@{name}" for number, name in enumerate(names)]
    report = Report("longtail")
    contest = Contest(report)
    with tempfile.TemporaryDirectory() as name, contest.world(plan) as world:
        for turn in range(chosen.rounds or (1 if chosen.short else 3)):
            folder = (chosen.keep or Path(name)) / str(turn)
            setup = Setup(folder / ENGINE, world, rows, {"default": UNLIMITED}, LIFTED, CONCURRENCY)
            contest.engine(world, setup, count)
            contest.all_peers(world, setup.list, count, folder)
        contest.world_says(world)
    contest.table()
    engine = contest.entries[ENGINE].cpu_s
    for say, group, limit in (("the bare gevent loop's", "floor", FLOOR), ("the best npm peer's", "npm", BEST_PEER)):
        other = contest.best(group)
        report.at_most(f"CPU an address, of {say}", engine / other if other else None, limit, "x")
    return report.finish(chosen)
