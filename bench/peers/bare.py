"""The floor: bare gevent sockets and bare pycares, one RCPT an address, nothing checked and nothing kept.

No parser, no deadline, no limit, no control, no record: what any client over gevent and c-ares spends at least.
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

from bench.peers import addresses, peer_options

NAME = "bare gevent loop"
HELO, SENDER = b"EHLO probe.lab\r\n", b"MAIL FROM:<probe@probe.lab>\r\n"


def missing() -> str:
    """It needs nothing that the engine doesn't."""
    return ""


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
            exchange = min(self._ask(domain, pycares.QUERY_TYPE_MX), key=lambda row: row.data.priority).data.exchange
            known.set(self._ask(exchange, pycares.QUERY_TYPE_A)[0].data.addr)
        address: str = known.get()
        return address

    def _ask(self, name: str, kind: int) -> Sequence[Any]:
        answer = AsyncResult()
        self._channel.query(name, kind, callback=lambda found, error: answer.set((found, error)))
        found, error = answer.get()
        if error is not None:
            raise OSError(f"{name}: {error}")
        return [row for row in found.answer if row.type == kind]

    def _watch(self, fd: int, readable: bool, writable: bool) -> None:
        if fd in self._watchers:
            self._watchers.pop(fd).close()
        if readable or writable:
            self._watchers[fd] = self._loop.io(fd, readable | writable << 1)
            self._watchers[fd].start(self._channel.process_fd, fd if readable else -1, fd if writable else -1)


def ask(ip: str, port: int, address: str) -> bool:
    """One session; whether RCPT was answered."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    peer.connect((ip, port))
    answered = False
    for command in (HELO, SENDER, f"RCPT TO:<{address}>\r\n".encode(), b"QUIT\r\n", b""):
        data = peer.recv(4096)
        while not data.endswith(b"\n"):
            data += peer.recv(4096)
        if command.startswith(b"QUIT"):
            answered = data[:1] in b"25"
        peer.sendall(command)
    peer.close()
    return answered


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
