"""One question to a name server, with the whole answer: by dnspython, over UDP and, where truncated, TCP.

1. Names go out as they are: absolute, never along a search list. What is asked may hold a key, so neither an Answer
   nor an error quotes the name.
2. Each server is asked in turn, twice round, until one gives an answer; SERVFAIL and REFUSED are none, and are told
   when nobody gave a better one.
3. dnspython waits on sockets of the standard library: in a patched process other greenlets run meanwhile. What shares a
   process with probes demands that by `must_be_patched`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver
from gevent import monkey

from engine.reputation.verdict import Answer

Server = tuple[str, int]
TIMEOUT_S = 3.0  # of one try
ROUNDS = 2
_PAYLOAD = 1232  # octets over UDP that no path fragments
_MAX_TEXT = 512


class QueryError(Exception):
    """Nobody can be asked; the message says what to do."""


class Asker:
    """Asks name servers (address, port) for A and TXT records."""

    def __init__(self, servers: Sequence[Server], timeout_s: float = TIMEOUT_S) -> None:
        if not servers:
            raise QueryError("no name server is known; name one with --dns HOST:PORT")
        self.servers = tuple(servers)
        self._timeout_s = timeout_s

    def ask(self, name: str, kind: str = "A") -> Answer:
        """The answer to one question; failures of every sort are an Answer too."""
        try:
            query = dns.message.make_query(dns.name.from_text(f"{name}."), kind, use_edns=0, payload=_PAYLOAD)
        except dns.exception.DNSException:  # too long, or an empty label
            return Answer("", failure="the name is too long to be asked")
        answer = Answer("", failure="timed out")
        for server in self.servers * ROUNDS:
            started = time.monotonic()
            read = self._once(query, server)
            read = Answer(read.rcode, read.records, read.failure, read.ttl_s, 1000 * (time.monotonic() - started))
            if not read.error:
                return read
            if not read.failure or answer.failure:  # an rcode tells more than silence
                answer = read
        return answer

    def _once(self, query: dns.message.Message, server: Server) -> Answer:
        host, port = server
        try:
            reply = dns.query.udp(query, host, self._timeout_s, port, ignore_unexpected=True, ignore_errors=True)
            if reply.flags & dns.flags.TC:
                reply = dns.query.tcp(query, host, self._timeout_s, port)
        except dns.exception.Timeout:
            return Answer("", failure="timed out")
        except OSError as error:
            return Answer("", failure=f"the name server can't be reached ({error.strerror or 'no reason given'})")
        except (dns.exception.DNSException, EOFError, ValueError):
            return Answer("", failure="malformed")
        return read_reply(reply)


def read_reply(reply: dns.message.Message) -> Answer:
    """What a name server's message says."""
    rcode = dns.rcode.to_text(reply.rcode())
    if rcode not in ("NOERROR", "NXDOMAIN"):
        return Answer(rcode)
    if reply.flags & dns.flags.TC:
        return Answer("", failure="truncated")
    try:
        chain = reply.resolve_chaining()  # type: ignore[attr-defined]  # a reply to a query has it
    except dns.exception.DNSException:
        return Answer("", failure="malformed")
    contradicts = rcode == "NXDOMAIN" and chain.answer is not None  # it exists, and it doesn't
    elsewhere = bool(reply.answer) and chain.answer is None and not chain.cnames  # what nobody asked for
    if contradicts or elsewhere:
        return Answer("", failure="malformed")
    if chain.answer is None:
        return Answer(rcode, failure="lame" if _lame(reply) else "", ttl_s=chain.minimum_ttl)
    if chain.answer.rdtype == dns.rdatatype.TXT:
        records = tuple(_printable(b"".join(item.strings)) for item in chain.answer)
    else:
        records = tuple(item.address for item in chain.answer)
    return Answer(rcode, records, ttl_s=chain.minimum_ttl)


def _lame(reply: dns.message.Message) -> bool:
    """A referral in place of an answer: the server neither knows the zone nor asks others for us."""
    if reply.rcode() != dns.rcode.NOERROR or reply.flags & (dns.flags.AA | dns.flags.RA):
        return False
    kinds = {rrset.rdtype for rrset in reply.authority}
    return dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds


def _printable(text: bytes) -> str:
    """A TXT record as one line that no terminal minds."""
    decoded = text.decode("utf-8", "replace")
    return "".join(each if each.isprintable() else " " for each in decoded)[:_MAX_TEXT].strip()


def system_servers() -> tuple[Server, ...]:
    """The name servers of resolv.conf; raises QueryError."""
    try:
        found = dns.resolver.Resolver()
    except dns.exception.DNSException:
        raise QueryError("resolv.conf can't be read; name a name server with --dns HOST:PORT") from None
    return tuple((str(each), found.port) for each in found.nameservers)


def must_be_patched() -> None:
    """Raises QueryError in a process where a question would stop every greenlet until it is answered."""
    if not (monkey.is_module_patched("socket") and monkey.is_module_patched("selectors")):
        raise QueryError("block lists can't be watched in a process that gevent has not patched; run `engine monitor`")
