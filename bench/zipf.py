"""What batching saves: many addresses over domains of very different size, against one session an address.

Domains are drawn by Zipf's law; the largest and a part of the others are at a few providers, some share a hosting
address, the rest has a host of its own. The peers ask a random sample of the same list, since what they spend on an
address does not depend on how many there are.

    python -m bench zipf [--short] [--addresses 200000] [--domains 20000] [--sample 20000]
"""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

from bench.longtail import CONCURRENCY, world_says
from bench.measure.engine import LIFTED, UNLIMITED, Setup
from bench.measure.report import Report, options
from bench.measure.watch import Spent
from bench.peers import peers
from bench.peers import run as run_peer
from bench.world import Plan, World
from bench.world.log import NONE

CPU, CONNECTIONS = 5.0, 8.0
LARGEST = 10  # domains that are providers' own
PROVIDERS, AT_PROVIDER = 5, 0.35  # of the other domains are their customers
HOSTINGS, AT_HOSTING = 40, 0.15
KNOWN = 0.92


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("zipf", __doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--addresses", type=int, help="200000, or 20000 with --short")
    parser.add_argument("--domains", type=int, help="a tenth of the addresses, if not given")
    parser.add_argument("--sample", type=int, help="how many the peers ask; 20000, or 4000 with --short")
    chosen = parser.parse_args(arguments)
    count = chosen.addresses or (20_000 if chosen.short else 200_000)
    size = min(count, chosen.sample or (4_000 if chosen.short else 20_000))
    plan, chance = Plan(), random.Random(2)
    rows = mixed(plan, count, chosen.domains or count // 10, chance)
    report = Report("zipf")
    results: dict[str, tuple[Spent, float, int]] = {}
    with tempfile.TemporaryDirectory() as name, World(plan, level=NONE) as world:
        folder = chosen.keep or Path(name)
        setup = Setup(folder / "engine", world, rows, policies(), LIFTED, CONCURRENCY)
        results["engine"] = (setup.run(), world.stats()["sessions"], count)
        sample = Setup(folder / "sample", world, chance.sample(rows, size))
        for peer in peers():
            if why := peer.missing():
                report.absent(f"{peer.NAME}: {why}")
                continue
            before = world.stats()["sessions"]
            spent, _ = run_peer(peer, sample.list, world, folder / peer.__name__, CONCURRENCY)
            results[peer.NAME] = (spent, world.stats()["sessions"] - before, size)
        world_says(report, world)
    for name, (spent, connections, asked) in results.items():
        report.figure("addresses", asked, per=name)
        report.figure("CPU us an address", spent.cpu_s / asked * 1e6, per=name)
        report.figure("addresses/s", asked / spent.wall_s, per=name)
        report.figure("connections an address", connections / asked, per=name)
        report.figure("RSS peak MB", spent.rss_peak / 2**20, per=name)
    spent, connections, _ = results.pop("engine")
    cpu = min(other.cpu_s / asked for other, _, asked in results.values())
    dialled = min(other / asked for _, other, asked in results.values())
    report.at_least("CPU of the best peer, of ours", cpu / (spent.cpu_s / count), CPU, "x")
    report.at_least("connections of the best peer, of ours", dialled / (connections / count), CONNECTIONS, "x")
    report.absent("npm, Go and Rust peers: not built into bench/peers yet")
    return report.finish(chosen)


def mixed(plan: Plan, count: int, domains: int, chance: random.Random) -> list[str]:
    """The list, in random order; `plan` gets its domains."""
    for number in range(PROVIDERS):
        plan.host(f"mx.provider{number}.lab")
    shared = [plan.host(f"mx.hosting{number:02}.lab") for number in range(HOSTINGS)]
    names = []
    for number in range(domains):
        name, draw = f"d{number:06}.lab", chance.random()
        names.append(name)
        if number < LARGEST or draw < AT_PROVIDER:
            plan.domain(name, [f"mx.provider{number % PROVIDERS}.lab"])
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
        f"provider{number}": {"match": {"mx": [f"*.provider{number}.lab"]}, "scope": "provider", **UNLIMITED}
        for number in range(PROVIDERS)
    }
    return {"default": UNLIMITED, **own}
