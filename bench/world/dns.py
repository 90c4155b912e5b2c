"""The zones of a world: NSD where it is installed or was unpacked by .ci/fetch-mtas, else the lab's name server.

The lab's is written in Python and may be what holds a large run up; reports say which one served.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engine.lab.process import LabProcess

ADDRESS = "127.0.0.1"
UNPACKED = Path(__file__).parents[2] / ".cache/mtas/nsd/usr/sbin"
READY_S = 120.0  # a zone of a million domains is long to read
TTL_S = 3600
REVERSE = "0.0.127.in-addr.arpa"
_SOA = "@ IN SOA ns.lab. hostmaster.lab. 1 3600 900 604800 30\n"


class NameServer:
    """Serves `records` (lines `name. TYPE value`) at (`address`, `port`); `kind` says what serves them.

    Without a given port it takes a free one.
    """

    def __init__(self, records: Sequence[str], port: int = 0) -> None:
        self.address = ADDRESS
        self._folder = tempfile.TemporaryDirectory(prefix="bench-dns-")
        self._lab: LabProcess | None = None
        self._process: subprocess.Popen[bytes] | None = None
        program = shutil.which("nsd", path=f"{UNPACKED}:/usr/sbin:/usr/local/sbin:/usr/bin")
        if program is None:
            spec = {"records": [line.replace(". ", " ", 1) for line in records if not line.startswith("probe.")]}
            self._lab = LabProcess(spec, dns_port=port, log=False)
            self.port = self._lab.dns_port
            self.kind = "the lab's name server (NSD is missing: look-ups are limited by it)"
            return
        self.port = port or free_port()
        self._start(program, records)
        told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
        self.kind = told.partition("\n")[0].replace("version ", "") or "NSD"

    @property
    def stands_in(self) -> bool:
        """Whether it is the lab's, for want of NSD."""
        return self._lab is not None

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        if self._lab is not None:
            return [self._lab.pid]
        return children(self._process.pid) if self._process else []

    def close(self) -> None:
        """End it."""
        if self._lab is not None:
            self._lab.stop()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._folder.cleanup()

    def _start(self, program: str, records: Sequence[str]) -> None:
        folder = Path(self._folder.name)
        zones: dict[str, list[str]] = {"lab": [], REVERSE: ["@ NS ns.lab.", "1 PTR probe.lab."]}
        for record in records:
            zone = record.partition(". ")[0].rpartition(".")[2]
            zones.setdefault(zone, ["@ NS ns.lab."]).append(record)
        config = [
            "server:",
            f"  ip-address: {ADDRESS}@{self.port}",
            "  server-count: 1",
            "  do-ip6: no",
            '  username: ""',
            '  chroot: ""',
            '  database: ""',
            f'  zonesdir: "{folder}"',
            f'  pidfile: "{folder}/nsd.pid"',
            f'  xfrdfile: "{folder}/xfrd.state"',
            f'  xfrdir: "{folder}"',
            f'  zonelistfile: "{folder}/zone.list"',
            f'  logfile: "{folder}/nsd.log"',
            "  tcp-count: 1000",
            "  rrl-ratelimit: 0",
            "remote-control:",
            "  control-enable: no",
        ]  # fmt: skip - with its rate limit it would leave AAAA questions, which no host answers, to time out
        for name, lines in zones.items():
            with (folder / name).open("w", encoding="ascii") as file:
                file.write(f"$ORIGIN {name}.\n$TTL {TTL_S}\n{_SOA}")
                file.writelines(f"{line}\n" for line in lines)
            config += ["zone:", f'  name: "{name}"', f'  zonefile: "{folder / name}"']
        conf = folder / "nsd.conf"
        conf.write_text("\n".join(config) + "\n", encoding="utf-8")
        self._process = subprocess.Popen([program, "-d", "-c", str(conf)], preexec_fn=die_with_parent)  # noqa: PLW1509 - no threads here
        deadline = time.monotonic() + READY_S
        while not _answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = (folder / "nsd.log").read_text(encoding="utf-8") if (folder / "nsd.log").exists() else ""
                self.close()
                raise RuntimeError(f"nsd did not start: {log[-500:]}")
            time.sleep(0.05)


def free_port() -> int:
    """A port that is free for UDP and TCP."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind((ADDRESS, 0))
            try:
                tcp.bind((ADDRESS, udp.getsockname()[1]))
            except OSError:
                continue
            return int(udp.getsockname()[1])


def children(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for each in found:
        for tasks in Path(f"/proc/{each}/task").glob("*/children"):
            with suppress(OSError):  # it has ended meanwhile
                found += [int(text) for text in tasks.read_text().split()]
    return found


def die_with_parent() -> None:
    """The kernel ends this process when its parent does."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _answers(port: int) -> bool:
    question = struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x02ns\x03lab\x00" + struct.pack("!2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(0.5)
        try:
            udp.sendto(question, (ADDRESS, port))
            return len(udp.recv(512)) > len(question)
        except OSError:
            time.sleep(0.05)
            return False
