"""Instructions of the hot paths, counted and not timed: what CI holds them to, on however noisy a machine.

A hot path is what every address pays: one reply classified, one dialogue of five turns, one scheduling decision, one
journal row with its audit, one address parsed. Its count is of Python's own instructions in our code (what is below it
may change without us), the mean over some inputs: the same in every run, and on every machine.

    python -m bench hotpaths           the counts, beside those allowed (bench/hotpaths.json); --check as everywhere
    python -m bench hotpaths --write   allow what is counted now, for this Python version: after a growth that is meant

1. Counts are kept by Python version, for its compiler makes them. One that is not in the file is held to the newest
   that is, with a wider margin.
2. A path may grow by MARGIN. One that shrank by as much should be written anew, so that it can't grow back unseen.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sqlite3
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import engine.core
from bench.measure.report import Report, options
from bench.schedule import filled
from engine.core.address import parse
from engine.core.classify import classify
from engine.core.dialogue import Dialogue
from engine.core.lane import Visit
from engine.core.reasons import Stage
from engine.store import audit
from engine.store.job_tables import SCHEMA, SETTLED, WAITING, NewRow, Outcome, Routed, do_add_rows, do_record, do_route

OURS = (str(Path(engine.core.__file__).parents[1]), "<string>")
ALLOWED = Path(__file__).with_suffix(".json")
MARGIN, WIDER = 0.10, 0.50
VERSION = ".".join(platform.python_version_tuple()[:2])
SEED = "PYTHONHASHSEED"
WARM, COUNTED = 20, 100


class Counter:
    """Counts instructions on this thread: by sys.monitoring, before Python 3.12 by a trace function."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count while the context lasts."""
        gc.collect()
        gc.disable()
        start, stop = (self._monitor, self._forget) if hasattr(sys, "monitoring") else (self._trace, self._untrace)
        start()
        try:
            yield
        finally:
            stop()
            gc.enable()

    def _monitor(self) -> None:
        monitoring = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
        monitoring.use_tool_id(monitoring.PROFILER_ID, "bench")
        monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION, self._instruction)
        monitoring.set_events(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION)

    def _forget(self) -> None:
        monitoring = sys.monitoring  # type: ignore[attr-defined, unused-ignore]
        monitoring.set_events(monitoring.PROFILER_ID, 0)
        monitoring.free_tool_id(monitoring.PROFILER_ID)

    def _instruction(self, code: CodeType, _: int) -> object:
        if _ours(code):
            self.count += 1
            return None
        return sys.monitoring.DISABLE  # type: ignore[attr-defined, unused-ignore]

    def _trace(self) -> None:
        sys.settrace(self._called)

    def _untrace(self) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        if not _ours(frame.f_code):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, _: object) -> Any:
        self.count += event == "opcode"
        return self._stepped


def _ours(code: CodeType) -> bool:
    """What dataclasses make is ours too, and has no file."""
    return code.co_filename.startswith(OURS)


# --- the paths ------------------------------------------------------------------------------------------------------

REPLIES = (
    (250, "2.1.5", "Ok"),
    (550, "5.1.1", "<ann@example.com>: Recipient address rejected: User unknown in virtual mailbox table"),
    (550, "", "Requested action not taken: mailbox unavailable"),
    (554, "5.7.1", "Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org"),
    (450, "4.2.0", "<ann@example.com>: Recipient address rejected: Greylisted, see http://postgrey.example/help"),
    (452, "4.2.2", "The email account that you tried to reach is over quota"),
)
ADDRESSES = ("ann@example.com", "First.Last+tag@Sub.Example.org", '"a b"@example.net', "ann@exämple.de", "no-at-all")
SPOKEN = (
    b"220 mx.example.com ESMTP\r\n",
    b"250-mx.example.com\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n",
    b"250 2.1.0 Ok\r\n",
    b"550 5.1.1 <ann@example.com>: Recipient address rejected: User unknown\r\n",
    b"221 2.0.0 Bye\r\n",
)


def reply() -> Callable[[int], object]:
    """One reply classified."""

    def one(turn: int) -> object:
        code, enhanced, text = REPLIES[turn % len(REPLIES)]
        return classify(code, enhanced, f"{text} ({turn})", Stage.RCPT, echoed=("ann@example.com",))

    return one


def dialogue() -> Callable[[int], object]:
    """One dialogue of five turns: greeting, EHLO, MAIL, RCPT, QUIT."""

    def one(turn: int) -> object:
        ours = Dialogue("probe.example.net", "probe@example.net")
        for spoken in SPOKEN:
            ours.receive(spoken)
            while (event := ours.next_event()) is not None:
                if type(event).__name__ == "Ready":
                    _ = ours.quit() if ours.stage is Stage.RCPT else ours.ask([f"ann{turn}@example.com"])
            ours.to_send()
        return ours.state

    return one


