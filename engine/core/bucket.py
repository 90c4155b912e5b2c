"""Limits as arithmetic on time: a token bucket and a count in a sliding window.

1. A rate `N/P` with burst `B` allows at most `ceil(B - 1 + N*T/P)` starts in every half-open window of length `T`.
2. A refused request spends nothing; `ready_at` and `take` share one expression, so that waiting until the
   named moment always suffices and no rounding lets a start slip through early.
3. Time is monotonic seconds of the caller; a wall clock that jumps is none of our business.
4. What is granted leaves later, one thing sooner and another later: the law holds for both moments (`Gate`).
"""

from __future__ import annotations

import math
from functools import lru_cache

NEVER = float("-inf")  # a moment before all others
LOOKED_THROUGH = 64  # entries from which on those that have left the window are dropped at each look
REMEMBERED = 20  # steps in which the next run is told of a sliding count
LONGEST_S = 86_400.0  # no memory, whatever clock it was written by, makes anybody wait for longer


@lru_cache(maxsize=4096)
def _shape(rate_per_s: float, burst: int) -> tuple[float, float]:
    """The interval of a rate and the length of a burst, in seconds: tens of thousands of buckets share a few."""
    if rate_per_s <= 0 or burst < 1:
        raise ValueError(f"a bucket needs a rate above 0 and a burst of at least 1, not {rate_per_s}/s and {burst}")
    return 1 / rate_per_s, burst / rate_per_s


class TokenBucket:
    """A rate with a small burst, kept as one time stamp (the generic cell rate algorithm).

    `rate_per_s` is starts a second, `burst` how many may fall together after a pause.
    """

    __slots__ = ("_burst_s", "_due", "_interval_s", "_latest")

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._interval_s, self._burst_s = _shape(rate_per_s, burst)
        self._due = NEVER  # when the bucket is full again
        self._latest = NEVER  # the latest moment for which tokens were taken; a reservation lies ahead

    def ready_at(self, now: float, tokens: int = 1) -> float:
        """The moment from which `tokens` (at most the burst) may be taken together; `now` when at once."""
        due = self._due + tokens * self._interval_s - self._burst_s
        return due if due > now else now

    @property
    def full_at(self) -> float:
        """From when on it is as good as new."""
        return self._due

    def take(self, now: float, tokens: int = 1) -> bool:
        """Take `tokens` together, or spend nothing and say False. `now` may lie ahead: a reservation."""
        if now < self._due + tokens * self._interval_s - self._burst_s:
            return False
        self._due = (self._due if self._due > now else now) + tokens * self._interval_s
        self._latest = now if now > self._latest else self._latest
        return True

    def set_rate(self, rate_per_s: float, now: float, burst: int | None = None) -> None:
        """Another rate, and perhaps another burst, from `now` on. What was taken stays taken: the bucket's level is
        the same before and after, counted in tokens, and what was reserved keeps its place."""
        burst = round(self._burst_s / self._interval_s) if burst is None else burst
        before_s = self._interval_s
        self._interval_s, self._burst_s = _shape(rate_per_s, burst)
        self._due = self._level(self._due, max(now, self._latest), before_s)

    def owed(self, now: float) -> float:
        """How many tokens are missing until it is full: all that a restart has to know, whatever its rate is then."""
        return max(0.0, self._due - now) / self._interval_s

    def owe(self, tokens: float, now: float, away_s: float = 0.0) -> None:
        """Go on where another bucket stood `away_s` seconds ago; what it owes is never made less."""
        owed_s = min(LONGEST_S, tokens * self._interval_s - away_s)
        if owed_s > 0:
            self._due = max(self._due, now + owed_s)

    def _level(self, due: float, since: float, before_s: float) -> float:
        """When it is full again at this rate, if at that of the interval `before_s` it had been at `due`."""
        return since + (due - since) * self._interval_s / before_s if due > since else due

    def __repr__(self) -> str:
        return f"<TokenBucket {1 / self._interval_s:g}/s burst {round(self._burst_s / self._interval_s)}>"


