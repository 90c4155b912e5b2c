"""What batching saves: many addresses over domains of very different size, against one session an address.

Domains are drawn by Zipf's law; the largest and a part of the others are at a few providers, some share a hosting
address, the rest has a host of its own.

    python -m bench zipf [--short] [--addresses 200000] [--domains 20000]
"""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

from bench.measure.contest import CONCURRENCY, ENGINE, Contest
from bench.measure.engine import LIFTED, UNLIMITED, Setup
from bench.measure.report import Report, options
from bench.world import Plan

CPU, CONNECTIONS = 5.0, 8.0
LARGEST = 10  # domains that are providers' own
PROVIDERS, AT_PROVIDER = 5, 0.35  # of the other domains are their customers
HOSTINGS, AT_HOSTING = 40, 0.15
KNOWN = 0.92


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("zipf", __doc__)
    parser.add_argument("--addresses", type=int, help="200000, or 20000 with --short")
    parser.add_argument("--domains", type=int, help="a tenth of the addresses, if not given")
    chosen = parser.parse_args(arguments)
    count = chosen.addresses or (20_000 if chosen.short else 200_000)
    plan, chance = Plan(), random.Random(2)
    rows = mixed(plan, count, chosen.domains or count // 10, chance)
    report = Report("zipf")
    contest = Contest(report)
    with tempfile.TemporaryDirectory() as name, contest.world(plan) as world:
        folder = chosen.keep or Path(name)
        setup = Setup(folder / ENGINE, world, rows, policies(), LIFTED, CONCURRENCY)
        contest.engine(world, setup, count)
        contest.all_peers(world, setup.list, count, folder)
        contest.world_says(world)
    contest.table()
    engine = contest.entries[ENGINE]
    cpu, dialled = contest.best(), contest.best(by=lambda entry: entry.connections)
    report.at_least("CPU of the best peer, of ours", cpu / engine.cpu_s if cpu else None, CPU, "x")
    report.at_least(
        "connections of the best peer, of ours", dialled / engine.connections if dialled else None, CONNECTIONS, "x"
    )
    return report.finish(chosen)


def mixed(plan: Plan, count: int, domains: int, chance: random.Random) -> list[str]:
    """The list, in random order; `plan` gets its domains."""
    for number in range(PROVIDERS):
        plan.host(f"mx.provider{number}.com")
    shared = [plan.host(f"mx.hosting{number:02}.com") for number in range(HOSTINGS)]
    names = []
    for number in range(domains):
        name, draw = f"shop{number:06}.com", chance.random()
        names.append(name)
        if number < LARGEST or draw < AT_PROVIDER:
            plan.domain(name, [f"mx.provider{number % PROVIDERS}.com"])
        elif draw < AT_PROVIDER + AT_HOSTING:
            plan.host(f"mx.{name}", ip=shared[number % HOSTINGS])
            plan.domain(name, [f"mx.{name}"])
        else:
            plan.site(name)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, domains + 1)))
    drawn = chance.choices(names, cum_weights=weights, k=count)
    return [f"{'user' if chance.random() < KNOWN else 'gone'}{number}@{name}" for number, name in enumerate(drawn)]


def policies() -> dict[str, dict[str, object]]:
    """The providers' policies and the default, without limits that bind."""
    own = {
        f"provider{number}": {"match": {"mx": [f"*.provider{number}.com"]}, "scope": "provider", **UNLIMITED}
        for number in range(PROVIDERS)
    }
    return {"default": UNLIMITED, **own}