def decision() -> Callable[[int], object]:
    """One scheduling decision over a hundred lanes; most start a session."""
    schedule = filled(100)
    clock = [0.0]

    def one(turn: int) -> object:
        found = schedule.next(clock[0])
        if not isinstance(found, Visit) and found.until is not None:
            clock[0] = max(clock[0], found.until)
        return found

    return one


def journal_row() -> Callable[[int], object]:
    """One attempt written down: the address's columns and a row of the audit's chain."""
    conn = sqlite3.connect(":memory:")
    conn.executescript("".join(SCHEMA))
    audit.begin(conn, "bench")
    number = WARM + COUNTED
    do_add_rows([NewRow(n, "[]", f"user{n}@example.com", f"user{n}@example.com", f"user{n}", "example.com")
                 for n in range(number)], conn)  # fmt: skip
    domain = conn.execute("SELECT id FROM domains").fetchone()[0]
    do_route([Routed(domain, "mx.example.com", "192.0.2.1", "mx.example.com", "default")], number, conn)
    ids = [row[0] for row in conn.execute("SELECT id FROM addresses ORDER BY id")]

    def one(turn: int) -> object:
        columns = {
            "reason": "mailbox_not_found", "detail": "", "stage": "rcpt", "code": 550, "enhanced": "5.1.1",
            "text": "User unknown", "mx_host": "mx.example.com", "mx_ip": "198.51.100.7", "attempts": 1,
            "duration_ms": 42, "checked_at": "2026-11-28T16:00:00Z",
        }  # fmt: skip
        row = audit.AuditRow(
            1.79e9 + turn, "rcpt", "rcpt", 550, "5.1.1", "mailbox_not_found", "192.0.2.1", "TICKET-7", "mx.example.com",
            "198.51.100.7", f"user{turn}@example.com", "User unknown", ids[turn],
        )  # fmt: skip
        return do_record([([Outcome(ids[turn], SETTLED if turn % 2 else WAITING, columns)], [row])], conn)

    weakref.finalize(one, conn.close)
    return one


def address() -> Callable[[int], object]:
    """One address parsed."""
    return lambda turn: parse(ADDRESSES[turn % len(ADDRESSES)])


PATHS = (reply, dialogue, decision, journal_row, address)


def counts() -> dict[str, int]:
    """Instructions of each path, the mean of COUNTED times after WARM ones."""
    found = {}
    for path in PATHS:
        one, counter = path(), Counter()
        for turn in range(WARM):
            one(turn)
        with counter.counting():
            for turn in range(WARM, WARM + COUNTED):
                one(turn)
        found[path.__name__.replace("_", " ")] = round(counter.count / COUNTED)
    return found


# --- the guard ------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Count, compare and report."""
    parser = options("hotpaths", __doc__)
    parser.add_argument("--write", action="store_true", help="allow what is counted now, for this Python version")
    chosen = parser.parse_args(arguments)
    if os.environ.get(SEED) != "0":  # sets and dicts in one order, so that every run counts the same
        again = [sys.executable, "-m", "bench", "hotpaths", *arguments]
        return subprocess.run(again, env={**os.environ, SEED: "0"}, check=False).returncode
    allowed = json.loads(ALLOWED.read_text(encoding="utf-8")) if ALLOWED.exists() else {}
    found = counts()
    if chosen.write:
        allowed[VERSION] = found
        ALLOWED.write_text(json.dumps(dict(sorted(allowed.items(), key=_order)), indent=1) + "\n", encoding="utf-8")
    report = Report("hotpaths")
    compare(report, found, allowed, VERSION)
    return report.finish(chosen)


def compare(report: Report, found: dict[str, int], allowed: dict[str, dict[str, int]], version: str) -> None:
    """Claims that each path is within its margin."""
    known = version if version in allowed else max(allowed, key=lambda each: _order((each, None)))
    margin = MARGIN if known == version else WIDER
    for name, count in found.items():
        before = allowed[known][name]
        report.figure("instructions", count, per=name)
        report.figure(f"allowed ({known})", before, per=name)
        report.at_most(f"instructions of one {name}", count, round(before * (1 + margin)))
        if known == version and count < before * (1 - margin):
            report.note(f"{name} has shrunk: write the counts anew, so that it can't grow back unseen")
    if known != version:
        report.note(f"Python {version} has no counts of its own: held to those of {known} and {margin:.0%}")
    report.note(
        "a growth that is meant: `python -m bench hotpaths --write` allows what is counted now, and is committed"
    )


def _order(row: tuple[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, row[0].split(".")))
