"""SG2 and SG3: each distinct domain is resolved once, gets its site, or ends here.

1. Nothing is asked where the answer would mean nothing: uninformative and forbidden providers end here.
2. What the identity state knows of a domain is used before anybody is dialled.
3. One identity asks at a site, in this job and the next: the first by a hash of both, of those that may.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import gevent

from engine.core.control import ControlAnswer
from engine.core.identity import Identity, Mode
from engine.core.policy import Policy, PolicySet
from engine.core.reasons import Stage
from engine.core.route import MailHost, Route, site_key
from engine.net.resolver import Resolver
from engine.store.job_tables import Routed
from engine.store.journal import Journal
from engine.store.state import State

IN_FLIGHT = 256  # domains resolved at a time
ALIVE = "alive_until"  # what is learnt of a site that let us in: when to dial it again in Standard mode
CHUNK = 1024  # domains a journal read and a facts query
_dumped = json.JSONEncoder(separators=(",", ":")).encode

_DOMAIN_REASONS = frozenset({"domain_not_found", "domain_null_mx", "dns_timeout", "dns_servfail"})


@dataclass(frozen=True, slots=True)
class Found:
    """A resolved domain, the policy of its mail hosts, and the site that they make."""

    domain_id: int
    route: Route
    policy: Policy
    claimed: bool  # by a provider's policy, not the default
    key: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Resolves domains and says, for each, the site that serves it or the reason that ends its addresses."""

    mode: Mode
    policies: PolicySet
    resolver: Resolver | None  # None: `judge` alone is wanted
    identities: Sequence[Identity] = ()
    connect: bool = True
    clock: Callable[[], float] = lambda: 0.0

    def run(self, journal: Journal, state: State, stamp: Callable[[], str], stop: Callable[[], bool]) -> int:
        """Route every domain of the journal that has no route yet; says how many."""
        after = done = 0
        while not stop() and (chunk := journal.unrouted(after, CHUNK)):
            after = chunk[-1][0]
            found = []
            for (domain_id, _), route in zip(chunk, self._routes([name for _, name in chunk]), strict=True):
                policy = self.policies.for_hosts(route.names)
                claimed = policy is not self.policies.default
                found.append(Found(domain_id, route, policy, claimed, site_key(route, claimed=claimed)))
            known = self._known(state, found)
            journal.route([self.judge(one, known.get(one.route.domain, ""), stamp()) for one in found])
            done += len(chunk)
        return done

    def _routes(self, names: Sequence[str]) -> list[Route]:
        """The route of each, asked for by IN_FLIGHT greenlets: one a name would cost as much as the asking."""
        assert self.resolver is not None
        route, found = self.resolver.route, dict[int, Route]()
        places = iter(range(len(names)))

        def ask() -> None:
            for place in places:
                found[place] = route(names[place])

        asking = [gevent.spawn(ask) for _ in range(min(IN_FLIGHT, len(names)))]
        try:
            gevent.joinall(asking, raise_error=True)
        finally:
            gevent.killall(asking)
        return [found[place] for place in range(len(names))]

    def judge(self, one: Found, known_at: str, at: str) -> Routed:
        """The journal's row for one resolved domain.

        `known_at` is the site at which nothing needs to be asked: one that is alive (Standard), or where the domain
        is known to accept everybody (Enhanced).
        """
        route, policy = one.route, one.policy
        first = route.names[0] if route.names else ""
        if route.reason:
            stage = Stage.DOMAIN if route.reason in _DOMAIN_REASONS else Stage.HOSTS
            return Routed(
                one.domain_id, policy=policy.name, reason=route.reason, detail=route.detail, stage=stage,
                mx_host=first, checked_at=at,
            )  # fmt: skip
        lane = policy.name if policy.scope == "provider" else one.key
        asker = self._asker(one)
        reason, detail, answer = self._end(one, asker, known=known_at == one.key) or ("", "", "not_checked")
        return Routed(
            one.domain_id, one.key, asker.key if asker else "", lane, policy.name, pack_hosts(route.dialable), reason,
            detail, Stage.HOSTS, first, answer, at,
        )  # fmt: skip

    def _asker(self, one: Found) -> Identity | None:
        """Who asks at this site: of those whom its policy lets ask, and who can reach it; else anybody."""
        able = [each for each in self.identities if self._may(each, one)] or self.identities
        return asker_of(one.key, able)

    def _may(self, identity: Identity, one: Found) -> bool:
        if self.mode is Mode.ENHANCED and forbidden(one.policy, identity.pool_tags) is not None:
            return False
        return reaches(identity, [(host.name, host.addresses) for host in one.route.dialable])

    def _end(self, one: Found, asker: Identity | None, *, known: bool) -> tuple[str, str, str] | None:
        """What ends a domain's addresses without a session: (reason, detail, catch_all)."""
        if not self.connect:
            return "mailbox_unchecked", "not_connected", "not_checked"
        if self.mode is Mode.ENHANCED:
            return self._unasked(one.policy, asker, catch_all=known)
        if one.claimed or known:
            return "mailbox_unchecked", "provider_known" if one.claimed else "known", "not_checked"
        return None

    @staticmethod
    def _unasked(policy: Policy, asker: Identity | None, *, catch_all: bool) -> tuple[str, str, str] | None:
        if (refused := forbidden(policy, asker.pool_tags if asker else frozenset())) is not None:
            return *refused, "not_checked"
        if catch_all:
            return "catch_all", "known", "yes"
        return None

    def _known(self, state: State, found: Sequence[Found]) -> dict[str, str]:
        """Domain -> the site at which the identity state knows the answer already."""
        now = self.clock()
        if self.mode is Mode.STANDARD:
            alive = state.learned([one.key for one in found if one.key])
            return {
                one.route.domain: one.key for one in found if alive.get(one.key, {}).get(ALIVE, 0.0) > now
            }  # fmt: skip
        facts = state.facts([one.route.domain for one in found], now)
        return {name: fact.site for name, fact in facts.items() if fact.answer == ControlAnswer.ACCEPTS}


def asker_of(site: str, able: Sequence[Identity]) -> Identity | None:
    """Who of these asks at a site: always the same one, and still the same when another joins or leaves, mostly."""
    return max(able, key=lambda each: sha256(f"{each.key} {site}".encode()).digest(), default=None)


def reaches(identity: Identity, hosts: Sequence[tuple[str, Sequence[str]]]) -> bool:
    """Whether an identity has an address of a family in which one of these hosts can be dialled."""
    addresses = [ip for _, ips in hosts for ip in ips]
    return not addresses or any(identity.public_v6 if ":" in ip else identity.public_v4 for ip in addresses)


def forbidden(policy: Policy, pool_tags: frozenset[str]) -> tuple[str, str] | None:
    """Why RCPT is not asked under this policy by an identity with these tags: (reason, detail), or None: it may be."""
    if policy.rcpt == "never":
        return "provider_not_probed", "terms"
    if policy.rcpt == "uninformative":
        return "provider_unverifiable", ""
    if policy.pools and not pool_tags.intersection(policy.pools):
        return "provider_not_probed", "pool:" + ",".join(policy.pools)
    return None


def pack_hosts(hosts: Iterable[MailHost]) -> str:
    """Mail hosts as the journal keeps them."""
    return _dumped([[host.name, host.addresses] for host in hosts])


def unpack_hosts(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(name, addresses) of mail hosts out of the journal, in the order in which to try them."""
    return tuple((name, tuple(addresses)) for name, addresses in json.loads(text))
