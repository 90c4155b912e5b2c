"""The greenlets of a run's sessions: each takes one job after the other.

1. At most `size` are at work. To begin and end a greenlet costs ten times what it costs to hand one a job.
2. `ended` is called after each job, when its place is free again. A job's own exceptions are its own affair: one that
   escapes ends its greenlet, and gevent prints it.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent.event import Event
from gevent.hub import Waiter

Job = Callable[[], object]


class Crew:
    """`start` a job while there is a `free` place; `join` and `kill` those at work; `dismiss` everybody in the end."""

    def __init__(self, size: int, ended: Callable[[], object] = lambda: None) -> None:
        self._size = size
        self._ended = ended
        self._busy: set[gevent.Greenlet] = set()
        self._idle: list[tuple[gevent.Greenlet, Waiter]] = []
        self._rest = Event()  # nobody is at work
        self._rest.set()

    def __len__(self) -> int:
        """How many are at work."""
        return len(self._busy)

    @property
    def free(self) -> int:
        """How many jobs may be started."""
        return self._size - len(self._busy)

    def start(self, job: Job) -> None:
        """Begin a job in the hub's next turn. RuntimeError where no place is free."""
        if self.free <= 0:
            raise RuntimeError(f"All {self._size} places of the crew are taken; ask `free` before.")
        self._rest.clear()
        if self._idle:
            greenlet, waiter = self._idle.pop()
            self._busy.add(greenlet)
            gevent.get_hub().loop.run_callback(waiter.switch, job)
        else:
            greenlet = gevent.Greenlet(self._work, job)
            self._busy.add(greenlet)
            greenlet.link(self._gone)  # also where it was killed before its first turn
            greenlet.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until nobody is at work; False when some still are after that time."""
        return bool(self._rest.wait(timeout_s))

    def kill(self, timeout_s: float) -> None:
        """Cut short those at work, and give them a while to clean up."""
        gevent.killall(list(self._busy), block=False)
        self.join(timeout_s)

    def dismiss(self) -> None:
        """End those that have nothing to do."""
        idle, self._idle = self._idle, []
        gevent.killall([greenlet for greenlet, _ in idle], block=False)

    def _work(self, job: Job) -> None:
        greenlet, waiter = gevent.getcurrent(), Waiter()
        while True:
            job()
            self._idle.append((greenlet, waiter))
            self._leave(greenlet)
            job = waiter.get()
            waiter.clear()

    def _gone(self, greenlet: gevent.Greenlet) -> None:
        if greenlet in self._busy:
            self._leave(greenlet)

    def _leave(self, greenlet: gevent.Greenlet) -> None:
        self._busy.discard(greenlet)
        if not self._busy:
            self._rest.set()
        self._ended()

    def __repr__(self) -> str:
        return f"<Crew {len(self._busy)} of {self._size} at work, {len(self._idle)} idle>"
