"""CPU of a look-up: ours, cold and warm, against bare pycares on the same loop, in one run; and memory over many names.

    python -m bench dns [--short]           the CPU of a look-up, and how many times bare pycares' it is; then `rbl`
    python -m bench dns --names 1000000     the process's memory while that many distinct names pass

The name server is a process of its own on loopback that answers any MX question, the address beside it.
"""

from __future__ import annotations

import argparse
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pycares
from gevent.event import Event

from bench import rbl
from bench.measure.plots import BARS
from bench.measure.report import Report, options
from engine.net.resolver import Resolver

IN_FLIGHT = 256
RATIO = 2.0
WITHIN_A_CHANNEL = 9_000  # names: within the life of one c-ares channel, so that both sides do the same


def serve() -> None:
    """Answer MX with `10 mx.<name>` and its address 127.0.0.9, by hand: dnspython would be the bottleneck."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.bind(("127.0.0.1", 0))
    print(sock.getsockname()[1], flush=True)
    while True:
        query, peer = sock.recvfrom(512)
        asked = query[12 : query.index(0, 12) + 5]
        exchange = 12 + len(asked) + 14  # where the MX record's own name stands
        mx = b"\xc0\x0c\x00\x0f\x00\x01\x00\x00\x01\x2c\x00\x07\x00\x0a\x02mx\xc0\x0c"
        a = struct.pack("!H", 0xC000 | exchange) + b"\x00\x01\x00\x01\x00\x00\x01\x2c\x00\x04\x7f\x00\x00\x09"
        sock.sendto(query[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x01" + asked + mx + a, peer)


def bare(port: int, names: list[str]) -> float:
    """CPU seconds of bare pycares on gevent's loop, IN_FLIGHT questions at a time."""
    loop, watchers, finished, waiting = gevent.get_hub().loop, {}, Event(), iter(names)
    left = len(names)

    def watch(fd: int, readable: bool, writable: bool) -> None:
        if fd in watchers:
            watchers.pop(fd).close()
        if readable or writable:
            watchers[fd] = loop.io(fd, readable | writable << 1)
            watchers[fd].start(channel.process_fd, fd if readable else -1, fd if writable else -1)

    def answered(_: Any, error: int | None) -> None:
        nonlocal left
        assert error is None, error
        left -= 1
        for name in waiting:
            channel.query(name, pycares.QUERY_TYPE_MX, callback=answered)
            break
        if not left:
            finished.set()

    channel = pycares.Channel(servers=[f"127.0.0.1:{port}"], sock_state_cb=watch)
    timer = loop.timer(0.05, 0.05)
    timer.start(channel.process_fd, -1, -1)
    began = time.process_time()
    for name in names[:IN_FLIGHT]:
        next(waiting)
        channel.query(name, pycares.QUERY_TYPE_MX, callback=answered)
    finished.wait()
    timer.close()
    return time.process_time() - began


def ours(resolver: Resolver, names: list[str]) -> float:
    """CPU seconds of `Resolver.route`, IN_FLIGHT greenlets at a time."""
    waiting = iter(names)

    def work() -> None:
        for name in waiting:
            assert resolver.route(name).dialable, name

    began = time.process_time()
    gevent.joinall([gevent.spawn(work) for _ in range(IN_FLIGHT)], raise_error=True)
    return time.process_time() - began


def cost(port: int, count: int, rounds: int) -> dict[str, float]:
    """CPU us a name of each way, the best round."""
    names = [f"d{number}.example" for number in range(count)]
    found: list[tuple[float, float, float]] = []
    for _ in range(rounds):
        resolver = Resolver([("127.0.0.1", port)], allow_private=True)
        found.append((bare(port, names), ours(resolver, names), ours(resolver, names)))
        resolver.close()
    best = (min(column) / count * 1e6 for column in zip(*found, strict=True))
    return dict(zip(("bare pycares", "route, cold", "route, warm"), best, strict=True))


def memory(port: int, count: int) -> None:
    resolver = Resolver([("127.0.0.1", port)], allow_private=True)
    step = max(count // 20, 1)
    for start in range(0, count, step):
        seconds = ours(resolver, [f"d{number}.example" for number in range(start, min(start + step, count))])
        print(f"{start + step:9d} names  {rss_mib():6.1f} MiB  {seconds / step * 1e6:6.1f} us a name", flush=True)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MiB")
    resolver.close()


def rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def with_server(run: Callable[..., Any], *arguments: int) -> Any:
    """What `run` gives, called with the server's port and these."""
    with subprocess.Popen([sys.executable, "-m", "bench.dns", "--serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            return run(int(server.stdout.readline()), *arguments)
        finally:
            server.terminate()


def main(arguments: list[str]) -> int:
    """Measure the CPU of look-ups and what a sweep costs probes, or with --names the memory."""
    parser = options("dns", __doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--names", type=int, help="measure memory over this many distinct names")
    chosen = parser.parse_args(arguments)
    if chosen.serve:
        serve()
    elif chosen.names:
        with_server(memory, chosen.names)
    else:
        return _report(chosen)
    return 0


def _report(chosen: argparse.Namespace) -> int:
    report = Report("dns")
    costs = with_server(cost, WITHIN_A_CHANNEL, 2 if chosen.short else 5)
    base, cold, warm = costs.values()
    for name, us in costs.items():
        report.figure("CPU us a name", us, per=name)
        report.figure("of bare pycares, x", us / base, per=name)
    report.at_most("a cold look-up, of bare pycares", cold / base, RATIO, "x")
    report.at_most("a warm look-up, of bare pycares", warm / base, RATIO, "x")
    report.plot("cpu", "CPU a look-up", "us (user + system)", "", BARS, {name: [us] for name, us in costs.items()})
    rbl.sweep(report, 5500 if chosen.short else 9000, 1 if chosen.short else 2, chosen.keep)
    return report.finish(chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
