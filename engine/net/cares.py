"""c-ares on gevent's loop: one question to the name servers, and the greenlet waits.

1. c-ares never runs a thread here: its sockets are watched by the hub's loop, and a timer lets it see its time-outs
   while a query is outstanding; without that timer a lost packet would hang for good.
2. c-ares has a query cache of its own that pycares can't switch off (about 1.8 KB a name). So a channel lives for
   QUERIES_A_LIFE queries; then a new one takes over, and the old one ends when its last query is answered.
3. A channel is destroyed only with no query outstanding and never from inside one of its own callbacks: pycares
   destroys on another thread, and what is still open would call back there.
4. SERVFAIL and REFUSED are answers (ARES_FLAG_NOCHECKRESP): they speak of a domain and don't count against the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from time import monotonic
from typing import Any

import pycares
from gevent import get_hub
from gevent.event import AsyncResult

QUERIES_A_LIFE = 10_000
TICK_S = 0.05  # c-ares' shortest time-out is 250 ms; a fifth of it is exact enough
_BAD = pycares.ARES_SOCKET_BAD
_READ, _WRITE = 1, 2  # libev's event bits


class Channel:
    """Questions to `servers` ("host:port"; None: the system's), by UDP and TCP for truncated answers, or by `tcp` only.

    `timeout_s` bounds a question with all its repetitions, of which there are at most `tries` a server. c-ares shortens
    its first wait to five times the server's mean delay (250 ms at least) and doubles it at each repetition.
    """

    def __init__(self, servers: Sequence[str] | None, *, tcp: bool, timeout_s: float, tries: int) -> None:
        self._servers, self._tcp, self._timeout_s, self._tries = servers, tcp, timeout_s, tries
        self._life = self._new_life()

    @property
    def servers(self) -> list[str]:
        """The name servers in use, as "host:port"."""
        return self._life.channel.servers

    def ask(self, name: str, kind: int) -> tuple[pycares.DNSResult | None, int]:
        """The answer, or None with a status of `pycares.errno`; ARES_ETIMEOUT when `timeout_s` passed."""
        if self._life.asked >= QUERIES_A_LIFE:
            self._life.retire()
            self._life = self._new_life()
        return self._life.ask(name, kind)

    def close(self) -> None:
        """End at once; questions still open end with ARES_ECANCELLED."""
        self._life.cancel()

    def _new_life(self) -> _Life:
        options: dict[str, Any] = {
            "flags": pycares.ARES_FLAG_EDNS | pycares.ARES_FLAG_NOCHECKRESP | (pycares.ARES_FLAG_USEVC * self._tcp),
            "timeout": self._timeout_s / 8,  # so that three repetitions fit before the deadline
            "tries": self._tries,
        }
        if self._servers is not None:
            options |= {"servers": self._servers, "resolvconf_path": "/dev/null"}  # no foreign options
        return _Life(options, self._timeout_s)


class _Life:
    """One c-ares channel from birth to its last answer."""

    def __init__(self, options: dict[str, Any], timeout_s: float) -> None:
        self._loop = get_hub().loop
        self._timeout_s = timeout_s
        self._waiting: dict[AsyncResult, float] = {}  # and until when; the order of asking is that of the deadlines
        self._watchers: dict[int, tuple[int, Any]] = {}
        self._timer = self._loop.timer(TICK_S, TICK_S)
        self._retired = self._closed = False
        self.asked = self._outstanding = 0
        self.channel = pycares.Channel(sock_state_cb=self._watch, **options)

    def ask(self, name: str, kind: int) -> tuple[pycares.DNSResult | None, int]:
        if self._closed:
            return None, pycares.errno.ARES_ECANCELLED
        reply, called_back = AsyncResult(), False

        def done(result: pycares.DNSResult | None, status: int | None) -> None:
            nonlocal called_back
            called_back = True
            self._outstanding -= 1
            if self._waiting.pop(reply, None) is not None:  # else its time was over
                reply.set((result, status or 0))
            if not self._outstanding:
                self._rest()

        self.asked += 1
        self._outstanding += 1
        self._waiting[reply] = monotonic() + self._timeout_s  # the loop's own time is as old as its last turn
        if self._outstanding == 1:
            self._timer.start(self._tick, update=True)
        try:
            self.channel.query(name, kind, callback=done)
        except (pycares.AresError, UnicodeError) as error:  # a name that can't be written as a question
            if not called_back:
                done(None, error.args[0] if isinstance(error, pycares.AresError) else pycares.errno.ARES_EBADNAME)
        answer: tuple[pycares.DNSResult | None, int] = reply.get()
        return answer

    def retire(self) -> None:
        """Take no more questions, and end with the last answer."""
        self._retired = True
        if not self._outstanding:
            self._close()

    def cancel(self) -> None:
        if not self._closed:
            self.channel.cancel()
            self._close()

    def _tick(self) -> None:
        """Let c-ares repeat what got no answer, and end what waited too long; c-ares may give up on that later."""
        self._process(_BAD, _BAD)
        now = monotonic()
        late = list(takewhile(lambda waiting: waiting[1] <= now, self._waiting.items()))
        for reply, _ in late:
            del self._waiting[reply]
            reply.set((None, pycares.errno.ARES_ETIMEOUT))

    def _rest(self) -> None:
        self._timer.stop()
        if self._retired:
            self._loop.run_callback(self._close)  # not here: we are inside a callback of the channel

    def _process(self, read_fd: int, write_fd: int) -> None:
        if not self._closed:
            self.channel.process_fd(read_fd, write_fd)

    def _watch(self, fd: int, readable: int, writable: int) -> None:
        """c-ares tells which events of a socket it waits for; neither before it closes the socket."""
        if self._closed:
            return
        events = _READ * bool(readable) | _WRITE * bool(writable)
        known, watcher = self._watchers.get(fd, (0, None))
        if events == known:
            return
        if watcher is not None:
            watcher.stop()
            watcher.close()
            del self._watchers[fd]
        if events:
            watcher = self._loop.io(fd, events)
            self._watchers[fd] = (events, watcher)
            watcher.start(self._ready, fd, pass_events=True)

    def _ready(self, events: int, fd: int) -> None:
        self._process(fd if events & _READ else _BAD, fd if events & _WRITE else _BAD)

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._timer.stop()
        self._timer.close()
        for _, watcher in self._watchers.values():
            watcher.stop()
            watcher.close()
        self._watchers.clear()
        self.channel.close()
