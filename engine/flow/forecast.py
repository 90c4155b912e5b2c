"""How long a run will take, said before its first probe: simulated where that is quick, else by the policies' ceilings.

1. A forecast, never a permission: nothing that runs asks here.
2. A simulation that takes more than CPU_S of this process's time gives way to the ceilings, and the outlook says so;
   one that would is not begun.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import gevent

from engine.core.ceiling import ceilings
from engine.core.control import ControlAnswer
from engine.core.identity import Identity, Mode
from engine.core.policy import PolicySet
from engine.core.simulation import Assumed, Course, Mail, Simulation
from engine.flow.survey import unpack_hosts
from engine.store.job_tables import Site
from engine.store.journal import Journal
from engine.store.state import State

CPU_S = 2.0
MAX_DOMAINS = 10_000  # that are looked up for a simulation; a longer list goes by the ceilings
MAX_TRANSACTIONS = 25_000  # of a list that a simulation is begun for: some 100 us each, see CPU_S
SEED = 0  # the same list gets the same forecast


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one provider's share of the list takes; `binding` is the limit that it waits for longest."""

    provider: str
    addresses: int
    sites: int
    hours: float
    binding: str  # a key of the policy or identity file; retry: the ladders; rtt: nothing but the servers' own time


@dataclass(frozen=True, slots=True)
class Outlook:
    """The forecasts of a run, the slowest provider first. `assumed` is None where they come from the ceilings."""

    rows: list[Forecast]
    assumed: Assumed | None

    @property
    def hours(self) -> float:
        """What the whole list takes: providers are asked side by side."""
        return max((row.hours for row in self.rows), default=0.0)


def outlook(
    journal: Journal,
    state: State,
    policies: PolicySet,
    mode: Mode,
    concurrency: int,
    identities: Sequence[Identity] = (),
) -> Outlook:
    """What waits in the journal, and how long it will take."""
    census = journal.census()
    waiting = journal.waiting_domains(MAX_DOMAINS + 1)
    if len(waiting) <= MAX_DOMAINS and _transactions(waiting, policies, mode) <= MAX_TRANSACTIONS:
        assumed, knocks = Assumed(), mode is Mode.STANDARD
        if knocks:  # one connection a site, and nobody is asked about
            assumed = Assumed(refused=0.0, tempfail=0.0)
            waiting = [(site.key, site, 1) for site in {site.id: site for _, site, _ in waiting}.values()]
        facts = {} if knocks else state.facts([name for name, *_ in waiting], time.time())
        known = {name: fact.site for name, fact in facts.items() if fact.answer == ControlAnswer.REFUSES}
        mail = [
            Mail(
                name, site.lane, site.key, policies.named(site.policy) or policies.default, count,
                refuses=knocks or known.get(name) == site.key, identity=site.identity, hosts=unpack_hosts(site.hosts),
            )
            for name, site, count in waiting
        ]  # fmt: skip
        courses = simulated(mail, assumed, policies, identities, concurrency=concurrency, go_on=_within(CPU_S))
        if courses is not None:
            rows = [
                Forecast(name, *census[name], course.seconds / 3600, course.binding)
                for name, course in slowest(courses.values()).items()
            ]
            return Outlook(sorted(rows, key=lambda row: -row.hours), assumed)
    return Outlook(_by_ceilings(census, policies), None)


def _transactions(waiting: Sequence[tuple[str, Site, int]], policies: PolicySet, mode: Mode) -> int:
    """How many transactions, or connections in Standard mode, the list takes at least."""
    if mode is Mode.STANDARD:
        return len({site.id for _, site, _ in waiting})
    sizes = {each.name: each.recipients.per_transaction for each in (policies.default, *policies.policies)}
    return sum(-(-count // sizes.get(site.policy, sizes[policies.default.name])) for _, site, count in waiting)


def simulated(
    mail: Iterable[Mail],
    assumed: Assumed,
    policies: PolicySet,
    identities: Sequence[Identity] = (),
    *,
    concurrency: int = 500,
    go_on: Callable[[], bool] = lambda: True,
) -> dict[str, Course] | None:
    """Play a list, the same way each time; the course of each lane, or None when `go_on` ended it."""
    return Simulation(
        mail, assumed, random.Random(SEED).random, policies=policies, identities=identities, wall=time.time(),
        concurrency=concurrency, go_on=go_on,
    ).run()  # fmt: skip


def slowest(courses: Iterable[Course]) -> dict[str, Course]:
    """By policy the course that ends last."""
    found: dict[str, Course] = {}
    for course in courses:
        name = course.policy.name
        if name not in found or course.seconds > found[name].seconds:
            found[name] = course
    return found


def _within(cpu_s: float) -> Callable[[], bool]:
    """True for so much of this process's time; others get their turn at each question."""
    ends = time.process_time() + cpu_s

    def go_on() -> bool:
        gevent.sleep(0)
        return time.process_time() < ends

    return go_on


def _by_ceilings(census: dict[str, tuple[int, int]], policies: PolicySet) -> list[Forecast]:
    """Per provider what its limits make of it where their ranges start; the slowest first."""
    rows = []
    for name, (addresses, sites) in census.items():
        policy = policies.named(name) or policies.default
        ceiling = ceilings(policy)[0]
        lanes = 1 if policy.scope == "provider" else sites
        rows.append(Forecast(name, addresses, sites, ceiling.hours(addresses) / lanes, ceiling.binding))
    return sorted(rows, key=lambda row: -row.hours)
