"""Whether this machine may connect to port 25 at all: learnt by the first sessions of a run, before there are many.

1. Until one TCP connection came about, three sites are tried at most, with one session each.
2. When all of them time out, three more are, in other /16s than those and than each other. When these time out too,
   the port is closed here.
3. Who fails in another way (refused, unreachable) proves neither, and another site takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

FIRST = 3
MORE = 3


def neighbourhood(ip: str) -> str:
    """The /16 of an address (IPv6: /32): one provider's network, or a part of it."""
    if ":" in ip:
        return str(ip_network(f"{ip}/32", strict=False))
    first, second, _ = ip.split(".", 2)
    return f"{first}.{second}.0.0/16"


class Egress:
    """`admits` says whether a site may be tried now; tell what was `started`, `connected`, `failed` and `ended`."""

    def __init__(self) -> None:
        self.proven = False
        self._tried: set[str] = set()
        self._silent: set[str] = set()  # neighbourhoods of sites that timed out, or are being tried in the second round
        self._first = self._more = 0  # sites that timed out in each round
        self._flying: dict[str, bool | None] = {}  # site -> whether all of its connects timed out so far
        self._again: set[str] = set()  # of those, the ones that prove nothing new

    @property
    def closed(self) -> bool:
        """Whether it is proven that nothing gets out."""
        return not self.proven and self._more >= MORE

    @property
    def waits(self) -> bool:
        """Whether the sessions under way have to end before another may start."""
        return self.flying >= (MORE - self._more if self._first >= FIRST else FIRST - self._first)

    @property
    def flying(self) -> int:
        """Sessions under way."""
        return len(self._flying)

    def admits(self, site: str, neighbourhoods: Iterable[str]) -> bool:
        """Whether a first session at this site tells anything."""
        if site in self._tried:
            return False
        return self._first < FIRST or self._silent.isdisjoint(neighbourhoods)

    def started(self, site: str, neighbourhoods: Iterable[str], *, counts: bool = True) -> None:
        """A session starts at a site that was admitted; `counts` is false where nobody was, and one had to be."""
        self._tried.add(site)
        self._flying[site] = None
        if not counts:
            self._again.add(site)
        elif self._first >= FIRST:
            self._silent.update(neighbourhoods)

    def connected(self) -> None:
        """A TCP connection came about."""
        self.proven = True

    def failed(self, site: str, *, timed_out: bool) -> None:
        """A connect at a site failed."""
        if site in self._flying:
            self._flying[site] = timed_out and self._flying[site] is not False

    def ended(self, site: str, neighbourhoods: Iterable[str]) -> None:
        """The session at a site is over."""
        again = site in self._again
        self._again.discard(site)
        if not self._flying.pop(site, None) or again:
            return
        if self._first < FIRST:
            self._first += 1
            self._silent.update(neighbourhoods)
        else:
            self._more += 1

    def __repr__(self) -> str:
        return f"<Egress {'proven' if self.proven else f'unproven, {self._first} and {self._more} sites time out'}>"
