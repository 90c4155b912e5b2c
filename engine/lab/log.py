"""The lab's log, the judge of what a verifier did: every connection, command and reply, one JSON object a line.

1. Each row stands by itself: `t` (monotonic seconds, one clock for all processes of the machine), `at` (Unix time),
   `session`, `host`, `ip`, `persona`, `client`, `event`, `stage`, `domain`, `text`.
2. Events: connect, command, reply, tls, pregreet (it spoke before the greeting), message (bytes after DATA), close.
3. Rows are kept per session and written at its end, at `flush` and at the lab's end, each with one write.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from engine.lab.spec import Host

MAX_PENDING = 200  # rows of one session that wait for a write


class SessionLog:
    """The rows of one session."""

    def __init__(self, log: Log, number: int, host: Host, client: str) -> None:
        self._log = log
        self.number = number
        self._same = {
            "session": number,
            "host": host.name,
            "ip": host.ip,
            "persona": host.persona,
            "client": client,
        }
        self.rows: list[dict[str, Any]] = []

    def add(self, event: str, text: str = "", *, stage: str = "", domain: str = "") -> None:
        """Note one event at this moment."""
        self._log.counts[event] += 1
        if not self._log.wanted:
            return
        self.rows.append(
            {
                "t": time.monotonic(),
                "at": time.time(),
                **self._same,
                "event": event,
                "stage": stage,
                "domain": domain,
                "text": text,
            }
        )
        if len(self.rows) >= MAX_PENDING:
            self._log.write(self)

    def close(self, text: str = "") -> None:
        """The session's last row, and all of them into the file."""
        self.add("close", text)
        self._log.end(self)


class Log:
    """The file, the open sessions and counts of events; without a path it only counts."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = path.open("a", encoding="utf-8") if path else None
        self._open: dict[int, SessionLog] = {}
        self._number = 0
        self.counts: Counter[str] = Counter()

    @property
    def wanted(self) -> bool:
        """Whether rows are kept at all."""
        return self._file is not None

    @property
    def open_sessions(self) -> int:
        """How many sessions are open at this moment."""
        return len(self._open)

    def session(self, host: Host, client: str) -> SessionLog:
        """The log of a new session."""
        self._number += 1
        self._open[self._number] = entry = SessionLog(self, self._number, host, client)
        return entry

    def write(self, session: SessionLog) -> None:
        """Hand the rows of a session to the file."""
        if self._file is not None and session.rows:
            self._file.write("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in session.rows))
            session.rows.clear()

    def end(self, session: SessionLog) -> None:
        """Write a session's rows and forget it."""
        self.write(session)
        self._open.pop(session.number, None)

    def flush(self) -> None:
        """Everything into the file, rows of open sessions too."""
        for session in self._open.values():
            self.write(session)
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush, and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log file, in order of time."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return sorted(rows, key=lambda row: row["t"])
