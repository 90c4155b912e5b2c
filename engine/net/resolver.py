"""The way to a domain's mail hosts: SG2 and SG3 (RFC 5321 section 5.1, RFC 7505).

1. `route` never raises for what DNS does; a route has hosts to dial or a reason, never both.
2. `invalid` needs evidence: a confirmed NXDOMAIN, no MX and no address, a null MX, or hosts that all lead nowhere.
   Whatever failed or was left unasked gives a `risky` reason, and another time may tell.
3. Cheapest first: addresses out of the MX answer's additional section, then A; AAAA only where we could use it, or
   where there is no usable A, to tell a host with IPv6 only from one that leads nowhere.
4. Hosts stand by preference; equal ones (RFC 5321 wants them spread) by a hash of domain and name: spread over domains,
   and the same after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from zlib import crc32

import gevent

from engine.core.route import MailHost, Route
from engine.net.dns_cache import MAX_NAMES, Answer, Outcome
from engine.net.lookup import AAAA, MX, PTR, TIMEOUT_S, TRIES, A, Lookup
from engine.net.public import admissible, is_literal

MAX_HOSTS = 10  # looked up per domain; the dialogue tries three, and no policy needs more to recognise a provider


class LookupFailedError(Exception):
    """The name servers failed or fell silent; `reason` is `dns_servfail` or `dns_timeout`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: the name servers {'fell silent' if reason == 'dns_timeout' else 'failed'}")
        self.reason = reason


