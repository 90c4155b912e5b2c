"""Starts the lab as a process of its own and talks to it: for tests, benches and the command line.

The lab ends with `stop`, or when this process does, whatever way it dies: its input ends then.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from engine.lab.log import read
from engine.lab.persona import LabError
from engine.lab.spec import Expectation, addresses

STOP_S = 5.0


class LabProcess:
    """A running lab.

    `spec` is a lab file, a mapping in its form, or None for the shipped lab; `log` the file for the lab's log (None: a
    temporary one, False: no log, for benches). Ports are chosen by the lab when 0.

    Raises:
        LabError: the spec is wrong, or a port is taken; also from `set`, for an unknown persona, block list or field.
    """

    def __init__(
        self,
        spec: Mapping[str, Any] | Path | None = None,
        *,
        smtp_port: int = 0,
        dns_port: int = 0,
        log: Path | Literal[False] | None = None,
    ) -> None:
        self.spec = spec
        self._folder = tempfile.TemporaryDirectory(prefix="lab-") if log is None else None
        self.log_path = Path(self._folder.name) / "lab.jsonl" if self._folder else log or None
        # -P: a folder named `engine` where the user stands is not ours
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.lab"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            ready = self._ask(
                {
                    "spec": str(spec) if isinstance(spec, Path) else spec,
                    "smtp_port": smtp_port,
                    "dns_port": dns_port,
                    "log": str(self.log_path) if self.log_path else None,
                }
            )
        except BaseException:
            self.stop()
            raise
        self.smtp_port: int = ready["smtp_port"]
        self.dns_port: int = ready["dns_port"]
        self.hosts: int = ready["hosts"]
        self.domains: int = ready["domains"]

    def __enter__(self) -> LabProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The lab's process id."""
        return self._process.pid

    @property
    def dns(self) -> tuple[str, int]:
        """Where the lab's name server listens, over UDP and TCP."""
        return "127.0.0.1", self.dns_port

    def addresses(self) -> Iterator[Expectation]:
        """Every address of this lab with the reasons that are right for it."""
        return addresses(self.spec)

    def set(self, persona: str, **values: Any) -> None:
        """Change fields of a persona (as lab.yaml writes them) from its next command on, in open sessions too; or, by
        the name of its zone, of a block list from its next answer on."""
        self._ask({"do": "set", "persona": persona, "values": values})

    def reset(self) -> None:
        """Personas and block lists as the spec has them, and nothing remembered of any client."""
        self._ask({"do": "reset"})

    def forget(self) -> None:
        """Greylists, rates and busy counts begin anew; personas stay as they are."""
        self._ask({"do": "forget"})

    def stats(self) -> dict[str, int]:
        """Counts of events so far, `open` sessions, and DNS `queries`."""
        return self._ask({"do": "stats"})

    def log(self) -> list[dict[str, Any]]:
        """Every connection, command and reply so far, in order of time."""
        if self.log_path is None:
            raise LabError("this lab was started without a log")
        if self._process.poll() is None:
            self._ask({"do": "flush"})
        return read(self.log_path)

    def wait(self) -> int:
        """Wait until the lab ends; its exit status."""
        return self._process.wait()

    def end(self) -> None:
        """Tell the lab to end, without waiting for it: for signal handlers, which must not wait."""
        self._process.terminate()

    def stop(self) -> None:
        """End the lab; its log is complete afterwards. A temporary log goes with it."""
        process = self._process
        if process.stdin and not process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
        if self._folder:
            self._folder.cleanup()

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        if not line:
            raise LabError("the lab's process has ended; its standard error says why")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LabError(answer["error"])
        return answer
