"""CPU per session of a five-turn dialogue (greeting, EHLO, MAIL, RCPT, QUIT): ours against a bare gevent.socket loop.

Both clients talk to the same server, a process of its own on loopback, in turns within one run, so that their ratio
holds on any machine; each one's best round counts. The bare loop does nothing but `recv` until a line ends and
`sendall`: no parser, no deadline, no limits.

    python -m bench dialogue [--sessions 3000] [--open 200] [--rounds 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer

from bench.measure.report import Report, options
from engine.core.identity import Identity
from engine.core.policy import Timeouts
from engine.net.session import Endpoint, Session

HOST = "127.0.0.1"
IDENTITY = Identity("bench", "probe.example.net", "probe@example.net")
TIMEOUTS = Timeouts()
COMMANDS = (
    b"EHLO probe.example.net\r\n",
    b"MAIL FROM:<probe@example.net>\r\n",
    b"RCPT TO:<ann@example.com>\r\n",
    b"QUIT\r\n",
)


def serve() -> None:
    """Answer whoever connects; prints its port first."""
    replies = {
        b"EHLO": b"250-mx.example.com\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n",
        b"RCPT": b"550 5.1.1 no such user\r\n",
        b"QUIT": b"221 2.0.0 bye\r\n",
    }

    def handle(peer: socket.socket, _: object) -> None:
        peer.sendall(b"220 mx.example.com ESMTP\r\n")
        while line := peer.recv(512):
            peer.sendall(replies.get(line[:4], b"250 2.1.0 ok\r\n"))
            if line.startswith(b"QUIT"):
                break
        peer.close()

    server = StreamServer((HOST, 0), handle, backlog=2048)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()


def bare(port: int) -> None:
    """The least that a client over gevent.socket does."""
    peer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    peer.settimeout(60)
    peer.connect((HOST, port))
    for command in (*COMMANDS, b""):
        data = peer.recv(4096)
        while not data.endswith(b"\n"):
            data += peer.recv(4096)
        peer.sendall(command)
    peer.close()


def ours(port: int) -> None:
    """The session as the engine uses it."""
    session = Session(Endpoint("mx.example.com", HOST, port), IDENTITY, TIMEOUTS, "opportunistic")
    try:
        session.open()
        (answer,) = session.ask(["ann@example.com"])
        assert answer.reply is not None
        assert answer.reply.code == 550
        session.quit()
    finally:
        session.close()


def cpu_us(client: Callable[[int], None], port: int, sessions: int, at_once: int) -> float:
    """Microseconds of this process's CPU per session."""
    pool = Pool(at_once)
    began = time.process_time()
    for _ in range(sessions):
        pool.spawn(client, port)
    pool.join(raise_error=True)
    return (time.process_time() - began) / sessions * 1e6


def main(arguments: list[str]) -> int:
    """Run it and print both figures and their ratio."""
    parser = options("dialogue", __doc__)
    parser.add_argument("--sessions", type=int, default=3000, help="a round and client")
    parser.add_argument("--open", type=int, default=200, help="sessions open at once")
    parser.add_argument("--rounds", type=int, help="5, or 2 with --short")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.serve:
        serve()
        return 0
    command = [sys.executable, "-m", "bench", "dialogue", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            ours(port)
            pairs = [
                tuple(cpu_us(client, port, chosen.sessions, chosen.open) for client in (bare, ours))
                for _ in range(chosen.rounds or (2 if chosen.short else 5))
            ]
        finally:
            server.terminate()
    plain, engine = map(min, zip(*pairs, strict=True))  # a busy machine only adds
    report = Report("dialogue")
    report.figure("CPU us a session", plain, per="bare gevent.socket loop")
    report.figure("CPU us a session", engine, per="engine.net.session")
    report.figure("ratio", engine / plain, "x")
    return report.finish(chosen)
