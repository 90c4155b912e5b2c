"""The lab's own process: `python -m engine.lab`, started by `engine.lab.process`.

Its standard input holds one JSON object a line: first the configuration, then orders; each gets one line of answer on
standard output. It ends when its input does, so it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent.os import make_nonblocking, nb_read

from engine.lab.conversation import Memory
from engine.lab.log import Log
from engine.lab.nameserver import NameServer
from engine.lab.persona import LabError
from engine.lab.smtp import Servers
from engine.lab.spec import load
from engine.lab.zone import Zones

FLUSH_EVERY_S = 1.0


class World:
    """One running lab, and the orders that it obeys."""

    def __init__(self, config: dict[str, Any]) -> None:
        given = config.get("spec")
        spec = load(Path(given) if isinstance(given, str) else given)
        self._memory = Memory(dict(spec.personas))
        self._shipped = spec.personas
        self._log = Log(Path(config["log"]) if config.get("log") else None)
        self._zones = Zones(spec.records, spec.faults, spec.blocklists)
        self._lists = spec.blocklists
        self._names = NameServer(self._zones, config.get("dns_port", 0))
        self._servers = Servers(spec, self._memory, self._log, config.get("smtp_port", 0))
        self._names.start()
        self._servers.start()
        self.ready = {
            "smtp_port": self._servers.port,
            "dns_port": self._names.port,
            "domains": len(spec.domains),
            "hosts": len(spec.servers()),
        }
        gevent.spawn(self._flush_for_ever)

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order and return its answer."""
        match order.get("do"):
            case "set":
                self._set(order["persona"], order["values"])
            case "reset":
                self._memory.personas = dict(self._shipped)
                for each in self._lists.values():
                    self._zones.change(each)
                self._memory.forget()
            case "forget":
                self._memory.forget()
            case "flush":
                self._log.flush()
            case "stats":
                return {**self._log.counts, "open": self._log.open_sessions, "queries": self._names.queries}
            case other:
                raise LabError(f"the lab knows no order {other!r}")
        return {}

    def _set(self, name: str, values: dict[str, Any]) -> None:
        personas, lists = self._memory.personas, self._zones.blocklists
        if name in personas:
            personas[name] = personas[name].changed(values, where=f"set {name}")
        elif name in lists:
            self._zones.change(lists[name].changed(values, where=f"set {name}"))
        else:
            raise LabError(f"there is no persona {name!r}, and no block list of that name")

    def close(self) -> None:
        """Stop serving and write the log."""
        self._servers.close()
        self._names.close()
        self._log.close()

    def _flush_for_ever(self) -> None:
        while True:
            gevent.sleep(FLUSH_EVERY_S)
            self._log.flush()


def _lines() -> Iterator[str]:
    make_nonblocking(0)
    buffer = b""
    while data := nb_read(0, 65536):
        *lines, buffer = (buffer + data).split(b"\n")
        yield from (line.decode() for line in lines)


def _say(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _end(world: World) -> None:
    world.close()
    os._exit(0)


def main() -> int:
    """Serve until the input ends. Returns 1 when the lab can't be set up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lines = _lines()
    try:
        world = World(json.loads(next(lines, "{}")))
    except LabError as error:
        _say({"error": str(error)})
        return 1
    gevent.signal_handler(signal.SIGTERM, _end, world)
    _say(world.ready)
    for line in lines:
        try:
            answer = world.obey(json.loads(line))
        except LabError as error:
            answer = {"error": str(error)}
        _say(answer)
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
