"""The engine and every peer ask the same list of the same world, one after the other in one run.

1. CPU is user and system time of all of a contestant's processes; connections and recipients are counted by the world.
2. With rounds, each one's with the least CPU counts: a busy machine only adds.
3. A peer that is missing, fails, or asks fewer than nearly all of the addresses is named as missing.
4. Where there can be a network namespace the world stands at ports 25 and 53 in it, as unmodified peers need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measure import compiled
from bench.measure.engine import Setup
from bench.measure.plots import BARS
from bench.measure.report import Report
from bench.measure.watch import Spent
from bench.peers import Peer, PeerError, Task, peers
from bench.peers import run as run_peer
from bench.world import Plan, World, namespace
from bench.world.log import NONE

CONCURRENCY = 200
ENOUGH = 0.99
ENGINE, PLAIN = "engine", "engine, plain Python"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one contestant did with the list."""

    group: str
    spent: Spent
    addresses: int
    connections: float
    recipients: float
    answered: int | None = None

    @property
    def cpu_s(self) -> float:
        """CPU seconds an address."""
        return self.spent.cpu_s / self.addresses


class Contest:
    """Collects entries; `world` is a context, the list is asked with `engine` and `all_peers`."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.entries: dict[str, Entry] = {}
        self._peers = list(peers())
        self._outside = namespace.enter()

    def world(self, plan: Plan) -> World:
        """The world of this contest."""
        if self._outside:
            return World(plan, level=NONE)
        return World(plan, level=NONE, smtp_port=namespace.SMTP_PORT, dns_port=namespace.DNS_PORT)

    def engine(self, world: World, setup: Setup, addresses: int) -> None:
        """One round of the engine; its verdicts have to be right, or it would look cheap by guessing."""
        if ENGINE not in self.entries:
            alone = replace(setup, folder=setup.folder / "alone", addresses=[setup.first])
            self.report.figure("engine: CPU of a list of one address, which is in all above", alone.run().cpu_s, "s")
        self._verify(ENGINE, world, setup, addresses)
        if compiled.used():
            self._verify(PLAIN, world, replace(setup, folder=setup.folder / "plain", plain=True), addresses)
        else:
            why = compiled.missing() or f"left alone by {compiled.PLAIN}"
            self.report.note(f"the engine in plain Python is measured; compiled it is {why}")

    def all_peers(self, world: World, listed: Path, addresses: int, folder: Path) -> None:
        """One round of every peer that is here."""
        for peer in self._peers:
            why = peer.missing() or (self._outside if peer.unmodified else "")
            if not why:
                why = self._ask(peer, Task(listed, world, CONCURRENCY), addresses, folder)
            if why:
                self.entries.pop(peer.name, None)
                self.report.absent(f"{peer.name}: {why}")

    def _verify(self, name: str, world: World, setup: Setup, addresses: int) -> None:
        self._enter(name, ENGINE, world, addresses, lambda: (setup.run(), None))
        right = sum(
            row["category"] == ("valid" if row["email"].startswith("user") else "invalid") for row in setup.rows()
        )
        if right != addresses:
            self.report.claim(f"{name}: verdicts that are right", f"{addresses:,}", f"{right:,}", met=False)

    def _ask(self, peer: Peer, task: Task, addresses: int, folder: Path) -> str:
        """Why this round does not count; empty when it does."""
        where = folder / f"{peer.group}-{''.join(each for each in peer.name if each.isalnum())}"
        before = task.world.stats()["recipients"]
        try:
            self._enter(peer.name, peer.group if peer.verifier else "", task.world, addresses,
                        lambda: run_peer(peer, task, where))  # fmt: skip
        except PeerError as error:
            return str(error)
        asked = task.world.stats()["recipients"] - before
        if asked < ENOUGH * addresses:
            return f"it asked {asked:,.0f} of {addresses:,} addresses only"
        return ""

    def _enter(
        self, name: str, group: str, world: World, addresses: int, run: Callable[[], tuple[Spent, int | None]]
    ) -> None:
        before = world.stats()
        spent, answered = run()
        after = world.stats()
        known = self.entries.get(name)
        if known is None or spent.cpu_s < known.spent.cpu_s:
            self.entries[name] = Entry(
                group, spent, addresses, after["sessions"] - before["sessions"],
                after["recipients"] - before["recipients"], answered,
            )  # fmt: skip

    # --- what came of it --------------------------------------------------------------------------------------

    def table(self) -> None:
        """One row a contestant, and the engine's ratio to each."""
        engine = self.entries[ENGINE]
        by_cost = sorted(self.entries.items(), key=lambda each: each[1].cpu_s)
        for name, entry in by_cost:
            spent, count = entry.spent, entry.addresses
            self.report.figure("CPU us/address", entry.cpu_s * 1e6, per=name)
            self.report.figure("engine's, of it, x", engine.cpu_s / entry.cpu_s, per=name)
            self.report.figure("addresses/s", count / spent.wall_s, per=name)
            self.report.figure("connections/address", entry.connections / count, per=name)
            self.report.figure("RCPTs/address", entry.recipients / count, per=name)
            self.report.figure("RSS peak MB", spent.rss_peak / 2**20, per=name)
            if entry.answered is not None and entry.group:
                self.report.figure("answered %", 100 * entry.answered / count, per=name)

        versions = [
            f"{peer.name} {told}" for peer in self._peers if peer.name in self.entries and (told := peer.version())
        ]
        self.report.note(f"versions: {', '.join(versions) or 'none beside those above'}")
        for name in [name for name, entry in by_cost if not entry.group]:
            self.report.note(f"{name} asks one address again and again, without look-ups: no requirement counts it")
        cost = {name: [entry.cpu_s * 1e6] for name, entry in by_cost if entry.group}
        self.report.plot("cpu", "CPU an address, same list, same world", "us (user + system)", "", BARS, cost)
        dialled = {name: [entry.connections / entry.addresses] for name, entry in by_cost if entry.group}
        self.report.plot("connections", "Connections an address", "connections", "", BARS, dialled)

    def best(self, *groups: str, by: Callable[[Entry], float] = lambda entry: entry.cpu_s) -> float | None:
        """The least of these groups' peers (all that ask the list, where none is named); None when none is here."""
        chosen = [
            by(entry) for entry in self.entries.values()
            if entry.group not in ("", ENGINE) and (not groups or entry.group in groups)
        ]  # fmt: skip
        return min(chosen, default=None)

    def world_says(self, world: World) -> None:
        """What the world could have done."""
        world_says(self.report, world)


def world_says(report: Report, world: World) -> None:
    """What the world could have done, and which of its tools are missing: it is slower then."""
    if world.dns_server.stands_in:
        report.absent("NSD: the lab's name server stands in for it; `.ci/fetch-mtas` unpacks it")
    if "uvloop is not" in world.loop:
        report.absent("uvloop: asyncio's own loop stands in for it; `pip install --group bench` installs it")
    ceiling = world.ceiling()
    report.note(
        f"the world ({world.loop}; {world.dns_server.kind}) used {ceiling['cpu_us_per_session']:.0f} us CPU a session, "
        f"so that it could have served {ceiling['sessions_per_s']:,.0f} sessions/s; it was busy {ceiling['busy']:.0%}"
    )
