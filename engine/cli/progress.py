"""The progress display on a terminal: how many, how fast, what waits and why."""

from __future__ import annotations

import time
from typing import TextIO

import gevent
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from engine.cli.tables import hours
from engine.core.reasons import REASONS, Category
from engine.flow.verification import Verification

EVERY_S = 0.5
COLOURS = {Category.VALID: "green", Category.INVALID: "red", Category.RISKY: "yellow"}
SHOWN_PAUSES = 4


class Progress:
    """A few lines that are drawn anew twice a second until `stop`."""

    def __init__(self, file: TextIO) -> None:
        self._live = Live(console=Console(file=file), auto_refresh=False, transient=True)
        self._greenlet: gevent.Greenlet | None = None
        self._began = time.monotonic()

    def start(self, verification: Verification) -> None:
        """Begin to draw."""
        self._live.start()
        self._greenlet = gevent.spawn(self._draw, verification)

    def say(self, line: str) -> None:
        """Lines above the display, which stay on the screen."""
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the display off the screen."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self._live.stop()

    def _draw(self, verification: Verification) -> None:
        pause_s = EVERY_S
        while True:
            began = time.monotonic()
            if verification.job is not None:
                self._live.update(self._view(verification), refresh=True)
            # A count over a million rows takes the store's thread a while: look less often then.
            pause_s = max(EVERY_S, 20 * (time.monotonic() - began))
            gevent.sleep(pause_s)

    def _view(self, verification: Verification) -> Group:
        counts, now = verification.counts(), verification.watch()
        total = sum(counts.values())
        done = total - counts.get("", 0)
        elapsed = time.monotonic() - self._began
        rate = done / elapsed if elapsed > 0 else 0.0
        knows = now.phase == "probing" and rate and done < total
        left = f"{hours((total - done) / rate / 3600)} left at this rate" if knows else ""
        head = Table.grid(padding=(0, 2))
        head.add_row(
            f"{now.phase}", ProgressBar(total or 1, done, width=32), f"{done} of {total}", f"{rate:.0f}/s", left
        )
        line = Text()
        for category in Category:
            number = sum(n for code, n in counts.items() if code and REASONS[code].category is category)
            line.append(f"{category.value} {number}   ", style=COLOURS[category])
        line.append(f"{now.sessions} sessions, {now.lanes} lanes at work", style="dim")
        rows: list[Table | Text] = [head, line]
        for lane, why in list(now.paused.items())[:SHOWN_PAUSES]:
            rows.append(Text(f"  {lane} is closed to us: {why}", style="yellow"))
        if len(now.paused) > SHOWN_PAUSES:
            rows.append(Text(f"  and {len(now.paused) - SHOWN_PAUSES} more", style="yellow"))
        return Group(*rows)
