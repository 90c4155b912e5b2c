"""CPU an address where every address has a domain of its own: cold DNS, control and audit on, CSV in and out.

The engine does all that it does in production; the peers ask one RCPT and keep nothing. All meet the same world, one
after the other in one run; each one's best round counts, since a busy machine only adds.

    python -m bench longtail [--short] [--addresses 20000] [--rounds 3]
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from bench.measure.engine import LIFTED, UNLIMITED, Setup, accepted
from bench.measure.report import Report, options
from bench.measure.watch import Spent
from bench.peers import peers
from bench.peers import run as run_peer
from bench.world import Plan, World
from bench.world.log import NONE

KNOWN = 0.92  # of the addresses exist; for these the engine asks a control too
FLOOR, BEST_PEER = 2.2, 1.8
CONCURRENCY = 200


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("longtail", __doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--addresses", type=int, help="20000, or 4000 with --short")
    parser.add_argument("--rounds", type=int, help="3, or 1 with --short")
    chosen = parser.parse_args(arguments)
    count = chosen.addresses or (4000 if chosen.short else 20000)
    report, best = Report("longtail"), {}
    chance, plan = random.Random(1), Plan()
    names = [plan.site(f"d{number:06}.lab") for number in range(count)]
    rows = [f"{'user' if chance.random() < KNOWN else 'gone'}{number}@{name}" for number, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as name, World(plan, level=NONE) as world:
        folder = chosen.keep or Path(name)
        for turn in range(chosen.rounds or (1 if chosen.short else 3)):
            setup = Setup(folder / f"engine-{turn}", world, rows, {"default": UNLIMITED}, LIFTED, CONCURRENCY)
            measure(report, best, "engine", count, world, lambda setup=setup: accepted(setup.run()))
            for peer in peers():
                if why := peer.missing():
                    report.absent(f"{peer.NAME}: {why}")
                    continue
                listed, where = setup.list, folder / f"{peer.__name__}-{turn}"
                measure(
                    report, best, peer.NAME, count, world,
                    lambda peer=peer, listed=listed, where=where: run_peer(peer, listed, world, where, CONCURRENCY)[0],
                )  # fmt: skip
        world_says(report, world)
    figures(report, best, count)
    engine = best["engine"][0].cpu_s
    floor = best["bare gevent loop"][0].cpu_s
    report.at_most("CPU an address, of the bare gevent loop's", engine / floor, FLOOR, "x")
    report.at_most("CPU an address, of the best npm peer's", None, BEST_PEER, "x")
    report.absent("npm peers (deep-email-validator, @devmehq/email-validator-js): not built into bench/peers yet")
    return report.finish(chosen)


def measure(
    report: Report, best: dict[str, tuple[Spent, float]], name: str, count: int, world: World, run: object
) -> None:
    """Run once; the round with the least CPU is kept, with its connections."""
    before = world.stats()["sessions"]
    spent: Spent = run()  # type: ignore[operator]
    connections = world.stats()["sessions"] - before
    if name not in best or spent.cpu_s < best[name][0].cpu_s:
        best[name] = (spent, connections)


def figures(report: Report, best: dict[str, tuple[Spent, float]], count: int) -> None:
    """One row a contestant."""
    for name, (spent, connections) in best.items():
        report.figure("CPU us an address", spent.cpu_s / count * 1e6, per=name)
        report.figure("addresses/s", count / spent.wall_s, per=name)
        report.figure("connections", connections, per=name)
        report.figure("RSS peak MB", spent.rss_peak / 2**20, per=name)


def world_says(report: Report, world: World) -> None:
    """What the world could have done."""
    ceiling = world.ceiling()
    report.note(
        f"the world ({world.loop}; {world.dns_server.kind}) used {ceiling['cpu_us_per_session']:.0f} us CPU a session, "
        f"so that it could have served {ceiling['sessions_per_s']:,.0f} sessions/s; it was busy {ceiling['busy']:.0%}"
    )
