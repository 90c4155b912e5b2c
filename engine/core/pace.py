"""Rates that adapt: a recipient rate inside a policy's range, and the budget of refusals.

1. Pace is cut when a server complains of our rate or its load, at most once in 10 minutes, and never by greylisting,
   mailbox or recipient-count replies; it recovers by steps.
2. The refusal budget is a count in a sliding window. It grows by a tenth of its ceiling after an hour that used half
   of it in peace, and is halved for a day by a reply that blames our source, at most once an hour.
3. Both are plain data (`memory`, `recall`), so that a restart goes on where the last run stood.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.core.bucket import SlidingCount, Spending, TokenBucket
from engine.core.grammar import Range
from engine.core.policy import PaceRange

CUT_GAP_S = 600.0  # a burst of complaints is one complaint
CUTS_PACE = frozenset({"rate_limited", "too_many_connections", "server_busy"})
HOUR_S = 3600.0
FROZEN_S = 86_400.0


class Pace:
    """The adaptive rate of a bucket, in starts a second."""

    __slots__ = ("_bucket", "_changed_at", "_cut_at", "_limits", "_range", "rate_per_s")

    def __init__(self, rates: Range, limits: PaceRange, bucket: TokenBucket) -> None:
        self._range = rates
        self._limits = limits
        self._bucket = bucket
        self._cut_at = float("-inf")
        self._changed_at = float("-inf")
        self.rate_per_s = rates.start.per_s

    def cut(self, now: float) -> bool:
        """A complaint of our rate: slow down, at most once in CUT_GAP_S; True when it did."""
        self.recover(now)
        if now - self._cut_at < CUT_GAP_S:
            return False
        self._cut_at = self._changed_at = now
        self._set(max(min(self._limits.floor.per_s, self.rate_per_s), self.rate_per_s * self._limits.cut))
        return True

    def recover(self, now: float) -> None:
        """Take the steps that peace has earned since the last change, up to the ceiling."""
        ceiling = self._range.ceiling.per_s
        if self.rate_per_s >= ceiling:
            return
        if self._changed_at == float("-inf"):
            self._changed_at = now
        steps = int((now - self._changed_at) // self._limits.every_s)
        if steps > 0:
            self._changed_at += steps * self._limits.every_s
            self._set(min(ceiling, self.rate_per_s + steps * self._limits.step.per_s))

    def memory(self, now: float) -> dict[str, float]:
        """What to keep: the rate, and how long ago it changed and was cut (seconds); nothing while all is new."""
        self.recover(now)
        never_cut = self._cut_at == float("-inf")
        if never_cut and self.rate_per_s == self._range.start.per_s:
            return {}
        kept = {"rate": self.rate_per_s}
        if self._changed_at != float("-inf"):
            kept["changed"] = now - self._changed_at
        return kept if never_cut else kept | {"cut": now - self._cut_at}

    def recall(self, kept: Mapping[str, float], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later; inside today's range."""
        if not kept:
            return
        floor = min(self._limits.floor.per_s, self._range.start.per_s)
        self._cut_at = now - away_s - kept["cut"] if "cut" in kept else float("-inf")
        self._changed_at = now - away_s - kept.get("changed", 0.0)
        self._set(min(self._range.ceiling.per_s, max(floor, kept["rate"])))
        self.recover(now)

    def _set(self, rate_per_s: float) -> None:
        self.rate_per_s = rate_per_s
        self._bucket.set_rate(rate_per_s)

    def __repr__(self) -> str:
        return f"<Pace {60 * self.rate_per_s:g}/min of {60 * self._range.ceiling.per_s:g}>"


class RefusalBudget:
    """How many unknown recipients may be refused in a window: a sliding count that adapts."""

    __slots__ = ("_ceiling", "_count", "_frozen_until", "_halved_at", "_hour_began", "_hour_spent", "_start")

    def __init__(self, rates: Range) -> None:
        self._start = rates.start.count
        self._count = SlidingCount(rates.start.count, rates.start.period_s)
        self._ceiling = max(1, round(rates.ceiling.per_s * rates.start.period_s))
        self._halved_at = float("-inf")
        self._frozen_until = float("-inf")
        self._hour_began: float | None = None
        self._hour_spent = 0

    @property
    def limit(self) -> int:
        """Refusals allowed in the window now."""
        return self._count.limit

    @property
    def window_s(self) -> float:
        """The window's length."""
        return self._count.window_s

    def used_ratio(self, now: float) -> float:
        """How much of the budget is spent, 0 to 1."""
        return min(1.0, self._count.spent(now) / self._count.limit)

    def room(self, now: float) -> int:
        """How many more may be asked at `now`."""
        self._adapt(now)
        return self._count.room(now)

    def room_at(self, now: float) -> float:
        """When the next one may be asked."""
        self._adapt(now)
        return self._count.room_at(now)

    def spend(self, now: float, tokens: int) -> Spending:
        """Reserve tokens for RCPTs about to be asked."""
        self._adapt(now)
        self._hour_spent += tokens
        return self._count.spend(now, tokens)

    def give_back(self, spending: Spending, tokens: int) -> None:
        """Return what was not refused after all."""
        self._count.give_back(spending, tokens)
        self._hour_spent = max(0, self._hour_spent - tokens)

    def blamed(self, now: float) -> bool:
        """A rate or block reply of reach `source`: halve, rounded up, and freeze for a day; at most once an hour."""
        self._hour_began, self._hour_spent = now, 0
        if now - self._halved_at < HOUR_S:
            return False
        self._halved_at = now
        self._frozen_until = now + FROZEN_S
        self._count.limit = max(1, (self._count.limit + 1) // 2)
        return True

    def memory(self, now: float) -> dict[str, float]:
        """What to keep beside the spendings themselves; nothing while it is as the policy begins it."""
        if self._halved_at != float("-inf"):
            frozen_s = self._frozen_until - now
            return {"limit": self._count.limit, "halved": now - self._halved_at, "frozen": frozen_s}
        return {} if self._count.limit == self._start else {"limit": self._count.limit}

    def recall(self, kept: Mapping[str, float], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later; never above today's ceiling."""
        if not kept:
            return
        self._count.limit = max(1, min(self._ceiling, int(kept["limit"])))
        if "halved" in kept:
            self._halved_at = now - away_s - kept["halved"]
            self._frozen_until = now + min(FROZEN_S, kept["frozen"] - away_s)

    def _adapt(self, now: float) -> None:
        """After an hour in which half was spent and nobody blamed us: up by a tenth of the ceiling."""
        if self._hour_began is None:
            self._hour_began = now
        if now - self._hour_began < HOUR_S:
            return
        earned = self._hour_spent * 2 >= self._count.limit and now >= self._frozen_until
        if earned and self._count.limit < self._ceiling:
            self._count.limit = min(self._ceiling, self._count.limit + max(1, self._ceiling // 10))
        self._hour_began, self._hour_spent = now, 0

    def __repr__(self) -> str:
        return f"<RefusalBudget {self._count.limit} of {self._ceiling} in {self._count.window_s:g} s>"
