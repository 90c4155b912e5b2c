"""Questions to DNS, each asked once: memory, one flight at a time, aliases followed, bad news asked twice.

1. The same question from many greenlets is one query; a greenlet that dies while it asks leaves it to the next.
2. Bad news (NXDOMAIN, SERVFAIL, REFUSED, garbage) is believed when it came twice: the second question goes over TCP,
   and where there are several servers to the next one first. An NXDOMAIN without a second one is a failure.
3. NOERROR proves nothing by itself: the answer may hold only CNAMEs, or nothing.
4. CNAMEs are followed inside a message, then by further questions, MAX_ALIASES in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gevent.event import AsyncResult
from pycares import QUERY_TYPE_A, QUERY_TYPE_AAAA, QUERY_TYPE_CNAME, QUERY_TYPE_MX, QUERY_TYPE_PTR, DNSResult, errno

from engine.net.cares import Channel
from engine.net.dns_cache import FAILURE_TTL_S, MAX_NAMES, MAX_TTL_S, NEGATIVE_TTL_S, Answer, Cache, Outcome

A, AAAA, MX, PTR = QUERY_TYPE_A, QUERY_TYPE_AAAA, QUERY_TYPE_MX, QUERY_TYPE_PTR
MAX_ALIASES = 8  # BIND follows 16, unbound 11; a mail host of a working domain needs one or two
TIMEOUT_S = 8.0
TRIES = 5
_NAMES = {A: "a", AAAA: "aaaa", MX: "mx", PTR: "ptr"}
_OUTCOMES = {
    errno.ARES_ENOTFOUND: Outcome.NXDOMAIN,
    errno.ARES_ENODATA: Outcome.NODATA,
    errno.ARES_ESERVFAIL: Outcome.SERVFAIL,
    errno.ARES_EREFUSED: Outcome.REFUSED,
    errno.ARES_ECONNREFUSED: Outcome.UNREACHABLE,
    errno.ARES_ECANCELLED: Outcome.UNREACHABLE,  # the resolver was closed
    errno.ARES_ETIMEOUT: Outcome.TIMEOUT,
    errno.ARES_EBADNAME: Outcome.NODATA,  # no zone can hold it; the question never left
}
_ASK_AGAIN = frozenset({Outcome.NXDOMAIN, Outcome.SERVFAIL, Outcome.REFUSED, Outcome.MALFORMED})


class Lookup:
    """A resolver's questions and its memory; the arguments are those of `Resolver`."""

    def __init__(
        self,
        servers: Sequence[tuple[str, int]] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        tries: int = TRIES,
        cache_names: int = MAX_NAMES,
        clock: Callable[[], float] = time.monotonic,
        record: Callable[[str, str, float], None] | None = None,
    ) -> None:
        named = None if servers is None else [_csv(host, port) for host, port in servers]
        self._first = Channel(named, tcp=False, timeout_s=timeout_s, tries=tries)
        named = self._first.servers
        self._second = Channel([*named[1:], *named[:1]], tcp=True, timeout_s=timeout_s, tries=tries)
        self.clock = clock
        self.cache = Cache(cache_names)
        self._flights: dict[tuple[str, int], AsyncResult] = {}
        self._record = record

    @property
    def servers(self) -> tuple[str, ...]:
        """The name servers that are asked, as "host:port"."""
        return tuple(self._first.servers)

    def ask(self, name: str, kind: int) -> Answer:
        """The answer for a name (lower case, no trailing dot), aliases followed; never `ALIAS`."""
        seen, hops, until = {name}, 0, float("inf")
        while True:
            answer = self._once(name, kind)
            hops, until = hops + answer.hops, min(until, answer.until)
            if answer.outcome is not Outcome.ALIAS:
                return replace(answer, hops=hops, until=until) if hops else answer
            name = answer.target
            if name in seen or hops > MAX_ALIASES:
                return Answer(Outcome.CNAME_LOOP, target=name, hops=hops, until=until)
            seen.add(name)

    def close(self) -> None:
        """End both channels; questions still open end as failures."""
        self._first.close()
        self._second.close()

    def _once(self, name: str, kind: int) -> Answer:
        key = (name, kind)
        while True:
            known = self.cache.get(key, self.clock())
            if known is not None:
                return known
            flight = self._flights.get(key)
            if flight is None:
                break
            answer: Answer | None = flight.get()
            if answer is not None:
                return answer
        self._flights[key] = AsyncResult()
        try:
            fetched = self._fetch(name, kind)
        except BaseException:
            self._flights.pop(key).set(None)  # the next one asks
            raise
        self.cache.put(key, fetched, self.clock())
        self._flights.pop(key).set(fetched)
        return fetched

    def _fetch(self, name: str, kind: int) -> Answer:
        began = self.clock()
        answer = read(name, kind, *self._first.ask(name, kind), self.clock())
        if answer.outcome in _ASK_AGAIN:
            again = read(name, kind, *self._second.ask(name, kind), self.clock())
            if not again.outcome.failed:
                answer = again
            elif answer.outcome is Outcome.NXDOMAIN:
                answer = replace(again, unconfirmed=True)
        if self._record is not None:
            self._record(_NAMES[kind], answer.outcome, self.clock() - began)
        return answer


def read(name: str, kind: int, result: DNSResult | None, status: int, now: float) -> Answer:
    """What one message (or c-ares' `status`, when there is none) says about `name`."""
    if result is None:
        outcome = _OUTCOMES.get(status, Outcome.MALFORMED)
        return Answer(outcome, until=now + (FAILURE_TTL_S if outcome.failed else NEGATIVE_TTL_S))
    records: list[Any] = result.answer  # each type has a record class of its own; `type` says which
    aliases = {_lower(rr.name): rr for rr in records if rr.type == QUERY_TYPE_CNAME}
    owner, seen, ttl = name, {name}, MAX_TTL_S
    while owner in aliases:
        alias = aliases[owner]
        owner, ttl = _lower(alias.data.cname), min(ttl, alias.ttl)
        if owner in seen or len(seen) > MAX_ALIASES:
            return Answer(Outcome.CNAME_LOOP, target=owner, hops=len(seen), until=now + NEGATIVE_TTL_S)
        seen.add(owner)
    found = [rr for rr in records if rr.type == kind and _lower(rr.name) == owner]
    hops = len(seen) - 1
    if not found:
        outcome = Outcome.ALIAS if hops else Outcome.NODATA
        return Answer(outcome, target=owner if hops else "", hops=hops, until=now + min(ttl, NEGATIVE_TTL_S))
    until = now + min(ttl, *(rr.ttl for rr in found))
    if kind == MX:
        return _read_mx(found, result.additional, hops, until, now)
    values = [_lower(rr.data.dname) for rr in found] if kind == PTR else [rr.data.addr for rr in found]
    return Answer(Outcome.FOUND, values=tuple(dict.fromkeys(values)), hops=hops, until=until)


def _read_mx(found: list[Any], additional: list[Any], hops: int, until: float, now: float) -> Answer:
    """Addresses of the additional section count only for the names that the MX records gave."""
    exchanges = tuple((rr.data.priority, _lower(rr.data.exchange)) for rr in found)
    names = {name for _, name in exchanges}
    extra = []
    for rr in additional:
        if rr.type in (A, AAAA) and _lower(rr.name) in names:
            extra.append((_lower(rr.name), rr.data.addr))
            until = min(until, now + rr.ttl)
    return Answer(Outcome.FOUND, exchanges=exchanges, extra=tuple(extra), hops=hops, until=until)


def _lower(name: str) -> str:
    return name.lower().removesuffix(".")


def _csv(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
