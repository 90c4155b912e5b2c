"""Where a domain's mail goes: the answer of SG2 and SG3.

1. A route either has hosts to dial or a reason code why not, never both, never neither.
2. A site is what shares sessions: the sorted set of MX names, or one address that all of them share.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MailHost:
    """One mail host, with its public addresses in the order in which to try them (IPv4 first).

    `name` is lower case without a trailing dot; `problem` is empty, or says why the host can't be dialled:
    `no_address`, `cname_loop`, `literal`, `non_public`, `lookup_failed`, `ipv6_only`, `not_asked`.
    """

    name: str
    preference: int
    addresses: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """The mail hosts of one domain by preference, or the reason code that ends its addresses at SG2 or SG3.

    `implicit` says that there is no MX and the domain's own addresses serve (RFC 5321 section 5.1).
    `reason` is a code of `core.reasons`, empty when the domain can be dialled. `ttl_s` is how long it holds.
    """

    domain: str
    hosts: tuple[MailHost, ...] = ()
    implicit: bool = False
    reason: str = ""
    detail: str = ""
    ttl_s: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """All mail host names, those with problems too: policies match on these."""
        return tuple([host.name for host in self.hosts])

    @property
    def dialable(self) -> tuple[MailHost, ...]:
        """The hosts that have an address to connect to."""
        return tuple([host for host in self.hosts if host.addresses])


def site_key(route: Route, *, claimed: bool) -> str:
    """The key of the site that serves this route.

    The sorted set of its MX names; only where every name has exactly one address, the same one, and no provider
    policy claims the names (`claimed`), that address: 500 vanity MX names on one server are one neighbour.
    """
    addresses = {host.addresses for host in route.hosts}
    if not claimed and len(addresses) == 1:
        (only,) = addresses
        if len(only) == 1:
            return f"[{only[0]}]"
    return ",".join(sorted({host.name for host in route.hosts}))
