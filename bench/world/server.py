"""The SMTP side: asyncio protocols on uvloop, one process, every host of the world at one port.

1. The listener is bound to the loopback device: one socket serves 127.0.0.0/8, and nothing else can reach it.
2. A group of pipelined commands is answered with one write, after one delay.
3. DATA is refused and counted: nobody here may send.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import engine.lab
from bench.world.log import CONNECTIONS, FULL, Writer
from bench.world.persona import PERSONAS, Persona

BACKLOG = 4096
MAX_LINE = 4096
CERTIFICATE = Path(engine.lab.__file__).with_name("tls.pem")
_EXISTS = re.compile(r"user\d+@")


class Server:
    """All hosts; `hosts` maps an address to its persona's name, the rest is `normal`."""

    def __init__(
        self, hosts: Mapping[str, str], personas: Mapping[str, Mapping[str, Any]], log: Writer, level: str
    ) -> None:
        values = {name: {**PERSONAS.get(name, {}), **personas.get(name, {})} for name in {*PERSONAS, *personas}}
        self.personas = {name: Persona(**given) for name, given in values.items()}
        self.hosts = {ip: self.personas[name] for ip, name in hosts.items()}
        self.normal = self.personas["normal"]
        self.log = log
        self.connections = level in (FULL, CONNECTIONS)
        self.full = level == FULL
        self.sessions = self.open = self.peak = self.recipients = self.messages = 0
        self.seen: dict[tuple[str, str, str, str], float] = {}
        self._tls: ssl.SSLContext | None = None

    def change(self, name: str, values: Mapping[str, Any]) -> None:
        """Fields of a persona, from the next command on."""
        persona = self.personas[name]
        for field, value in values.items():
            if field not in Persona.__slots__:
                raise ValueError(f"a persona has no {field!r}")
            setattr(persona, field, value)

    def stats(self) -> dict[str, float]:
        """Counts so far; `peak` is the most sessions that were open together, `cpu_s` what this process has used."""
        return {
            "sessions": self.sessions, "open": self.open, "peak": self.peak, "recipients": self.recipients,
            "messages": self.messages, "cpu_s": time.process_time(),
        }  # fmt: skip

    @property
    def tls(self) -> ssl.SSLContext:
        """The context of every session."""
        if self._tls is None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(CERTIFICATE)
        return self._tls


class Session(asyncio.Protocol):
    """One connection."""

    __slots__ = ("client", "data", "ip", "loop", "number", "persona", "securing", "sender", "server", "transport")

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.data = b""
        self.sender = ""

    def connection_made(self, transport: Any) -> None:
        """Greet."""
        server = self.server
        self.transport = transport
        self.ip = transport.get_extra_info("sockname")[0]
        self.client = transport.get_extra_info("peername")[0]
        self.persona = persona = server.hosts.get(self.ip, server.normal)
        server.sessions += 1
        server.open += 1
        server.peak = max(server.peak, server.open)
        self.number = server.sessions
        if server.connections:
            self._log("+", self.client, "")
        delay_s = persona.delay_s if persona.greeting_delay_s is None else persona.greeting_delay_s
        self._send(persona.greeting.encode() + b"\r\n", delay_s)

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self.server.open -= 1
        if self.server.connections:
            self._log("-", "", "")

    def data_received(self, data: bytes) -> None:
        """Answer every whole line."""
        if self.data:
            data = self.data + data
        *lines, self.data = data.split(b"\n")
        if len(self.data) > MAX_LINE:
            self.transport.close()
            return
        out = []
        for line in lines:
            verb = line[:4].upper()
            handle = _HANDLERS.get(verb)
            argument, reply = handle(self, line) if handle else ("", "500 5.5.2 Unknown command")
            if self.server.full:
                self._log(verb.decode("latin-1").strip(), argument, reply)
            out.append(reply)
        if out:
            self._send(("\r\n".join(out) + "\r\n").encode(), self.persona.delay_s)
            if lines[-1][:4].upper() == b"QUIT":
                self._after(self.persona.delay_s, self.transport.close)
            elif lines[-1][:8].upper() == b"STARTTLS":
                self.securing = self.loop.create_task(self._start_tls())

    async def _start_tls(self) -> None:
        await asyncio.sleep(self.persona.delay_s)
        try:
            self.transport = await self.loop.start_tls(self.transport, self, self.server.tls, server_side=True)
        except (OSError, ssl.SSLError):
            self.transport.close()

    # --- replies ----------------------------------------------------------------------------------------------

    def _ehlo(self, line: bytes) -> tuple[str, str]:
        words = ["mx", "SIZE 52428800"]
        words += ["PIPELINING"] * self.persona.pipelining
        words += ["STARTTLS"] * (self.persona.starttls and self.transport.get_extra_info("ssl_object") is None)
        words += ["8BITMIME", "ENHANCEDSTATUSCODES"]
        return "", "\r\n".join(f"250{' ' if word is words[-1] else '-'}{word}" for word in words)

    def _mail(self, line: bytes) -> tuple[str, str]:
        self.sender = _path(line)
        return self.sender, self.persona.mail.format(client=self.client, rcpt="")

    def _rcpt(self, line: bytes) -> tuple[str, str]:
        server, persona, rcpt = self.server, self.persona, _path(line)
        server.recipients += 1
        if persona.greylist_s:
            now = time.monotonic()
            first = server.seen.setdefault((self.ip, self.client, self.sender, rcpt), now)
            if now - first < persona.greylist_s:
                return rcpt, persona.greylist.format(client=self.client, rcpt=rcpt)
        text = persona.rcpt or (persona.known if _EXISTS.match(rcpt) else persona.unknown)
        return rcpt, text.format(client=self.client, rcpt=rcpt) if "{" in text else text

    def _data(self, line: bytes) -> tuple[str, str]:
        self.server.messages += 1
        return "", "554 5.5.1 Nobody sends here"

    def _other(self, line: bytes) -> tuple[str, str]:
        return "", "221 2.0.0 Bye" if line[:1] in b"Qq" else "220 2.0.0 Ready" if line[:1] in b"Ss" else "250 2.0.0 Ok"

    # --- sending ----------------------------------------------------------------------------------------------

    def _send(self, data: bytes, delay_s: float) -> None:
        self._after(delay_s, self.transport.write, data)

    def _after(self, delay_s: float, do: Callable[..., object], *arguments: Any) -> None:
        if delay_s:
            self.loop.call_later(delay_s, do, *arguments)
        else:
            do(*arguments)

    def _log(self, event: str, argument: str, reply: str) -> None:
        said = reply.partition("\r\n")[0]
        self.server.log.add(f"{time.monotonic():.6f}\t{self.number}\t{self.ip}\t{event}\t{argument}\t{said}\n")


_HANDLERS: dict[bytes, Callable[[Session, bytes], tuple[str, str]]] = {
    b"EHLO": Session._ehlo,
    b"HELO": Session._other,
    b"MAIL": Session._mail,
    b"RCPT": Session._rcpt,
    b"RSET": Session._other,
    b"NOOP": Session._other,
    b"QUIT": Session._other,
    b"STAR": Session._other,
    b"DATA": Session._data,
}


def _path(line: bytes) -> str:
    text = line.decode("utf-8", "replace")
    return text[text.find("<") + 1 : text.find(">")]


def listener(port: int) -> socket.socket:
    """One socket for the whole of loopback."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.bind(("0.0.0.0", port))
    found.listen(BACKLOG)
    found.setblocking(False)
    return found
