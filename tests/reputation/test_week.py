"""A week of the monitor with time as data: every way in which lists fail opens nothing, every true listing opens."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from engine.core.identity import Identity
from engine.core.listing import Severity
from engine.reputation.charge import Charge
from engine.reputation.monitor import Monitor
from engine.reputation.question import target
from engine.reputation.verdict import Answer
from engine.store import reputation as tables
from engine.store.state import State
from engine.store.writer import Writer

START = 1_790_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
STEP = 5 * MINUTE
ME = Identity("node-1", "probe.example", "probe@probe.example", public_v4="203.0.113.10")
OTHER = "198.51.100.7"
NOBODY = Answer("NXDOMAIN")
ENTRY = "2.0.0.127"

Lie = Callable[[float], Answer | None]  # what a list says to everybody at a moment; None: the truth


def always(answer: Answer, after: float = DAY) -> Lie:
    return lambda t: answer if t >= after else None


def bursts(answer: Answer, every: float, length: float) -> Lie:
    return lambda t: answer if t >= HOUR and t % every < length else None


def records(*addresses: str) -> Answer:
    return Answer(records=addresses, ttl_s=300)


LIES: dict[str, Lie] = {
    "servfail": always(Answer("SERVFAIL")),
    "refused": bursts(Answer("REFUSED"), 3 * HOUR, HOUR),
    "formerr": bursts(Answer("FORMERR"), 5 * HOUR, 2 * HOUR),
    "silent": always(Answer("", failure="timed out"), 2 * DAY),
    "truncated": bursts(Answer("", failure="truncated"), 2 * HOUR, HOUR),
    "lame": always(Answer(failure="lame"), 3 * DAY),
    "public": always(records("127.255.255.254")),
    "excessive": bursts(records("127.255.255.255"), 6 * HOUR, 3 * HOUR),
    "sinkhole": always(records("127.0.0.1")),
    "parked": always(records("203.0.113.5"), 2 * DAY),
    "rewriting": bursts(records("198.51.100.1"), 4 * HOUR, HOUR),
    "wildcard": always(records("127.0.0.2"), 2 * DAY),
    "wildcard-now-and-then": bursts(records("127.0.0.2"), 7 * HOUR, 25 * MINUTE),
    "undocumented": always(records("127.0.0.77")),
    "emptied": always(NOBODY, 4 * DAY),
    "emptied-now-and-then": bursts(NOBODY, 9 * HOUR, 40 * MINUTE),
}
TRUTH = {  # list -> when it lists ME, in time since START; it tells the truth but for the lie of that name
    "honest": (DAY, 3 * DAY),
    "servfail": (2 * HOUR, 20 * DAY),
    "public": (3 * HOUR, 20 * DAY),
    "emptied": (5 * HOUR, 20 * DAY),
    "emptied-now-and-then": (6 * HOUR, 20 * DAY),
    "refused": (2 * DAY, 20 * DAY),
}


class World:
    """Every list of the week; `now` is its clock. It stands in the place of `Asker`."""

    def __init__(self) -> None:
        self.now = START
        self.told: dict[str, list[float]] = {}  # list -> when it said that ME is listed

    def ask(self, name: str, kind: str = "A") -> Answer:
        labels, _, zone = name.removesuffix(".example").rpartition(".")
        if kind != "A" or zone not in {*LIES, "honest"}:
            return NOBODY
        t = self.now - START
        lie = LIES.get(zone, always(NOBODY, 99 * DAY))(t)
        if lie is not None:
            return lie
        first, last = TRUTH.get(zone, (99 * DAY, 99 * DAY))
        mine = labels == "10.113.0.203" and first <= t < last
        if mine:
            self.told.setdefault(zone, []).append(self.now)
        return records("127.0.0.2") if mine or labels == ENTRY else NOBODY


def run(monitor: Monitor, world: World, until: float) -> None:
    """What `serve` does, step by step: probes that are due, turns that have come."""
    monitor._checker.asker = world  # type: ignore[assignment]
    while world.now < until:
        monitor._probe_due()
        monitor._probes.join()
        turns = []
        while (pair := monitor._rota.take(world.now)) is not None:
            turns.append(gevent.spawn(monitor._ask, pair))
        gevent.joinall(turns)
        assert monitor._error is None
        world.now += STEP


def test_a_week_of_every_failure_opens_nothing_false_and_everything_true(
    tmp_path: Path, blocklist: Callable[..., Any], registry: Callable[..., Any], code: Callable[..., Any]
) -> None:
    """Two targets, sixteen lists that fail and one that does not; and a restart in the middle of it."""
    world = World()
    row = code("127.0.0.2", severity=Severity.CRITICAL)
    lists = [blocklist(f"{name}.example", row, interval_s=HOUR) for name in (*LIES, "honest")]
    targets = (target(str(ME.public_v4)), target(OTHER))
    with Writer(linger_s=0.0) as writer:
        state = State(writer, tmp_path / "state.db")
        for until in (3.5 * DAY, 7 * DAY):
            monitor = Monitor(
                state, registry(*lists), Charge((ME,), targets), servers=(("127.0.0.1", 9),), clock=lambda: world.now,
                rng=random.Random(1),
            )  # fmt: skip
            monitor._fill()
            run(monitor, world, START + until)
        events = state.read(lambda conn: tables.events(conn, closed_since=0.0))
    assert {(event.target, event.list) for event in events} == {(ME.public_v4, name) for name in TRUTH}
    for event in events:
        assert event.opened_at == world.told[event.list][1], f"{event.list}: the second answer opens it"
        assert event.flaps == 0, f"{event.list} is one event"
        assert event.is_open == (event.list != "honest"), f"{event.list}: only an end that is true ends it"
