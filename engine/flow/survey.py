"""SG2 and SG3: each distinct domain is resolved once, gets its site, or ends here.

1. Nothing is asked where the answer would mean nothing: uninformative and forbidden providers end here.
2. What the identity state knows of a domain is used before anybody is dialled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gevent.pool import Pool

from engine.core.control import ControlAnswer
from engine.core.identity import Mode
from engine.core.policy import Policy, PolicySet
from engine.core.reasons import Stage
from engine.core.route import MailHost, Route, site_key
from engine.net.resolver import Resolver
from engine.store.journal import Journal, Routed
from engine.store.state import State

IN_FLIGHT = 256  # domains resolved at a time
CHUNK = 1024  # domains a journal read and a facts query

_DOMAIN_REASONS = frozenset({"domain_not_found", "domain_null_mx", "dns_timeout", "dns_servfail"})


@dataclass(frozen=True, slots=True)
class Survey:
    """Resolves domains and says, for each, the site that serves it or the reason that ends its addresses."""

    mode: Mode
    policies: PolicySet
    resolver: Resolver
    pool_tags: frozenset[str] = frozenset()
    connect: bool = True
    clock: Callable[[], float] = lambda: 0.0

    def run(self, journal: Journal, state: State | None, stamp: Callable[[], str], stop: Callable[[], bool]) -> int:
        """Route every domain of the journal that has no route yet; says how many."""
        pool = Pool(IN_FLIGHT)
        after = done = 0
        while not stop() and (chunk := journal.unrouted(after, CHUNK)):
            after = chunk[-1][0]
            names = [name for _, name in chunk]
            known = self._catch_alls(state, names)
            routes = pool.imap(self.resolver.route, names, maxsize=IN_FLIGHT)
            found = zip(chunk, routes, strict=True)
            journal.route([self.judge(i, route, known.get(name, ""), stamp()) for (i, name), route in found])
            done += len(chunk)
        return done

    def judge(self, domain_id: int, route: Route, catch_all_at: str, at: str) -> Routed:
        """The journal's row for one resolved domain; `catch_all_at` is the site at which it is known to accept all."""
        policy = self.policies.for_hosts(route.names)
        name = policy.name
        first = route.names[0] if route.names else ""
        if route.reason:
            stage = Stage.DOMAIN if route.reason in _DOMAIN_REASONS else Stage.HOSTS
            return Routed(domain_id, "", "", name, "[]", route.reason, route.detail, stage, first, checked_at=at)
        claimed = policy is not self.policies.default
        key = site_key(route, claimed=claimed)
        lane = name if policy.scope == "provider" else key
        ended = self._end(policy, claimed=claimed, catch_all=catch_all_at == key)
        reason, detail, answer = ended or ("", "", "not_checked")
        return Routed(
            domain_id, key, lane, name, pack_hosts(route.dialable), reason, detail, Stage.HOSTS, first, answer, at
        )

    def _end(self, policy: Policy, *, claimed: bool, catch_all: bool) -> tuple[str, str, str] | None:
        """What ends a domain's addresses without a session: (reason, detail, catch_all)."""
        if not self.connect:
            return "mailbox_unchecked", "not_connected", "not_checked"
        if self.mode is Mode.STANDARD:
            return ("mailbox_unchecked", "provider_known", "not_checked") if claimed else None
        return self._unasked(policy, catch_all=catch_all)

    def _unasked(self, policy: Policy, *, catch_all: bool) -> tuple[str, str, str] | None:
        if policy.rcpt == "never":
            return "provider_not_probed", "terms", "not_checked"
        if policy.rcpt == "uninformative":
            return "provider_unverifiable", "", "not_checked"
        if policy.pools and not self.pool_tags.intersection(policy.pools):
            return "provider_not_probed", "pool:" + ",".join(policy.pools), "not_checked"
        if catch_all:
            return "catch_all", "known", "yes"
        return None

    def _catch_alls(self, state: State | None, names: Sequence[str]) -> dict[str, str]:
        if state is None or self.mode is Mode.STANDARD:
            return {}
        facts = state.facts(names, self.clock())
        return {name: fact.site for name, fact in facts.items() if fact.answer == ControlAnswer.ACCEPTS}


def pack_hosts(hosts: Iterable[MailHost]) -> str:
    """Mail hosts as the journal keeps them."""
    return json.dumps([[host.name, list(host.addresses)] for host in hosts], separators=(",", ":"))


def unpack_hosts(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(name, addresses) of mail hosts out of the journal, in the order in which to try them."""
    return tuple((name, tuple(addresses)) for name, addresses in json.loads(text))
