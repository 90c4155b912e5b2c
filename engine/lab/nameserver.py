"""Serves the lab's zones over UDP and TCP at one port of 127.0.0.1."""

from __future__ import annotations

import errno
import struct

from gevent import socket
from gevent.server import DatagramServer, StreamServer

from engine.lab.persona import LabError
from engine.lab.zone import Zones

ADDRESS = "127.0.0.1"
IDLE_S = 10.0
_ATTEMPTS = 20


class NameServer:
    """A name server at `port` (0: a free one, the same for UDP and TCP); `queries` counts what it was asked."""

    def __init__(self, zones: Zones, port: int = 0) -> None:
        self._zones = zones
        self.queries = 0
        udp, tcp = _bound(port)
        self.port: int = udp.getsockname()[1]
        self._udp = DatagramServer(udp, self._datagram)
        # A look-up takes microseconds and never waits: answered where it is read, without a greenlet for each.
        self._udp.do_handle = self._datagram
        self._tcp = StreamServer(tcp, self._stream)

    def start(self) -> None:
        """Begin to answer."""
        self._udp.start()
        self._tcp.start()

    def close(self) -> None:
        """Stop answering."""
        self._udp.close()
        self._tcp.close()

    def _datagram(self, query: bytes, client: tuple[str, int]) -> None:
        self.queries += 1
        answer = self._zones.answer(query)
        if answer is not None:
            self._udp.socket.sendto(answer, client)

    def _stream(self, sock: socket.socket, _: tuple[str, int]) -> None:
        sock.settimeout(IDLE_S)
        with sock:
            file = sock.makefile("rb")
            try:
                while len(head := file.read(2)) == 2:
                    self.queries += 1
                    answer = self._zones.answer(file.read(struct.unpack("!H", head)[0]), tcp=True)
                    if answer is not None:
                        sock.sendall(struct.pack("!H", len(answer)) + answer)
            except OSError:
                return  # the client left, or said nothing for long
            finally:
                file.close()


def _bound(port: int) -> tuple[socket.socket, socket.socket]:
    for _ in range(_ATTEMPTS):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # a burst of look-ups must not be dropped
            udp.bind((ADDRESS, port))
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind(udp.getsockname())
            tcp.listen(256)
        except OSError as error:
            udp.close()
            tcp.close()
            if port or error.errno != errno.EADDRINUSE:
                raise LabError(f"the lab's DNS can't listen at {ADDRESS}:{port}: {error.strerror}") from None
        else:
            udp.setblocking(False)
            tcp.setblocking(False)
            return udp, tcp
    raise LabError("the lab found no port for its DNS; name one with --dns-port")
