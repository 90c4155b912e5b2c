"""DNS questions whose whole answer matters, by dnspython: what SPF, DKIM and DMARC are judged by.

1. Each question is asked of the servers in turn: at the first a moment's time-out, then of the next. Two rounds.
2. No search list, no cache, no retry for an answer that was given. A truncated one is asked again over TCP.
3. Every question ends: QUESTION_S each, ALL_S over all questions of one `DnsLookup`.
4. Cooperative only in a process that gevent has patched; it works in others, and blocks there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import dns.exception
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from engine.reputation.answer import Answer

SERVER_S = 2.0
QUESTION_S = 8.0
ALL_S = 90.0
ROUNDS = 2
PAYLOAD = 1232  # octets: what passes every path without fragments (DNS flag day 2020)


class DnsLookup:
    """Ask it like a function: (name, type) -> Answer. `servers` are (address, port); None: those of resolv.conf."""

    def __init__(
        self,
        servers: Sequence[tuple[str, int]] | None = None,
        *,
        server_s: float = SERVER_S,
        question_s: float = QUESTION_S,
        all_s: float = ALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = list(servers) if servers is not None else _system()
        self._server_s = server_s
        self._question_s = question_s
        self._clock = clock
        self._ends = clock() + all_s

    def __call__(self, name: str, kind: str) -> Answer:
        """What the first server that answers says."""
        try:
            query = dns.message.make_query(_name(name), kind, use_edns=0, payload=PAYLOAD)
        except dns.exception.DNSException:  # no zone can hold it
            return Answer(nxdomain=True)
        ends = min(self._ends, self._clock() + self._question_s)
        failure = "no name server" if not self._servers else "timeout"
        for server, port in self._servers * ROUNDS:
            left_s = min(self._server_s, ends - self._clock())
            if left_s <= 0:
                break
            try:
                response, _ = dns.query.udp_with_fallback(query, server, left_s, port)
            except (dns.exception.DNSException, OSError, EOFError) as error:
                failure = "timeout" if isinstance(error, dns.exception.Timeout) else "unreachable"
                continue
            answer = read(response, kind)
            if not answer.failure:
                return answer
            failure = answer.failure
        return Answer(failure=failure)


def read(response: dns.message.Message, kind: str) -> Answer:
    """What a message says to the question in it; aliases inside the message are followed."""
    code = response.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Answer(failure=dns.rcode.to_text(code).lower())
    if not isinstance(response, dns.message.QueryMessage):
        return Answer(failure="malformed")
    try:
        found = response.resolve_chaining().answer
    except dns.exception.DNSException:
        return Answer(failure="malformed")
    if found is None:
        return Answer(nxdomain=code == dns.rcode.NXDOMAIN)
    records = sorted(found, key=lambda record: record.preference) if kind == "MX" else list(found)
    return Answer(tuple(_text(record, kind) for record in records))


def _text(record: Any, kind: str) -> str:
    match kind:
        case "TXT":
            return b"".join(record.strings).decode("latin-1")
        case "MX":
            return _plain(record.exchange)
        case "PTR":
            return _plain(record.target)
        case _:
            return str(record.address)


def _plain(name: dns.name.Name) -> str:
    """Without escapes and the last dot; the root, which is a null MX, is empty."""
    return b".".join(label for label in name.labels if label).decode("latin-1").lower()


def _name(name: str) -> dns.name.Name:
    """As it stands: a macro of SPF may make labels that a zone file would have to escape."""
    labels = [label.encode("latin-1", "replace") for label in name.removesuffix(".").split(".")]
    return dns.name.Name([*labels, b""])


def _system() -> list[tuple[str, int]]:
    try:
        found = dns.resolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        return []
    return [(str(server), found.port) for server in found.nameservers]
