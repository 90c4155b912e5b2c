"""Which caps stand above a lane, and how long they are kept.

1. A host that is dialled stands under the policy that claims it, whatever policy its domain has: under that provider,
   or, where each site has its own numbers, under that host. A host that nobody claims stands under its address: one
   IPv4 address or one IPv6 /64, with the numbers of the default policy.
2. Above these stands `across_sites` of the same policy, and above all of them the identity.
3. A cap that nobody uses is kept until a new one would be as good.
4. A cap that is new may have a past, and one that leaves has made one: `fresh` and `gone` hold those whose memory the
   caller has not brought back or saved yet.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from engine.core.cap import Cap, across_cap, identity_cap, site_cap
from engine.core.identity import Identity
from engine.core.lane import Lane, Visit
from engine.core.policy import Policy, PolicySet
from engine.core.schedule import Schedule

MAX_HOSTS = 3  # of a site that a visit may dial
MAX_ADDRESSES = 2  # of each
REMEMBERED = 10_000  # hosts whose policy is known

Hosts = Sequence[tuple[str, Sequence[str]]]


class Caps:
    """The caps of one identity's lanes, by key; a lane's own limits are one of them.

    `began_at` is when the identity's warm-up began (monotonic seconds; it may be negative).
    """

    def __init__(self, policies: PolicySet, identity: Identity | None = None, began_at: float = 0.0) -> None:
        self.identity = identity_cap(identity, began_at) if identity is not None else None
        self.fresh: list[Cap] = [self.identity] if self.identity is not None else []
        self.gone: list[Cap] = []
        self._policies = policies
        self._v4 = identity is None or bool(identity.public_v4)
        self._v6 = identity is None or bool(identity.public_v6)
        self._claimed: dict[str, Policy | None] = {}
        self._caps: dict[str, Cap] = {}
        self._unused: list[tuple[float, str]] = []  # when each may be forgotten

    def __len__(self) -> int:
        return len(self._caps)

    def __iter__(self) -> Iterator[Cap]:
        """Every cap there is, the identity's too."""
        if self.identity is not None:
            yield self.identity
        yield from list(self._caps.values())

    # --- lanes ------------------------------------------------------------------------------------------------

    def lane(self, key: str, policy: Policy, hosts: Hosts) -> Lane:
        """A new lane under its caps. What is `fresh` has to be brought back before it starts anything."""
        first = self._first(hosts) if policy.scope == "site" else None
        above = self._dialled(policy, *first) if first is not None else self.identity
        own = above if above is not None and above.key == key else self._site(key, policy, above)
        lane = Lane(key, policy, own, self._beside(policy, hosts))
        self._use(lane.caps)
        return lane

    def adopt(self, policies: PolicySet, now: float) -> Iterator[tuple[Cap, float]]:
        """Other policies from now on, in all caps there are. Lanes follow by `rehang`.

        Gives each cap whose refusals are counted over a longer time than before, and that earlier time in seconds.
        """
        self._policies = policies
        self._claimed.clear()
        for cap in list(self._caps.values()):
            old = cap.policy
            new = (policies.named(old.name) or policies.default) if old is not None else None
            if new is None or new == old:
                continue
            before_s = cap.budget.window_s if cap.budget else 0.0
            cap.adopt(new, now)
            if cap.budget is not None and cap.budget.window_s > before_s:
                yield cap, before_s

    def rehang(self, lane: Lane, policy: Policy, hosts: Hosts) -> None:
        """A lane takes over a policy that a reload changed, and an `across_sites` that it has come to have."""
        before, across = lane.caps, self._across(policy)
        its = [cap for cap in lane.own.chain if cap.pace is not None and cap.policy and cap.policy.name == policy.name]
        if policy.scope == "site" and its and its[-1].above is self.identity:
            its[-1].above = across
        lane.caps = lane.own.chain
        self._use([cap for cap in lane.caps if cap not in before])
        lane.adopt(policy, self._beside(policy, hosts))

    # --- visits -----------------------------------------------------------------------------------------------

    def admit(self, schedule: Schedule, visit: Visit, caps: tuple[Cap, ...], now: float) -> bool:
        """Whether a visit may dial an address that it can `reach` under these caps: they are charged, then.

        As with `lane`, what is `fresh` has to be brought back first.
        """
        if caps == visit.caps:
            return True
        self._use(caps)
        if not schedule.divert(visit, caps, now):
            self.let_go(caps, now)
            return False
        self.let_go(visit.borrowed, now)
        visit.borrowed = caps
        return True

    def reach(self, lane: Lane, host: str, ip: str) -> tuple[Cap, ...]:
        """The caps of a lane's session at this address."""
        if lane.policy.scope == "provider":
            return lane.caps
        above = self._dialled(lane.policy, host, ip)
        if above is lane.own or (above is None and lane.own.above is None):
            return lane.own.chain
        return (lane.own, *above.chain) if above is not None else (lane.own,)

    def done(self, visit: Visit, now: float) -> None:
        """A visit is over: what it was diverted to is used no more."""
        self.let_go(visit.borrowed, now)

    def let_go(self, caps: Sequence[Cap], now: float) -> None:
        """Caps that a lane or a visit needs no more; `gone` has those that leave memory."""
        for cap in caps:
            cap.users -= 1
            if not cap.users and cap is not self.identity:
                self._forget(cap, now)
        while self._unused and self._unused[0][0] <= now:
            known = self._caps.get(heapq.heappop(self._unused)[1])
            if known is not None and not known.users:
                self._forget(known, now)

    # --- inside -----------------------------------------------------------------------------------------------

    def _forget(self, cap: Cap, now: float) -> None:
        """Nobody uses a cap: it goes, or is looked at again when a new one would be as good."""
        full_at = cap.full_at
        if full_at > now:
            heapq.heappush(self._unused, (full_at, cap.key))
        elif self._caps.pop(cap.key, None) is not None:
            self.gone.append(cap)

    def _first(self, hosts: Hosts) -> tuple[str, str] | None:
        """Where a visit begins: the first host and address that this identity can dial."""
        for host, addresses in hosts[:MAX_HOSTS]:
            for ip in addresses[:MAX_ADDRESSES]:
                if self._v6 if ":" in ip else self._v4:
                    return host, ip
        return None

    def _beside(self, policy: Policy, hosts: Hosts) -> Sequence[Policy]:
        """Other policies that claim hosts of a lane."""
        others: tuple[Policy, ...] = ()
        for name, _ in hosts[:MAX_HOSTS]:
            claimed = self._claiming(name)
            if claimed is not None and claimed.name != policy.name:
                others += (claimed,)
        return others

    def _dialled(self, policy: Policy, host: str, ip: str) -> Cap | None:
        """The innermost cap over a host that is dialled, beside a lane's own."""
        claimed = self._claiming(host)
        if claimed is None:
            default = self._policies.default
            return self._site(neighbour(ip), default, self._across(default))
        if claimed.name == policy.name:
            return self._across(claimed)
        if claimed.scope == "provider":
            return self._site(claimed.name, claimed, self.identity)
        return self._site(host, claimed, self._across(claimed))

    def _claiming(self, host: str) -> Policy | None:
        """The policy that claims a host; a lane asks for the same few again and again."""
        if host not in self._claimed:
            if len(self._claimed) >= REMEMBERED:
                self._claimed.clear()
            self._claimed[host] = self._policies.claiming(host)
        return self._claimed[host]

    def _across(self, policy: Policy) -> Cap | None:
        if policy.across_sites is None:
            return self.identity
        key = f"{policy.name} across_sites"
        if key not in self._caps:
            self._caps[key] = across_cap(key, policy, policy.across_sites, self.identity)
            self.fresh.append(self._caps[key])
        return self._caps[key]

    def _site(self, key: str, policy: Policy, above: Cap | None) -> Cap:
        known = self._caps.get(key)
        if known is None:
            known = self._caps[key] = site_cap(key, policy, above)
            self.fresh.append(known)
        elif not known.users:
            known.above = above  # the one that it had may have left memory before it
        return known

    def _use(self, caps: Sequence[Cap]) -> None:
        for cap in caps:
            cap.users += 1


def neighbour(ip: str) -> str:
    """The key of everybody at this address (a literal as DNS gives it), the same as that of a site that is one."""
    return f"[{ip_network((ip, 64), strict=False)}]" if ":" in ip else f"[{ip}]"
