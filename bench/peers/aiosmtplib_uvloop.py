"""aiosmtplib on uvloop, pycares on the same loop: one session and one RCPT an address."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from importlib.metadata import version
from typing import Any

import pycares

from bench.peers import Peer, addresses, of_python, peer_options

NAME = "aiosmtplib on uvloop"


def missing() -> str:
    """Why it can't run here; empty when it can."""
    needed = [name for name in ("aiosmtplib", "uvloop") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(needed)} not installed; `pip install --group bench` does" if needed else ""


class Names:
    """MX and A of a domain, asked once."""

    def __init__(self, server: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, tuple[bool, bool]] = {}
        self._known: dict[str, asyncio.Future[str]] = {}
        self._channel = pycares.Channel(servers=[server], sock_state_cb=self._watch)
        self._tick()

    async def host(self, domain: str) -> str:
        """The address of its first MX."""
        known = self._known.get(domain)
        if known is None:
            known = self._known[domain] = self._loop.create_future()
            found = await self._ask(domain, pycares.QUERY_TYPE_MX)
            mx = min((row.data for row in found.answer), key=lambda data: data.priority).exchange
            beside = [row.data.addr for row in found.additional if row.type == pycares.QUERY_TYPE_A and row.name == mx]
            if not beside:
                beside = [row.data.addr for row in (await self._ask(mx, pycares.QUERY_TYPE_A)).answer]
            known.set_result(beside[0])
        return await known

    async def _ask(self, name: str, kind: int) -> Any:
        answer = self._loop.create_future()

        def answered(found: Any, error: int | None) -> None:
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(OSError(f"{name}: {error}"))

        self._channel.query(name, kind, callback=answered)
        return await answer

    def _watch(self, fd: int, readable: bool, writable: bool) -> None:
        before = self._watched.pop(fd, (False, False))
        if before[0]:
            self._loop.remove_reader(fd)
        if before[1]:
            self._loop.remove_writer(fd)
        if readable:
            self._loop.add_reader(fd, self._channel.process_fd, fd, -1)
        if writable:
            self._loop.add_writer(fd, self._channel.process_fd, -1, fd)
        if readable or writable:
            self._watched[fd] = (readable, writable)

    def _tick(self) -> None:
        self._channel.process_fd(-1, -1)
        self._loop.call_later(0.05, self._tick)


async def ask(ip: str, port: int, address: str) -> bool:
    """One session; whether RCPT was answered."""
    import aiosmtplib  # noqa: PLC0415 - it need not be there

    async with aiosmtplib.SMTP(
        hostname=ip, port=port, local_hostname="probe.lab", timeout=60, start_tls=False
    ) as server:
        await server.ehlo()
        await server.mail("probe@probe.lab")
        try:
            code = (await server.rcpt(address)).code
        except aiosmtplib.SMTPRecipientRefused as refused:
            code = refused.code
        return code > 0


async def work(dns: str, port: int, rows: list[str], concurrency: int) -> int:
    """Ask the whole list; how many were answered."""
    names, waiting, answered = Names(dns), iter(rows), 0

    async def some() -> None:
        nonlocal answered
        for address in waiting:
            found = await ask(await names.host(address.partition("@")[2]), port, address)
            answered += found  # in a statement of its own: others count while this one waits

    await asyncio.gather(*(some() for _ in range(concurrency)))
    return answered


def main(arguments: list[str]) -> int:
    """Ask the whole list."""
    import uvloop  # noqa: PLC0415 - it need not be there

    chosen = peer_options().parse_args(arguments)
    rows = addresses(chosen.list)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answered = runner.run(work(chosen.dns, chosen.port, rows, chosen.concurrency))
    print(json.dumps({"addresses": len(rows), "answered": answered}))
    return 0


PEER = Peer(NAME, "python", of_python("bench.peers.aiosmtplib_uvloop"), missing, version=lambda: version("aiosmtplib"))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
