"""Which caps stand above a lane, and how long they are kept.

1. A host that is dialled stands under the policy that claims it, whatever policy its domain has: under that provider,
   or, where each site has its own numbers, under that host. A host that nobody claims stands under its address: one
   IPv4 address or one IPv6 /64, with the numbers of the default policy.
2. Above these stands `across_sites` of the same policy, and above all of them the identity.
3. A cap that nobody uses is kept until a new one would be as good. What its windows have spent lives on in the state.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from datetime import time as day_time
from ipaddress import IPv6Address, ip_address, ip_network

from engine.core.cap import Cap, across_cap, identity_cap, site_cap
from engine.core.identity import Identity
from engine.core.lane import Lane, Visit
from engine.core.pace import RefusalBudget, Warmth
from engine.core.policy import Policy, PolicySet
from engine.core.schedule import Schedule
from engine.flow.dial import MAX_HOSTS
from engine.store.state import State

LONGEST_WINDOW_S = 86_400.0

Hosts = Sequence[tuple[str, Sequence[str]]]


class Caps:
    """The caps of one run, by key; a lane's own limits are one of them."""

    def __init__(
        self,
        policies: PolicySet,
        identity: Identity | None,
        state: State,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.identity = identity_cap(identity, _began_at(identity, clock, wall)) if identity is not None else None
        self._policies = policies
        self._state = state
        self._clock = clock
        self._wall = wall
        self._caps: dict[str, Cap] = {}
        self._users: Counter[str] = Counter()
        self._unused: list[tuple[float, str]] = []  # when each may be forgotten
        self._fresh: dict[str, RefusalBudget | Warmth] = dict(self.identity.windows) if self.identity else {}

    def __len__(self) -> int:
        return len(self._caps)

    def lane(self, key: str, policy: Policy, hosts: Hosts) -> Lane:
        """A new lane under its caps; `restore` has to follow before it starts anything."""
        above = self.identity
        if policy.scope == "site" and hosts and hosts[0][1]:
            above = self._dialled(policy, hosts[0][0], hosts[0][1][0])
        own = above if above is not None and above.key == key else self._site(key, policy, above)
        lane = Lane(key, policy, own)
        for claimed in [self._policies.claiming(name) for name, _ in hosts[:MAX_HOSTS]]:
            if claimed is not None and claimed.name != policy.name:
                asks = claimed.recipients
                lane.learn(per_transaction=asks.per_transaction, per_session=asks.per_session)
                lane.refusals_per_session = min(lane.refusals_per_session, claimed.refusals.per_session)
        self._use(lane.caps)
        return lane

    def restore(self) -> None:
        """Bring back what the windows of new caps have spent, by whatever run."""
        fresh, self._fresh = self._fresh, {}
        if not fresh:
            return
        now, wall = self._clock(), self._wall()
        for key, spendings in self._state.spent(list(fresh), wall - LONGEST_WINDOW_S).items():
            for at, tokens in spendings:
                fresh[key].spend(now - (wall - at), tokens)

    def admit(self, schedule: Schedule, visit: Visit, host: str, ip: str) -> bool:
        """Whether a visit may dial this address: its caps are charged, or it is charged to them already."""
        lane = visit.lane
        if lane.policy.scope == "provider":
            return True
        above = self._dialled(lane.policy, host, ip)
        caps = lane.own.chain if above in (None, lane.own) else (lane.own, *above.chain)
        if caps == visit.caps:
            return True
        left = visit.caps
        self._use(caps)
        self.restore()
        if not schedule.divert(visit, caps, self._clock()):
            self.let_go(caps)
            return False
        if left != lane.caps:
            self.let_go(left)
        return True

    def done(self, visit: Visit) -> None:
        """A visit is over: what it was diverted to is used no more."""
        if visit.caps != visit.lane.caps:
            self.let_go(visit.caps)

    def let_go(self, caps: Sequence[Cap]) -> None:
        """Caps that a lane or a visit needs no more."""
        for cap in caps:
            self._users[cap.key] -= 1
            if not self._users[cap.key] and cap is not self.identity:
                heapq.heappush(self._unused, (cap.full_at, cap.key))
        now = self._clock()
        while self._unused and self._unused[0][0] <= now:
            _, key = heapq.heappop(self._unused)
            known = self._caps.get(key)
            if known is not None and not self._users[key] and known.full_at <= now:
                del self._caps[key], self._users[key]

    # --- inside -----------------------------------------------------------------------------------------------

    def _dialled(self, policy: Policy, host: str, ip: str) -> Cap | None:
        """The innermost cap over a host that is dialled, beside a lane's own."""
        claimed = self._policies.claiming(host)
        if claimed is None:
            default = self._policies.default
            return self._site(_neighbour(ip), default, self._across(default))
        if claimed.name == policy.name:
            return self._across(claimed)
        if claimed.scope == "provider":
            return self._site(claimed.name, claimed, self.identity)
        return self._site(host, claimed, self._across(claimed))

    def _across(self, policy: Policy) -> Cap | None:
        if policy.across_sites is None:
            return self.identity
        key = f"{policy.name} across_sites"
        if key not in self._caps:
            self._caps[key] = across_cap(key, policy, policy.across_sites, self.identity)
        return self._caps[key]

    def _site(self, key: str, policy: Policy, above: Cap | None) -> Cap:
        known = self._caps.get(key)
        if known is None:
            known = self._caps[key] = site_cap(key, policy, above)
            self._fresh.update(known.windows)
        return known

    def _use(self, caps: Sequence[Cap]) -> None:
        for cap in caps:
            self._users[cap.key] += 1


def _neighbour(ip: str) -> str:
    """The key of everybody at this address, the same as that of a site that is one address."""
    address = ip_address(ip)
    return f"[{ip_network((address, 64), strict=False)}]" if isinstance(address, IPv6Address) else f"[{address}]"


def _began_at(identity: Identity, clock: Callable[[], float], wall: Callable[[], float]) -> float:
    """When the first day of the warm-up began, on the run's clock."""
    if identity.warmup is None:
        return 0.0
    return clock() + datetime.combine(identity.warmup.since, day_time(), UTC).timestamp() - wall()
