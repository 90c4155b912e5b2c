"""`engine policy simulate`: a list's addresses, the lanes that would serve them, and how long these would take.

1. No mail server is asked. Mail hosts come from DNS, or without DNS from stored facts and the policies' own domains.
2. Who ends without a session in a run ends so here: the same survey judges.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from gevent.pool import Pool

from engine.core.address import Address, parse
from engine.core.control import ControlAnswer
from engine.core.identity import Identity, Mode
from engine.core.policy import PolicySet
from engine.core.route import MailHost, Route, site_key
from engine.core.simulation import Assumed, Course, Mail
from engine.flow.forecast import simulated, slowest
from engine.flow.intake import Intake
from engine.flow.survey import CHUNK, IN_FLIGHT, Found, Survey, unpack_hosts
from engine.net.resolver import Resolver
from engine.store.state import Fact

FACTORS = (0.5, 1.0, 2.0)  # of the refused share: nobody knows it beforehand
Facts = Callable[[Sequence[str]], Mapping[str, Fact]]


@dataclass(frozen=True, slots=True)
class Listed:
    """What a list holds: addresses by domain, rows that are none, and rows that came before."""

    domains: Mapping[str, int]
    bad: int
    repeated: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a list's addresses go. `ended` counts those without a session by (policy, reason, detail)."""

    mail: list[Mail]
    ended: Mapping[tuple[str, str, str], int]
    unresolved: int
    unresolved_domains: int


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What one provider's addresses take, at each of FACTORS times the refused share; `binding` at once the share."""

    provider: str
    addresses: int
    sites: int
    hours: tuple[float, ...]
    binding: str


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A simulated list. `answered` is the share of the addresses asked that get an answer, at once the share."""

    assumed: Assumed
    rows: list[Rehearsal]
    answered: float

    @property
    def hours(self) -> tuple[float, ...]:
        """What the whole list takes: providers are asked side by side."""
        return tuple(max((row.hours[place] for row in self.rows), default=0.0) for place in range(len(FACTORS)))


def read_list(intake: Intake) -> Listed:
    """Count a list's distinct addresses by domain."""
    seen: set[str] = set()
    domains: Counter[str] = Counter()
    bad = repeated = 0
    for row in intake.rows():
        address = None if row.problem else parse(row.text)
        if not isinstance(address, Address):
            bad += 1
        elif address.normalized in seen:
            repeated += 1
        else:
            seen.add(address.normalized)
            domains[address.domain] += 1
    return Listed(domains, bad, repeated)


def plan(
    domains: Mapping[str, int],
    policies: PolicySet,
    facts: Facts,
    *,
    resolver: Resolver | None,
    identities: Sequence[Identity] = (),
) -> Plan:
    """Say for each domain which lane serves it; without a resolver, by what is known here."""
    survey = Survey(Mode.ENHANCED, policies, resolver, identities)
    mail: list[Mail] = []
    ended: Counter[tuple[str, str, str]] = Counter()
    unresolved = unresolved_domains = 0
    for chunk in _chunks(domains):
        known = facts(chunk)
        for name, found in zip(chunk, _found(chunk, policies, known, resolver), strict=True):
            if found is None:
                unresolved += domains[name]
                unresolved_domains += 1
                continue
            fact = known.get(name)
            answer = fact.answer if fact is not None and fact.site == found.key else ""
            routed = survey.judge(found, found.key if answer == ControlAnswer.ACCEPTS else "", "")
            if routed.reason:
                ended[routed.policy, routed.reason, routed.detail] += domains[name]
                continue
            refuses = answer == ControlAnswer.REFUSES
            hosts = unpack_hosts(routed.hosts)
            mail.append(
                Mail(
                    name, routed.lane, routed.site_key, found.policy, domains[name], refuses, routed.identity, hosts
                )
            )  # fmt: skip
    return Plan(mail, ended, unresolved, unresolved_domains)


def rehearse(
    mail: Sequence[Mail], assumed: Assumed, policies: PolicySet, identities: Sequence[Identity] = ()
) -> Rehearsed:
    """Play the list at half, once and twice the refused share."""
    played: list[Mapping[str, Course]] = [
        simulated(mail, assumed.times(factor), policies, identities) or {} for factor in FACTORS
    ]
    by_policy = [slowest(courses.values()) for courses in played]
    once = played[FACTORS.index(1.0)]
    rows = []
    for name, last in by_policy[FACTORS.index(1.0)].items():
        own = [course for course in once.values() if course.policy.name == name]
        rows.append(
            Rehearsal(
                name,
                sum(course.addresses for course in own),
                len({each.site for each in mail if each.policy.name == name}),
                tuple(each[name].seconds / 3600 for each in by_policy),
                last.binding,
            )
        )
    asked = sum(course.sampled for course in once.values())
    answered = sum(course.answered for course in once.values())
    rows.sort(key=lambda row: -row.hours[FACTORS.index(1.0)])
    return Rehearsed(assumed, rows, answered / asked if asked else 0.0)


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    each = iter(names)
    while chunk := list(islice(each, CHUNK)):
        yield chunk


def _found(
    chunk: Sequence[str], policies: PolicySet, known: Mapping[str, Fact], resolver: Resolver | None
) -> Iterator[Found | None]:
    if resolver is None:
        yield from (_remembered(name, policies, known.get(name)) for name in chunk)
        return
    for route in Pool(IN_FLIGHT).imap(resolver.route, chunk, maxsize=IN_FLIGHT):
        policy = policies.for_hosts(route.names)
        claimed = policy is not policies.default
        yield Found(0, route, policy, claimed, site_key(route, claimed=claimed))


def _remembered(name: str, policies: PolicySet, fact: Fact | None) -> Found | None:
    """A domain's site out of a fact, or its policy by the domains that the policies name; None: it is unknown here."""
    if fact is not None and fact.site:
        hosts = () if fact.site.startswith("[") else tuple(fact.site.split(","))  # an address, or names (site_key)
        policy = policies.for_hosts(hosts)
        route = Route(name, tuple(MailHost(host, 0) for host in hosts))
        return Found(0, route, policy, policy is not policies.default, fact.site)
    named = policies.for_domain(name)
    return Found(0, Route(name), named, True, name) if named is not None else None


def stamped(read: Callable[[Sequence[str], float], Mapping[str, Fact]]) -> Facts:
    """Facts that hold now."""
    return lambda domains: read(domains, time.time())