class Resolver:
    """Finds mail hosts; call it from many greenlets of one hub.

    `servers` are (address, port) pairs, None means the system's (`/etc/resolv.conf`). `allow_private` admits mail hosts
    on private networks. `ipv6` says that the identity has an IPv6 address. `timeout_s` bounds one question with its at
    most `tries` repetitions. `record(type, outcome, seconds)` sees every question that went to a server.
    """

    def __init__(
        self,
        servers: Sequence[tuple[str, int]] | None = None,
        *,
        allow_private: bool = False,
        ipv6: bool = False,
        timeout_s: float = TIMEOUT_S,
        tries: int = TRIES,
        cache_names: int = MAX_NAMES,
        clock: Callable[[], float] = time.monotonic,
        record: Callable[[str, str, float], None] | None = None,
    ) -> None:
        self._lookup = Lookup(
            servers, timeout_s=timeout_s, tries=tries, cache_names=cache_names, clock=clock, record=record
        )
        self._allow_private = allow_private
        self._ipv6 = ipv6
        self._clock = clock

    @property
    def servers(self) -> tuple[str, ...]:
        """The name servers that are asked, as "host:port"."""
        return self._lookup.servers

    def route(self, domain: str) -> Route:
        """Where the mail of `domain` (A-labels, lower case) goes. It holds for `ttl_s`."""
        answer = self._lookup.ask(domain, MX)
        match answer.outcome:
            case Outcome.FOUND:
                route, until = self._explicit(domain, answer)
            case Outcome.NODATA:
                route, until = self._implicit(domain)
            case Outcome.NXDOMAIN:
                detail = "dangling_cname" if answer.hops else ""
                route, until = Route(domain, reason="domain_not_found", detail=detail), answer.until
            case Outcome.CNAME_LOOP:
                route, until = Route(domain, reason="domain_mx_unroutable", detail="cname_loop"), answer.until
            case _:
                route, until = Route(domain, reason=_failure(answer), detail=_failure_detail(answer)), answer.until
        ttl_s = max(0.0, until - self._clock())
        return Route(route.domain, route.hosts, route.implicit, route.reason, route.detail, ttl_s)

    def addresses(self, name: str) -> tuple[str, ...]:
        """All addresses of a name, IPv4 first, non-public ones included; raises LookupFailedError."""
        return (*self._values(name, A), *self._values(name, AAAA))

    def reverse(self, address: str) -> tuple[str, ...]:
        """The names that the address's PTR records give, lower case; raises LookupFailedError."""
        return self._values(ip_address(address).reverse_pointer, PTR)

    def close(self) -> None:
        """End every question; call it once, from a greenlet."""
        self._lookup.close()

    def _values(self, name: str, kind: int) -> tuple[str, ...]:
        answer = self._lookup.ask(name.lower().removesuffix("."), kind)
        if answer.outcome.failed:
            raise LookupFailedError(name, _failure(answer))
        return answer.values

    def _explicit(self, domain: str, answer: Answer) -> tuple[Route, float]:
        preferences: dict[str, int] = {}
        for preference, name in sorted(answer.exchanges):
            preferences.setdefault(name, preference)
        if preferences.keys() == {""}:
            return Route(domain, reason="domain_null_mx"), answer.until
        preferences.pop("", None)  # a null MX beside others says nothing (RFC 7505 section 3)
        names = sorted(preferences, key=lambda name: (preferences[name], crc32(f"{domain} {name}".encode()), name))
        known: dict[str, list[str]] = {}
        for name, address in answer.extra:
            known.setdefault(name, []).append(address)
        asked = self._each(names[:MAX_HOSTS], known)
        hosts = [MailHost(name, preferences[name], *host[:2]) for name, host in zip(names, asked, strict=False)]
        hosts += [MailHost(name, preferences[name], problem="not_asked") for name in names[MAX_HOSTS:]]
        reason, detail = _verdict([host for host in hosts if host.problem], dialable=any(h.addresses for h in hosts))
        until = min(answer.until, *(until for _, _, until in asked))
        return Route(domain, tuple(hosts), reason=reason, detail=detail), until

    def _implicit(self, domain: str) -> tuple[Route, float]:
        addresses, problem, until = self._host(domain, ())
        if problem == "no_address":
            return Route(domain, implicit=True, reason="domain_no_mail_host"), until
        host = MailHost(domain, 0, addresses, problem)
        if problem == "lookup_failed":  # there may be a host or none: unlike behind an MX, nothing is known
            failed = self._lookup.ask(domain, A)
            failed = failed if failed.outcome.failed else self._lookup.ask(domain, AAAA)
            return Route(domain, implicit=True, reason=_failure(failed), detail=_failure_detail(failed)), until
        reason, detail = _verdict([host], dialable=not problem)
        return Route(domain, (host,), implicit=True, reason=reason, detail=detail), until

    def _each(self, names: Sequence[str], known: dict[str, list[str]]) -> list[tuple[tuple[str, ...], str, float]]:
        """All hosts at once where there are several to ask: a silent server costs one time-out, not one a host."""
        if len([name for name in names if name not in known]) < 2:
            return [self._host(name, known.get(name, ())) for name in names]
        jobs = [gevent.spawn(self._host, name, known.get(name, ())) for name in names]
        return [job.get() for job in jobs]

    def _host(self, name: str, known: Sequence[str]) -> tuple[tuple[str, ...], str, float]:
        """One host's addresses to dial, or its problem; and until when that holds."""
        if is_literal(name):
            return (), "literal", float("inf")
        v4 = [address for address in known if ":" not in address]
        v6 = [address for address in known if ":" in address]
        until, problem = float("inf"), ""
        if not v4:
            answer = self._lookup.ask(name, A)
            v4, until, problem = list(answer.values), answer.until, _problem(answer)
        usable_v4 = self._admitted(v4)
        if not v6 and (self._ipv6 or not usable_v4) and problem in ("", "no_data"):
            answer = self._lookup.ask(name, AAAA)
            v6, until = list(answer.values), min(until, answer.until)
            problem = _problem(answer)
        usable_v6 = self._admitted(v6)
        if usable_v4 or (usable_v6 and self._ipv6):
            return (usable_v4 + usable_v6 if self._ipv6 else usable_v4), "", until
        if usable_v6:
            return (), "ipv6_only", until
        if problem == "lookup_failed":
            return (), problem, until
        if v4 or v6:
            return (), "non_public", until
        return (), ("no_address" if problem == "no_data" else problem), until

    def _admitted(self, addresses: Sequence[str]) -> tuple[str, ...]:
        return tuple(each for each in addresses if admissible(each, allow_private=self._allow_private))


def _problem(answer: Answer) -> str:
    match answer.outcome:
        case Outcome.FOUND:
            return ""
        case Outcome.NODATA:
            return "no_data"
        case Outcome.NXDOMAIN:
            return "no_address"
        case Outcome.CNAME_LOOP:
            return "cname_loop"
        case _:
            return "lookup_failed"


def _verdict(troubled: Sequence[MailHost], *, dialable: bool) -> tuple[str, str]:
    """The reason and detail of a domain whose hosts have these problems; what may yet turn out well comes first."""
    if dialable:
        return "", ""
    problems = sorted({host.problem for host in troubled})
    if "lookup_failed" in problems or "not_asked" in problems:
        return "mx_lookup_incomplete", ",".join(problems)
    if "ipv6_only" in problems:
        return "no_route_ipv6", ""
    return "domain_mx_unroutable", ",".join(problems)


def _failure(answer: Answer) -> str:
    return "dns_timeout" if answer.outcome is Outcome.TIMEOUT else "dns_servfail"


def _failure_detail(answer: Answer) -> str:
    return "nxdomain_unconfirmed" if answer.unconfirmed else str(answer.outcome)
