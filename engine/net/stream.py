"""A TCP connection as thin as it gets under gevent: one raw socket, one watcher, one timer, TLS in memory.

1. Every wait is bounded by one absolute `deadline` that the caller sets: dripping a byte at a time wins nothing.
2. Addresses are literals; nothing here resolves a name (gevent would do that on a pool of native threads).
3. Wait first, receive after: a peer's answer is never there yet when we begin to wait for it.
4. Closing never blocks, so it is safe where a greenlet is killed. TLS is closed without `unwrap`, which waits.
5. The loop serves every ready socket before it looks at its timers again. Whose socket comes later than SLICE_S in
   such a round takes a turn among the loop's callbacks instead: thousands that are ready at once hold up no timer.
6. The watcher runs on between two waits, which costs the kernel nothing; it is stopped when it rings for nobody.
"""

from __future__ import annotations

import _socket
import errno
import os
import ssl
from dataclasses import dataclass
from time import monotonic, time
from typing import Any

from gevent import get_hub, getcurrent

from engine.core.reply import ProtocolError

# Received over a connection's life, encryption included: 100 recipients answered at 2 KiB each, five times over.
MAX_BYTES = 1024 * 1024
_CHUNK = 8 * 1024
_READ, _WRITE = 1, 2  # of the event loop
SLICE_S = 0.005  # as long as gevent runs callbacks before it looks at sockets and timers again


class DeadlinePassed(Exception):  # noqa: N818 -- an event in a connection's life
    """The stream's deadline came before the peer."""


@dataclass(frozen=True, slots=True)
class _Tls:
    """An encrypted layer in memory: what came in, what must go out, and OpenSSL between them."""

    object: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


class Stream:
    """One connection. Create it where it is used and `close` it in a `finally`: it belongs to one greenlet.

    Waiting raises DeadlinePassed, OSError (the caller knows what it means at which stage; `ssl.SSLError` is one),
    EOFError in a handshake, or ProtocolError (more than MAX_BYTES received).
    """

    def __init__(self, ip: str) -> None:
        family = _socket.AF_INET6 if ":" in ip else _socket.AF_INET
        _socket.inet_pton(family, ip)  # rule 2: OSError unless a literal
        self.deadline = 0.0  # time.monotonic()
        self.received = 0
        self._ip = ip
        self._family = family
        self._hub = get_hub()
        self._socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        self._watcher = self._hub.loop.io(self._socket.fileno(), _READ)
        self._events = _READ  # that the watcher waits for
        self._watched = False  # whether the watcher runs
        self._timer: Any = None
        self._rings_at = 0.0
        self._sleeper: Any = None  # the greenlet that waits
        self._turn: Any = None  # its turn among the hub's callbacks, once the socket is ready
        self._tls: _Tls | None = None

    @property
    def source_ip(self) -> str:
        """The local address that the connection leaves from."""
        return str(self._socket.getsockname()[0])

    @property
    def cipher(self) -> str:
        """Protocol and cipher suite, for a transcript; empty without TLS."""
        if self._tls is None:
            return ""
        suite = self._tls.object.cipher() or ("",)
        return f"{self._tls.object.version()} {suite[0]}"

    def connect(self, port: int, bind: str = "") -> None:
        """Connect, from the local address `bind` where one is given."""
        if bind:
            _socket.inet_pton(self._family, bind)
            self._socket.bind((bind, 0))
        error = self._socket.connect_ex((self._ip, port))
        if error == errno.EINPROGRESS:
            self._wait(_WRITE)
            error = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))

    def read(self) -> bytes:
        """What the peer has sent, at least one byte; empty when it has closed its side."""
        data = self._read(patient=True)
        assert data is not None
        return data

    def poll(self) -> bytes | None:
        """What the peer has sent already; empty when it has closed its side, None when there is nothing."""
        return self._read(patient=False)

    def write(self, data: bytes) -> None:
        """Send all of it."""
        if self._tls is None:
            self._send(data)
        else:
            self._tls.object.write(data)
            self._flush(self._tls)

    def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Shake hands as a client. `server_name` is sent as SNI where it can be one."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            tls_object = context.wrap_bio(incoming, outgoing, server_hostname=server_name or None)
        except ValueError:  # an MX name that is no IDNA host name goes without SNI
            tls_object = context.wrap_bio(incoming, outgoing)
        tls = _Tls(tls_object, incoming, outgoing)
        while True:
            try:
                tls_object.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush(tls)
            data = self._receive(patient=True)
            if not data:
                raise EOFError("closed in the TLS handshake")
            incoming.write(data)
        self._flush(tls)
        self._tls = tls

    def close(self) -> None:
        """Give everything back, at once and any number of times."""
        self._unwatch()
        self._watcher.close()
        self._disarm()
        self._socket.close()

    def _read(self, *, patient: bool) -> bytes | None:
        tls = self._tls
        if tls is None:
            return self._receive(patient=patient)
        while True:
            try:
                return tls.object.read(_CHUNK)
            except ssl.SSLWantReadError:
                self._flush(tls)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            data = self._receive(patient=patient)
            if not data:
                return data
            tls.incoming.write(data)

    def _receive(self, *, patient: bool) -> bytes | None:
        while True:
            if patient:
                self._wait(_READ)
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                if patient:
                    continue
                return None
            self.received += len(data)
            if self.received > MAX_BYTES:
                raise ProtocolError("too_many_bytes", f"the server sent more than {MAX_BYTES} bytes in one session")
            return data

    def _flush(self, tls: _Tls) -> None:
        if tls.outgoing.pending:
            self._send(tls.outgoing.read())

    def _send(self, data: bytes) -> None:
        while True:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
            self._wait(_WRITE)

    def _wait(self, events: int) -> None:
        if monotonic() >= self.deadline:
            raise DeadlinePassed
        if self._timer is None or self.deadline < self._rings_at:
            self._arm()
        if self._events != events:
            self._unwatch()
            self._watcher.events = self._events = events
        self._sleeper = getcurrent()
        if not self._watched:
            self._watcher.start(self._woken)
            self._watched = True
        try:
            self._hub.switch()
        finally:
            self._sleeper = None
            if self._turn is not None:
                self._turn.stop()
                self._turn = None

    def _woken(self) -> None:
        """The socket is ready: wake who waits, now or in his turn (rule 5)."""
        if self._sleeper is None:
            self._unwatch()
        elif time() < self._hub.loop.now() + SLICE_S:  # when this round began
            self._sleeper.switch()
        else:
            self._unwatch()
            self._turn = self._hub.loop.run_callback(self._sleeper.switch)

    def _unwatch(self) -> None:
        self._watcher.stop()
        self._watched = False

    # One timer serves the whole connection. Deadlines mostly move on, so it is left running, and when it rings early
    # it is set again: a dialogue of five turns sets it once, and its farewell once more.

    def _arm(self) -> None:
        self._disarm()
        self._rings_at = self.deadline
        self._timer = self._hub.loop.timer(max(self.deadline - monotonic(), 0.0))
        self._timer.start(self._ring, update=True)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _ring(self) -> None:
        self._disarm()
        if self._sleeper is None or self._turn is not None:  # nobody waits, or what he waits for is there
            return
        if monotonic() < self.deadline:
            self._arm()
        elif not self._answered():
            self._sleeper.throw(DeadlinePassed())  # as gevent's own Timeout does it

    def _answered(self) -> bool:
        """Whether something lies unread: a loop that comes late looks at its timers before its sockets."""
        try:
            self._socket.recv(1, _socket.MSG_PEEK)
        except OSError:
            return False
        return True
