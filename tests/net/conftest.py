"""Name servers of the tests' own: a real one (NSD) and one that misbehaves on demand."""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

ROOT = Path(__file__).parents[2]
Rule = Callable[[dns.message.Message, str, int], dns.message.Message | bytes | None]


class NameServer:
    """Answers from `records`, or by a rule for a name: rule(query, "udp"|"tcp", how often asked before) -> reply.

    `asked` lists every query that came: ("udp"|"tcp", name, type). A rule that gives None stays silent.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[dns.rrset.RRset]] = {}
        self.extra: dict[str, list[dns.rrset.RRset]] = {}
        self.rules: dict[str, Rule] = {}
        self.asked: list[tuple[str, str, str]] = []
        self._udp, self._tcp = both(self._datagram(), self._stream())
        self.port: int = self._udp.server_address[1]
        self._tcp.daemon_threads = True
        self._tcp.block_on_close = False
        for server in (self._udp, self._tcp):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, line: str, *, ttl: int = 300) -> None:
        """One record: "ann.lab MX 10 mx.ann.lab"."""
        name, kind, data = line.split(maxsplit=2)
        self.records.setdefault((name, kind), []).append(rrset(name, ttl, kind, data))

    def add_extra(self, name: str, line: str) -> None:
        """A record for the additional section of the answers about `name`."""
        owner, kind, data = line.split(maxsplit=2)
        self.extra.setdefault(name, []).append(rrset(owner, 300, kind, data))

    def on(self, name: str, rule: Rule) -> None:
        self.rules[name] = rule

    def count(self, name: str, kind: str | None = None) -> int:
        return len([1 for _, n, k in self.asked if n == name and kind in (None, k)])

    def reply(self, query: dns.message.Message, rcode: int | None = None) -> dns.message.Message:
        """What an honest server says; a name without any record is NXDOMAIN."""
        name, kind = question(query)
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        reply.answer += self.records.get((name, kind), self.records.get((name, "CNAME"), []))
        reply.additional += self.extra.get(name, [])
        known = any(each == name for each, _ in self.records)
        reply.set_rcode(rcode if rcode is not None else dns.rcode.NOERROR if known else dns.rcode.NXDOMAIN)
        return reply

    def close(self) -> None:
        for server in (self._udp, self._tcp):
            server.shutdown()
            server.server_close()

    def handle(self, wire: bytes, transport: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        name, kind = question(query)
        before = self.count(name, kind)
        self.asked.append((transport, name, kind))
        rule = self.rules.get(name)
        reply = rule(query, transport, before) if rule else self.reply(query)
        return reply.to_wire() if isinstance(reply, dns.message.Message) else reply

    def _datagram(outer) -> type[socketserver.BaseRequestHandler]:  # noqa: N805
        class Datagram(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, sock = self.request
                reply = outer.handle(data, "udp")
                if reply is not None:
                    sock.sendto(reply, self.client_address)

        return Datagram

    def _stream(outer) -> type[socketserver.BaseRequestHandler]:  # noqa: N805
        class Stream(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while head := self.rfile.read(2):
                    reply = outer.handle(self.rfile.read(struct.unpack("!H", head)[0]), "tcp")
                    if reply is not None:
                        self.wfile.write(struct.pack("!H", len(reply)) + reply)

        return Stream


def both(datagram: type, stream: type) -> tuple[socketserver.UDPServer, socketserver.ThreadingTCPServer]:
    """Servers at one port; a port that is free for UDP may be somebody's for TCP."""
    while True:
        udp = socketserver.UDPServer(("127.0.0.1", 0), datagram)
        try:
            return udp, socketserver.ThreadingTCPServer(udp.server_address, stream)
        except OSError:
            udp.server_close()


def question(query: dns.message.Message) -> tuple[str, str]:
    asked = query.question[0]
    return str(asked.name).rstrip(".").lower(), dns.rdatatype.to_text(asked.rdtype)


def rrset(name: str, ttl: int, kind: str, data: str) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(f"{name}.", ttl, "IN", kind, [data], origin=dns.name.root, relativize=False)


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """A name server on a free loopback port, UDP and TCP."""
    server = NameServer()
    yield server
    server.close()


@pytest.fixture
def second_name_server() -> Iterator[NameServer]:
    """Another one."""
    server = NameServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[str, int]]]:
    """Starts NSD with the zones given (name=text), as the test's own process; gives its address."""
    binary = shutil.which("nsd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("NSD is missing (apt-get install nsd); in CI the real name server is not optional")
        pytest.skip("NSD is not installed (apt-get install nsd)")
    running: list[subprocess.Popen[bytes]] = []

    def start(**zones: str) -> tuple[str, int]:
        home = tmp_path_factory.mktemp("nsd")
        port = free_port()
        served = ""
        for zone, text in zones.items():
            (home / zone).write_text(
                f"$ORIGIN {zone}.\n$TTL 300\n@ SOA ns.t.lab. host 1 60 60 60 60\n@ NS ns.t.lab.\n{text}"
            )
            served += f"zone:\n name: {zone}\n zonefile: {zone}\n"
        (home / "nsd.conf").write_text(
            f'server:\n ip-address: 127.0.0.1@{port}\n server-count: 1\n username: ""\n chroot: ""\n database: ""\n'
            f" zonesdir: {home}\n pidfile: {home}/pid\n xfrdfile: {home}/xfrd\n zonelistfile: {home}/zones\n"
            f"remote-control:\n control-enable: no\n{served}"
        )
        process = subprocess.Popen([binary, "-d", "-c", str(home / "nsd.conf")], stderr=subprocess.PIPE)
        running.append(process)
        assert process.stderr is not None
        said = b""
        for line in process.stderr:  # NSD tells when it serves
            said += line
            if b"nsd started" in line:
                break
        else:
            pytest.fail(f"NSD did not start: {said.decode(errors='replace')}")
        return "127.0.0.1", port

    yield start
    for process in running:
        process.terminate()
        process.wait(10)
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def responder() -> Iterator[tuple[str, int]]:
    """A fast name server in a process of its own that knows every name: one MX with its address beside it."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.dns", "--serve"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield "127.0.0.1", int(process.stdout.readline())
        process.terminate()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
