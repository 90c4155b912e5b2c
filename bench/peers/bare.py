"""The floor: bare gevent sockets and bare pycares, the engine's turns and look-ups, nothing checked and nothing kept.

It asks an address, and a control where that was accepted, in pipelined groups as the engine does. No parser, no
deadline, no limit, no record: what any client over gevent and c-ares spends at least.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import gevent
import pycares
from gevent import socket
from gevent.event import AsyncResult
from gevent.pool import Pool

from bench.peers import Peer, addresses, of_python, peer_options

PEER = Peer("bare gevent loop", "floor", of_python("bench.peers.bare"))
SENDER = b"MAIL FROM:<probe@probe.lab>\r\n"


class Names:
    """MX and A of a domain, asked once."""

    def __init__(self, server: str) -> None:
        self._loop = gevent.get_hub().loop
        self._watchers: dict[int, Any] = {}
        self._known: dict[str, AsyncResult] = {}
        self._channel = pycares.Channel(servers=[server], sock_state_cb=self._watch)
        timer = self._timer = self._loop.timer(0.05, 0.05)
        timer.start(self._channel.process_fd, -1, -1)

    def host(self, domain: str) -> str:
        """The address of its first MX."""
        known = self._known.get(domain)
        if known is None:
            known = self._known[domain] = AsyncResult()
            found = self._ask(domain, pycares.QUERY_TYPE_MX)
            mx = min((row.data for row in found.answer), key=lambda data: data.priority).exchange
            beside = [row.data.addr for row in found.additional if row.type == pycares.QUERY_TYPE_A and row.name == mx]
            known.set((beside or [row.data.addr for row in self._ask(mx, pycares.QUERY_TYPE_A).answer])[0])
        address: str = known.get()
        return address

    def _ask(self, name: str, kind: int) -> Any:
        answer = AsyncResult()
        self._channel.query(name, kind, callback=lambda found, error: answer.set((found, error)))
        found, error = answer.get()
        if error is not None:
            raise OSError(f"{name}: {error}")
        return found

    def _watch(self, fd: int, readable: bool, writable: bool) -> None:
        if fd in self._watchers:
            self._watchers.pop(fd).close()
        if readable or writable:
            self._watchers[fd] = self._loop.io(fd, readable | writable << 1)
            self._watchers[fd].start(self._channel.process_fd, fd if readable else -1, fd if writable else -1)


def ask(ip: str, port: int, address: str) -> bool:
    """One session of the engine's turns, a control RCPT where the address is accepted; whether RCPT was answered."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    peer.connect((ip, port))
    _heard(peer, 1)
    peer.sendall(b"EHLO probe.lab\r\n")
    while b"\n250 " not in peer.recv(4096):
        pass
    said = _said(peer, (SENDER, f"RCPT TO:<{address}>\r\n".encode()))
    if said.startswith(b"2"):
        domain = address.partition("@")[2]
        _said(peer, (b"RSET\r\n", SENDER, f"RCPT TO:<kwzrtnqe@{domain}>\r\n".encode()))
    _said(peer, (b"QUIT\r\n",))
    peer.close()
    return said[:1] in (b"2", b"5")


def _said(peer: Any, group: Sequence[bytes]) -> bytes:
    """Send a group of commands in one write; the last line of the answers."""
    peer.sendall(b"".join(group))
    return _heard(peer, len(group)).split(b"\r\n")[-2]


def _heard(peer: Any, lines: int) -> bytes:
    data: bytes = peer.recv(4096)
    while data.count(b"\n") < lines:
        data += peer.recv(4096)
    return data


def main(arguments: list[str]) -> int:
    """Ask the whole list."""
    chosen = peer_options().parse_args(arguments)
    rows, names, pool = addresses(chosen.list), Names(chosen.dns), Pool(chosen.concurrency)

    def one(address: str) -> bool:
        return ask(names.host(address.partition("@")[2]), chosen.port, address)

    answered = sum(pool.imap_unordered(one, rows))
    print(json.dumps({"addresses": len(rows), "answered": answered}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
