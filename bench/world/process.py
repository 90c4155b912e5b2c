"""Starts a world's processes and talks to them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.world.dns import NameServer
from bench.world.log import FULL, NONE, Row, read
from bench.world.plan import Plan

STOP_S = 10.0


class World:
    """A running world. `level` says what its log holds: `full`, `connections` or `none`.

    In a network namespace it has the ports that everybody expects, 25 and 53; elsewhere free ones.
    """

    def __init__(self, plan: Plan, *, level: str = FULL, smtp_port: int = 0, dns_port: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-world-")
        self.log_path = Path(self._folder.name) / "world.log" if level != NONE else None
        self.dns_server = NameServer(plan.records, dns_port)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.world"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.hosts = {ip: name for name, ip in plan.addresses.items()}
        log = str(self.log_path) if self.log_path else ""
        ready = self._ask({**plan.world(), "port": smtp_port, "log": log, "level": level})
        self.smtp_port: int = ready["port"]
        self.loop: str = ready["loop"]
        self._began, self._before = time.monotonic(), self.stats()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def dns(self) -> str:
        """Its name server as --dns takes it."""
        return f"{self.dns_server.address}:{self.dns_server.port}"

    def set(self, persona: str, **values: Any) -> None:
        """Change a persona from its next command on."""
        self._ask({"do": "set", "persona": persona, "values": values})

    def stats(self) -> dict[str, float]:
        """What happened so far; see Server.stats."""
        return self._ask({"do": "stats"})

    def forget_peak(self) -> None:
        """Count the most sessions open together anew."""
        self._ask({"do": "peak"})

    def log(self) -> list[Row]:
        """Every event so far."""
        assert self.log_path is not None, "this world keeps no log"
        self.stats()  # flushes
        return list(read(self.log_path))

    def ceiling(self) -> dict[str, float]:
        """What the world has used since it began, and the sessions a second that would have filled its core."""
        now = self.stats()
        cpu_s, sessions = now["cpu_s"] - self._before["cpu_s"], now["sessions"] - self._before["sessions"]
        wall_s = time.monotonic() - self._began
        return {
            "cpu_us_per_session": cpu_s / sessions * 1e6 if sessions else 0.0,
            "sessions_per_s": sessions / cpu_s if cpu_s else 0.0,
            "busy": cpu_s / wall_s if wall_s else 0.0,
        }

    def stop(self) -> None:
        """End everything; the log goes with it."""
        assert self._process.stdin
        if not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self.dns_server.close()
        self._folder.cleanup()

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the world's process has ended; its standard error says why")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer
