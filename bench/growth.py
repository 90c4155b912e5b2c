"""Whether cost and memory stay flat as lists grow: 10 k, 100 k and 1 M addresses, and 1 M over 1 M domains.

The lists are those of `zipf`: ten addresses a domain, batching on, limits lifted.

    python -m bench growth [--short] [--sizes 10000 100000 1000000] [--domains-too]
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from bench.measure.contest import CONCURRENCY, world_says
from bench.measure.engine import LIFTED, UNLIMITED, Setup
from bench.measure.plots import LINES
from bench.measure.report import Report, options
from bench.measure.watch import Spent
from bench.world import Plan, World
from bench.world.log import NONE
from bench.zipf import mixed, policies

GROWTH, TOTAL_MB = 1.15, 250


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("growth", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", help="10000 100000 1000000, or 5000 20000 with --short")
    parser.add_argument("--domains-too", action="store_true", help="also the largest size with a domain an address")
    chosen = parser.parse_args(arguments)
    sizes = chosen.sizes or ([5_000, 20_000] if chosen.short else [10_000, 100_000, 1_000_000])
    report = Report("growth")
    runs: list[Spent] = []
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.keep or Path(name)
        for size in sizes:
            runs.append(one(report, folder / str(size), size, size // 10))
        if chosen.domains_too or not (chosen.short or chosen.sizes):
            one(report, folder / "domains", sizes[-1], sizes[-1])
    costs = [spent.cpu_s / size for size, spent in zip(sizes, runs, strict=True)]
    cost = list(zip(sizes, [each * 1e6 for each in costs], strict=True))
    memory = list(zip(sizes, [spent.rss_peak / 2**20 for spent in runs], strict=True))
    size = "addresses in the list"
    report.plot("cost", "CPU an address", size, "us", LINES, {"engine": cost}, logarithmic=True)
    report.plot("memory", "Resident memory", size, "MB", LINES, {"engine": memory}, logarithmic=True, limit=TOTAL_MB)
    report.at_most(f"CPU an address at {sizes[-1]:,}, of that at {sizes[0]:,}", costs[-1] / costs[0], GROWTH, "x")
    return report.finish(chosen)


def one(report: Report, folder: Path, size: int, domains: int) -> Spent:
    """One list; what it took."""
    plan, chance = Plan(), random.Random(3)
    if domains < size:
        rows, rules = mixed(plan, size, domains, chance), policies()
    else:
        rows = [f"user{number}@{plan.site(f'd{number:07}.lab')}" for number in range(size)]
        rules = {"default": UNLIMITED}
    row = f"{size:,} over {domains:,} domains"
    with World(plan, level=NONE) as world:
        del plan
        spent = Setup(folder, world, rows, rules, LIFTED, CONCURRENCY).run(limit_s=6 * 3600)
        sessions = world.stats()["sessions"]
        world_says(report, world)
    report.figure("CPU us an address", spent.cpu_s / size * 1e6, per=row)
    report.figure("addresses/s", size / spent.wall_s, per=row)
    report.figure("connections an address", sessions / size, per=row)
    report.figure("RSS peak MB", spent.rss_peak / 2**20, per=row)
    report.at_most(f"{row}: resident at most", spent.rss_peak / 2**20, TOTAL_MB, "MB")
    return spent
