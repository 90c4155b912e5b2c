"""The world's log: one event a line, fields parted by tabs, in the order in which they happened.

1. `t` is time.monotonic() in seconds when a command was there, or when a session was accepted or closed; a reply that a
   persona delays leaves later than its line says.
2. Events: `+` a connection, `-` its end, else the command's verb; every command carries the reply that it got.
3. Who needs only connections asks for less: the world is faster without a line a command.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FULL, CONNECTIONS, NONE = "full", "connections", "none"
LINES_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class Row:
    """One event. `argument` is what stands after RCPT TO: or MAIL FROM:, or the client of a connection."""

    t: float
    session: int
    ip: str
    event: str
    argument: str = ""
    reply: str = ""

    @property
    def code(self) -> int:
        """The reply's code; 0 where there is none."""
        return int(self.reply[:3]) if self.reply[:3].isdigit() else 0


class Writer:
    """Lines into a file, many at a time."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", encoding="utf-8") if path else None
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """One event; nothing where no log is wanted."""
        if self._file is None:
            return
        self._lines.append(line)
        if len(self._lines) >= LINES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Everything into the file."""
        if self._file is not None:
            self._file.write("".join(self._lines))
            self._file.flush()
            self._lines.clear()


def read(path: Path) -> Iterator[Row]:
    """The rows of a log file."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            t, session, ip, event, argument, reply = line.rstrip("\n").split("\t")
            yield Row(float(t), int(session), ip, event, argument, reply)
