"""A name server that misbehaves by script, and block lists made without a file."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from engine.core.grammar import Rate
from engine.core.listing import Severity
from engine.reputation.blocklist import BlockList, Code, Family, Kind, TestPoints
from engine.reputation.registry import Registry

Script = Callable[[dns.message.Message, str, int], dns.message.Message | bytes | None]
_USUAL = {
    Family.IPV4: TestPoints("127.0.0.2", "127.0.0.1"),
    Family.IPV6: TestPoints("::ffff:7f00:2", "::ffff:7f00:1"),
    Family.DOMAIN: TestPoints("test", "invalid"),
}


class Server:
    """Answers over UDP and TCP at one port. `scripts` are by zone: script(query, "udp"|"tcp", how often asked) gives
    the reply; None is silence. `lists` are by zone too: what stands before the zone -> its A records."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.lists: dict[str, dict[str, list[str]]] = {}
        self.texts: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()
        self._servers = self._bound()
        self.address: tuple[str, int] = self._servers[0].server_address
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def count(self, zone: str, kind: str = "A") -> int:
        return len([1 for _, name, asked in self.asked if name.endswith(f".{zone}") and asked == kind])

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def handle(self, wire: bytes, transport: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        with self._lock:
            self.asked.append((transport, name, kind))
            times = len([1 for _, other, asked in self.asked if (other, asked) == (name, kind)])
        script = next((each for zone, each in self.scripts.items() if name.endswith(f".{zone}")), None)
        reply = script(query, transport, times) if script else self.honest(query)
        return reply.to_wire() if isinstance(reply, dns.message.Message) else reply

    def honest(self, query: dns.message.Message) -> dns.message.Message:
        """What a healthy list says; a zone that nobody described knows nothing."""
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        zone = next((zone for zone in self.lists if name.endswith(f".{zone}")), "")
        known = self.lists.get(zone, {}).get(name.removesuffix(f".{zone}"), [])
        reply = response(query, *(known if kind == "A" else self.texts.get(name, []) if known else []), kind=kind)
        if not known:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply

    def _bound(self) -> tuple[socketserver.BaseServer, socketserver.BaseServer]:
        outer = self

        class Datagram(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                wire, sock = self.request
                if (answer := outer.handle(wire, "udp")) is not None:
                    sock.sendto(answer, self.client_address)

        class Stream(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while len(head := self.rfile.read(2)) == 2:
                    wire = self.rfile.read(struct.unpack("!H", head)[0])
                    if (answer := outer.handle(wire, "tcp")) is None:
                        return
                    self.wfile.write(struct.pack("!H", len(answer)) + answer)

        for _ in range(20):
            udp = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Datagram)
            try:
                tcp = socketserver.ThreadingTCPServer(udp.server_address, Stream)
            except OSError:
                udp.server_close()
                continue
            udp.daemon_threads = tcp.daemon_threads = True
            udp.block_on_close = tcp.block_on_close = False
            return udp, tcp
        raise AssertionError("no port is free over UDP and TCP")


def response(query: dns.message.Message, *records: str, kind: str = "A", ttl: int = 300) -> dns.message.Message:
    """An authoritative answer with these records; rcode NOERROR."""
    reply = dns.message.make_response(query)
    reply.flags |= dns.flags.RA
    if records:
        data = [f'"{each}"' if kind == "TXT" else each for each in records]
        reply.answer.append(dns.rrset.from_text(query.question[0].name, ttl, "IN", kind, *data))
    return reply


@pytest.fixture
def answer() -> Callable[..., dns.message.Message]:
    """Makes replies: answer(query, "127.0.0.2")."""
    return response


@pytest.fixture
def server() -> Iterator[Server]:
    """The name server."""
    made = Server()
    yield made
    made.close()


@pytest.fixture
def silent_port() -> Iterator[tuple[str, int]]:
    """An address where questions arrive and are never answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


def make(zone: str = "bl.example", *codes: Code, kind: Kind = Kind.IP, **values: object) -> BlockList:
    families = values.pop("families", (Family.DOMAIN,) if kind is Kind.DOMAIN else (Family.IPV4,))
    assert isinstance(families, tuple)
    made = BlockList(
        name=zone.partition(".")[0],
        zone=zone,
        kind=kind,
        severity=Severity.HIGH,
        codes=codes or (row("127.0.0.2"),),
        tests=tuple((family, _USUAL[family]) for family in families),
        interval_s=900.0,
        rate=Rate(100_000, 1.0),
    )
    return replace(made, **values)  # type: ignore[arg-type]


def row(first: str = "", last: str = "", *, bit: int = 0, sublist: str = "bl", **values: object) -> Code:
    numbers = [int(IPv4Address(each)) for each in (first, last or first) if each] or [0, 0]
    made = Code(sublist, "sends spam", Severity.HIGH, first=numbers[0], last=numbers[-1], bit=bit)
    return replace(made, **values)  # type: ignore[arg-type]


@pytest.fixture
def blocklist() -> Callable[..., BlockList]:
    """Makes lists: blocklist("bl.example", code("127.0.0.2"), kind=..., families=...)."""
    return make


@pytest.fixture
def code() -> Callable[..., Code]:
    """Makes rows of a list's table."""
    return row


@pytest.fixture
def registry() -> Callable[..., Registry]:
    """Makes a registry of lists, those in `off` turned off."""

    def registered(*lists: BlockList, off: dict[str, str] | None = None) -> Registry:
        return Registry({each.name: each for each in lists}, off or {})

    return registered


@pytest.fixture
def healthy(server: Server) -> Callable[..., BlockList]:
    """Makes lists that the server serves rightly: healthy("bl.example", {"192.0.2.9": ["127.0.0.2"]})."""

    def serve(zone: str, listed: dict[str, list[str]] | None = None, *codes: Code, **values: object) -> BlockList:
        made = make(zone, *codes, **values)
        points = {_labels(points.listed or ""): ["127.0.0.2"] for _, points in made.tests}
        server.lists[zone] = {**points, **{_labels(target): found for target, found in (listed or {}).items()}}
        return made

    return serve


def _labels(target: str) -> str:
    if target.replace(".", "").isdigit():
        return ".".join(reversed(target.split(".")))
    if ":" in target:
        return ".".join(reversed(socket.inet_pton(socket.AF_INET6, target).hex()))
    return target


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a file of lists."""

    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