class Gate(TokenBucket):
    """A rate that is kept twice: when something is granted, and when it leaves, which what lies between may put off.

    A greeting that comes late would let what was granted a second apart leave together. So it is granted by this
    bucket, and passes another of the same rate on its way out (`leaves_at`, `leave`).
    """

    __slots__ = ("_left_due", "_left_latest")

    def __init__(self, rate_per_s: float, burst: int) -> None:
        super().__init__(rate_per_s, burst)
        self._left_due = NEVER
        self._left_latest = NEVER

    def leaves_at(self, now: float, tokens: int = 1) -> float:
        """The moment from which `tokens` that were granted may leave together; `now` when at once."""
        due = self._left_due + tokens * self._interval_s - self._burst_s
        return due if due > now else now

    def leave(self, now: float, tokens: int = 1) -> bool:
        """They leave at this moment; False, and nothing is counted, before `leaves_at`."""
        if now < self._left_due + tokens * self._interval_s - self._burst_s:
            return False
        self._left_due = (self._left_due if self._left_due > now else now) + tokens * self._interval_s
        self._left_latest = now if now > self._left_latest else self._left_latest
        return True

    @property
    def full_at(self) -> float:
        """From when on it is as good as new."""
        return self._due if self._due > self._left_due else self._left_due

    def set_rate(self, rate_per_s: float, now: float, burst: int | None = None) -> None:
        """As of a bucket, both times."""
        before_s = self._interval_s
        super().set_rate(rate_per_s, now, burst)
        self._left_due = self._level(self._left_due, max(now, self._left_latest), before_s)

    def owed(self, now: float) -> float:
        """As of a bucket, of whichever owes more."""
        due = self._due if self._due > self._left_due else self._left_due
        return (due - now) / self._interval_s if due > now else 0.0

    def owe(self, tokens: float, now: float, away_s: float = 0.0) -> None:
        """As of a bucket, both times."""
        super().owe(tokens, now, away_s)
        owed_s = min(LONGEST_S, tokens * self._interval_s - away_s)
        if owed_s > 0:
            self._left_due = max(self._left_due, now + owed_s)

    def __repr__(self) -> str:
        return f"<Gate of {super().__repr__()}>"


class Spending:
    """One entry of a sliding count: how many of its tokens are still spent."""

    __slots__ = ("at", "gone", "tokens")

    def __init__(self, at: float, tokens: int) -> None:
        self.at = at
        self.tokens = tokens
        self.gone = False  # has left the window

    def __repr__(self) -> str:
        return f"<Spending {self.tokens} at {self.at:g}>"


class SlidingCount:
    """At most `limit` tokens in every window of `window_s` seconds; a count, not a spacing."""

    __slots__ = ("_entries", "_total", "limit", "window_s")

    def __init__(self, limit: int, window_s: float) -> None:
        self.limit = limit
        self.window_s = window_s
        self._entries: list[Spending] = []  # no deque: ten thousands of lanes wait, and an empty one takes 760 bytes
        self._total = 0

    def spent(self, now: float) -> int:
        """How many tokens count at `now`."""
        gone = 0
        for entry in self._entries:
            if entry.at + self.window_s > now and entry.tokens:
                break
            gone += 1
            entry.gone = True
            self._total -= entry.tokens
        if gone:
            del self._entries[:gone]
        return self._total

    def room(self, now: float) -> int:
        """How many more may be spent at `now`; never below 0."""
        return max(0, self.limit - self.spent(now))

    def room_at(self, now: float) -> float:
        """When the next token comes free; `now` when one is free already."""
        if self._total < self.limit and len(self._entries) < LOOKED_THROUGH:
            return now  # what has left the window since can only make it less
        excess = self.spent(now) - self.limit
        if excess < 0:
            return now
        for entry in self._entries:
            excess -= entry.tokens
            if excess < 0:
                return entry.at + self.window_s
        return now + self.window_s

    def recent(self, now: float) -> list[tuple[float, int]]:
        """What counts at `now`: seconds ago and tokens, in REMEMBERED steps at most, each as of its newest moment."""
        self.spent(now)
        entries = self._entries
        step = max(1, math.ceil(len(entries) / REMEMBERED))
        parts = [entries[at : at + step] for at in range(0, len(entries), step)]
        return [(now - part[-1].at, sum(entry.tokens for entry in part)) for part in parts]

    @property
    def empty_at(self) -> float:
        """From when on nothing counts any more."""
        return self._entries[-1].at + self.window_s if self._entries else NEVER

    def spend(self, now: float, tokens: int) -> Spending:
        """Spend `tokens` all together; the caller has seen that there is room. `now` may lie a little ahead."""
        entry = Spending(now, tokens)
        entries = self._entries
        self._total += tokens
        if not entries or entries[-1].at <= now:
            entries.append(entry)
            return entry
        position = len(entries) - 1
        while position and entries[position - 1].at > now:  # restored or reserved entries may lie ahead
            position -= 1
        entries.insert(position, entry)
        return entry

    def give_back(self, spending: Spending, tokens: int) -> None:
        """Return tokens whose question was not refused after all."""
        if not 0 <= tokens <= spending.tokens:
            raise ValueError(f"can't give back {tokens} of {spending.tokens} tokens")
        spending.tokens -= tokens
        if spending.gone:
            return
        self._total -= tokens
        if not spending.tokens:
            entries, place = self._entries, len(self._entries) - 1
            while entries[place] is not spending:  # it is among the newest
                place -= 1
            del entries[place]
            spending.gone = True

    def __repr__(self) -> str:
        return f"<SlidingCount {self._total} of {self.limit} in {self.window_s:g} s>"
