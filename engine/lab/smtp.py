"""The lab's SMTP servers: sockets on loopback, one greenlet a session.

1. What is said is decided in `conversation`; here bytes come and go: pipelining, TLS, delays, drips, hang-ups.
2. Replies to commands that came together leave together (RFC 2920 section 3.2).
3. Everything is bounded: a line, a message, an idle client, an endless reply.
4. All hosts listen at one port, each at its own address; more than MAX_LISTENERS of them share one listener that
   takes the whole loopback network (bound to the device `lo`) and tells hosts apart by the address dialled.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gevent
from gevent import socket, ssl
from gevent.server import StreamServer

from engine.lab.conversation import MAX_MESSAGE, Conversation, Memory, Turn, rendered
from engine.lab.log import Log, SessionLog
from engine.lab.persona import LabError
from engine.lab.spec import Domain, Host, Spec

MAX_LINE = 4096  # bytes of a command line; RFC 5321 section 4.5.3.1.4 asks for 512, extensions need more
MAX_LISTENERS = 1000  # open files that the hosts of a lab may take
IDLE_S = 60.0
LINGER_S = 1.0
FLOOD_BYTES = 4 << 20
BACKLOG = 1024
CERTIFICATE = Path(__file__).with_name("tls.pem")
_ATTEMPTS = 20  # ports tried until one is free at every address


class _Gone(Exception):  # noqa: N818 - it is no error
    """The client has left."""


class Servers:
    """Every SMTP server of a lab at one port (0: a free one)."""

    def __init__(self, spec: Spec, memory: Memory, log: Log, port: int = 0) -> None:
        self._hosts = spec.servers()
        self._domains = spec.domains
        self._memory = memory
        self._log = log
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(CERTIFICATE)
        self._full: list[socket.socket] = []
        self._listeners = self._bound(port)
        self.port: int = self._listeners[0].getsockname()[1]
        self._running = [StreamServer(listener, self._session) for listener in self._listeners]

    def start(self) -> None:
        """Begin to accept."""
        for server in self._running:
            server.start()

    def close(self) -> None:
        """Stop accepting; sessions end with the process."""
        for server in self._running:
            server.close()
        for filler in self._full:
            filler.close()

    def _bound(self, port: int) -> list[socket.socket]:
        """Listeners for all hosts at one port."""
        modes = {host.ip: self._memory.personas[host.persona].listen for host in self._hosts.values()}
        if len(modes) > MAX_LISTENERS:
            if set(modes.values()) != {"yes"}:
                raise LabError(f"more than {MAX_LISTENERS} hosts share one listener, so none of them can refuse")
            return [_listener("0.0.0.0", port, device=b"lo")]  # noqa: S104 - loopback only, by its device
        for _ in range(_ATTEMPTS):
            bound: list[socket.socket] = []
            chosen = port
            try:
                for ip, mode in modes.items():
                    if mode == "yes":
                        bound += self._listening(ip, chosen)
                        chosen = chosen or bound[0].getsockname()[1]
                for ip, mode in modes.items():
                    if mode == "full":
                        self._full += _never_answering(ip, chosen)
            except OSError as error:
                for listener in (*bound, *self._full):
                    listener.close()
                self._full.clear()
                if port or error.errno != errno.EADDRINUSE:
                    raise LabError(f"the lab can't listen at port {chosen}: {error.strerror}") from None
            else:
                return bound
        raise LabError("the lab found no port that is free at all its addresses; name one with --smtp-port")

    def _listening(self, ip: str, port: int) -> list[socket.socket]:
        try:
            return [_listener(ip, port)]
        except OSError as error:
            if ":" in ip and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return []  # a machine without IPv6: its one host stays away
            raise

    def _session(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        ip = sock.getsockname()[0]
        host = self._hosts.get(ip)
        if host is None:
            sock.close()
            return
        with suppress(_Gone):
            _Session(
                sock, host, self._domains, self._memory, self._log.session(host, peer[0]), peer[0], self._tls
            ).run()


class _Session:
    """One connection from accept to close."""

    def __init__(
        self,
        sock: socket.socket,
        host: Host,
        domains: dict[str, Domain],
        memory: Memory,
        log: SessionLog,
        client: str,
        tls: ssl.SSLContext,
    ) -> None:
        self._sock = sock
        self._talk = Conversation(host, domains, memory, client)
        self._log = log
        self._tls = tls
        self._in = bytearray()
        self._out = bytearray()
        sock.settimeout(IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        why = ""
        try:
            self._log.add("connect", stage="connect")
            going = self._take(self._greeting())
            while going:
                going = self._take(self._next())
        except (_Gone, OSError) as gone:
            why = str(gone) or "the client left"
        finally:
            self._log.close(why)
            self._sock.close()

    def _greeting(self) -> Turn:
        turn = self._talk.greeting()
        wait = self._talk.persona.delay.get("connect", 0.0)
        if wait and self._readable(wait):
            self._log.add("pregreet", stage="connect")
            return Turn("521 5.5.1 Protocol error", "close", "connect")
        return turn

    def _readable(self, wait: float) -> bool:
        """Whether bytes (not the end) come within `wait` seconds; they stay unread otherwise."""
        self._sock.settimeout(wait)
        try:
            data = self._sock.recv(MAX_LINE)
        except TimeoutError:
            return False
        finally:
            self._sock.settimeout(IDLE_S)
        if not data:
            raise _Gone
        return True

    def _next(self) -> Turn:
        line = self._line()
        self._log.add("command", line)
        turn = self._talk.command(line, time.monotonic())
        if self._in and not self._talk.persona.pipelining:
            self._in.clear()
            return Turn("503 5.5.0 Improper use of SMTP command pipelining", "close", turn.stage)
        return turn

    def _line(self) -> str:
        while (end := self._in.find(b"\n")) < 0:
            if len(self._in) > MAX_LINE:
                self._say("500 5.5.2 Line too long")
                self._flush()
                raise _Gone("its line was too long")
            self._receive()
        line = bytes(self._in[:end])
        del self._in[: end + 1]
        return line.removesuffix(b"\r").decode("utf-8", "surrogateescape")

    def _receive(self) -> None:
        self._flush()
        try:
            data = self._sock.recv(16384)
        except TimeoutError:
            self._say("421 4.4.2 Error: timeout exceeded")
            self._flush()
            raise _Gone("it was idle") from None
        if not data:
            raise _Gone
        self._in += data

    def _take(self, turn: Turn) -> bool:
        """Send a turn's reply and do what comes after it. Returns whether the session goes on."""
        wait = self._talk.persona.delay.get(turn.stage, 0.0) if turn.stage != "connect" else 0.0
        if wait:
            self._flush()
            gevent.sleep(wait)
        if turn.reply:
            self._say(turn.reply, stage=turn.stage, domain=turn.domain)
        if turn.then == "go":
            return True
        self._flush()
        return _AFTER[turn.then](self)

    def _say(self, reply: str, *, stage: str = "", domain: str = "") -> None:
        self._log.add("reply", reply, stage=stage, domain=domain)
        self._out += rendered(reply)

    def _flush(self) -> None:
        drip = self._talk.persona.drip
        if drip:
            for byte in bytes(self._out):
                self._sock.sendall(bytes((byte,)))
                gevent.sleep(drip)
        elif self._out:
            self._sock.sendall(self._out)
        self._out.clear()

    def _after_close(self) -> bool:
        """Close so that the last reply arrives: unread bytes at close would make the kernel send RST behind it."""
        self._sock.shutdown(socket.SHUT_WR)
        self._sock.settimeout(LINGER_S)
        with suppress(TimeoutError):
            while self._sock.recv(16384):
                pass
        return False

    def _after_reset(self) -> bool:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _after_silence(self) -> bool:
        while self._sock.recv(16384):
            pass
        return False

    def _after_flood(self) -> bool:
        line = b"250-and one more line\r\n" * 64
        for _ in range(FLOOD_BYTES // len(line)):
            self._sock.sendall(line)
        return False

    def _after_tls(self) -> bool:
        self._in.clear()  # what came in plain before the handshake counts for nothing (RFC 3207 section 4.2)
        self._sock = self._tls.wrap_socket(self._sock, server_side=True)
        self._log.add("tls", self._sock.version() or "", stage="tls")
        self._talk.secured()
        return True

    def _after_broken_tls(self) -> bool:
        self._sock.sendall(b"This is no handshake\r\n")
        return False

    def _after_data(self) -> bool:
        while b"\r\n.\r\n" not in b"\r\n" + self._in[:MAX_MESSAGE]:
            if len(self._in) > MAX_MESSAGE:
                raise _Gone("its message was too long")
            self._receive()
        end = (b"\r\n" + self._in).index(b"\r\n.\r\n")
        self._log.add("message", f"{end} bytes", stage="data")
        del self._in[: end + 3]
        return self._take(self._talk.message())


_AFTER: dict[str, Callable[[_Session], bool]] = {
    "close": _Session._after_close,
    "reset": _Session._after_reset,
    "silence": _Session._after_silence,
    "flood": _Session._after_flood,
    "tls": _Session._after_tls,
    "broken_tls": _Session._after_broken_tls,
    "data": _Session._after_data,
}


def _listener(ip: str, port: int, *, device: bytes = b"", backlog: int = BACKLOG) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if device:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        listener.bind((ip, port))
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _never_answering(ip: str, port: int) -> list[socket.socket]:
    """A listener whose queue is full: the kernel drops each further SYN, and the connection attempt times out."""
    sockets = [_listener(ip, port, backlog=0)]
    for _ in range(2):
        filler = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        filler.setblocking(False)
        filler.connect_ex((ip, port))
        sockets.append(filler)
    return sockets
