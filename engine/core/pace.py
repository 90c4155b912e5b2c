"""Rates that adapt: a recipient rate inside a policy's range, the budget of refusals, and an identity's warm-up.

1. Pace is cut when a server complains of our rate or its load, at most once in 10 minutes, and never by greylisting,
   mailbox or recipient-count replies; it recovers by steps.
2. The refusal budget is a count in a sliding window. It grows by a tenth of its ceiling after an hour that used half
   of it in peace, and is halved for a day by a reply that blames our source, at most once an hour.
3. Warm-up counts recipients that were asked, whatever the answer, in a sliding day.
4. Pace and budget are plain data (`memory`, `recall`), so that a restart goes on where the last run stood.
5. A range may change under them (`adopt`). What they learnt outlasts a narrower range, and counts again after it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from engine.core.bucket import NEVER, SlidingCount, Spending, TokenBucket
from engine.core.grammar import Range
from engine.core.policy import PaceRange

CUT_GAP_S = 600.0  # a burst of complaints is one complaint
CUTS_PACE = frozenset({"rate_limited", "too_many_connections", "server_busy"})
HOUR_S = 3600.0
DAY_S = 86_400.0
FROZEN_S = DAY_S


class Pace:
    """The adaptive rate of a bucket, in starts a second."""

    __slots__ = ("_bucket", "_changed_at", "_cut_at", "_limits", "_own", "_range", "rate_per_s", "settled")

    def __init__(self, rates: Range, limits: PaceRange, bucket: TokenBucket) -> None:
        self._range = rates
        self._limits = limits
        self._bucket = bucket
        self._cut_at = NEVER
        self._changed_at = NEVER
        self._own: float | None = None  # the rate that experience made; None: the range's start
        self._place()

    def adopt(self, rates: Range, limits: PaceRange, burst: int, now: float) -> None:
        """Another range and burst from now on; peace under the old range earns no step in the new one."""
        self._range, self._limits = rates, limits
        if self._changed_at > NEVER:
            self._changed_at = now
        self._place()
        self._bucket.set_rate(self.rate_per_s, now, burst)

    def cut(self, now: float) -> bool:
        """A complaint of our rate: slow down, at most once in CUT_GAP_S; True when it did."""
        self.recover(now)
        if now - self._cut_at < CUT_GAP_S:
            return False
        self._cut_at = self._changed_at = now
        self._set(max(min(self._limits.floor.per_s, self.rate_per_s), self.rate_per_s * self._limits.cut), now)
        return True

    def recover(self, now: float) -> None:
        """Take the steps that peace has earned since the last change, up to the ceiling."""
        ceiling = self._range.ceiling.per_s
        if self.rate_per_s >= ceiling:
            return
        if self._changed_at == NEVER:
            self._changed_at = now
        steps = int((now - self._changed_at) // self._limits.every_s)
        if steps > 0:
            self._changed_at += steps * self._limits.every_s
            self._set(min(ceiling, self.rate_per_s + steps * self._limits.step.per_s), now)

    def memory(self, now: float) -> dict[str, float]:
        """What to keep: the rate, and how long ago it changed and was cut (seconds); empty before the first change."""
        self.recover(now)
        if self._own is None:
            return {}
        kept = {"rate": self._own}
        for name, at in (("changed", self._changed_at), ("cut", self._cut_at)):
            if at != NEVER:
                kept[name] = now - at
        return kept

    def recall(self, kept: Mapping[str, float], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later; inside today's range."""
        if not kept:
            return
        self._cut_at = now - away_s - kept["cut"] if "cut" in kept else NEVER
        self._changed_at = now - away_s - kept.get("changed", 0.0)
        self._set(kept["rate"], now)
        self.recover(now)

    def _set(self, rate_per_s: float, now: float) -> None:
        self._own = rate_per_s
        self._place()
        self._bucket.set_rate(self.rate_per_s, now)

    def _place(self) -> None:
        """What experience made of the rate, inside the range; at its ceiling nothing recovers."""
        own, ceiling = self._range.start.per_s if self._own is None else self._own, self._range.ceiling.per_s
        self.rate_per_s = min(ceiling, own)  # the rate now
        self.settled = own >= ceiling

    def __repr__(self) -> str:
        return f"<Pace {60 * self.rate_per_s:g}/min of {60 * self._range.ceiling.per_s:g}>"


class RefusalBudget(SlidingCount):
    """How many unknown recipients may be refused in a window: a sliding count whose limit adapts."""

    __slots__ = ("_adapts_at", "_frozen_until", "_halved_at", "_hour_spent", "_own", "_range")

    def __init__(self, rates: Range) -> None:
        super().__init__(rates.start.count, rates.start.period_s)
        self._range = rates
        self._own: int | None = None  # the limit that experience made; None: the range's start
        self._halved_at = NEVER
        self._frozen_until = NEVER
        self._adapts_at = NEVER  # when the hour ends over which it is looked at; NEVER: none has begun
        self._hour_spent = 0

    def adopt(self, rates: Range) -> None:
        """Another range from now on. What was spent stays; of a longer window the caller brings the older part."""
        if self._own is not None:
            self._own = max(1, round(self._own * rates.start.period_s / self.window_s))
        self._range = rates
        self.window_s = rates.start.period_s
        self._set(self._own)

    def used_ratio(self, now: float) -> float:
        """How much of the budget is spent, 0 to 1."""
        return min(1.0, self.spent(now) / self.limit)

    def room(self, now: float) -> int:
        """How many more may be asked at `now`."""
        if now >= self._adapts_at:
            self._adapt(now)
        return super().room(now)

    def room_at(self, now: float) -> float:
        """When the next one may be asked."""
        if now >= self._adapts_at:
            self._adapt(now)
        return super().room_at(now)

    def spend(self, now: float, tokens: int) -> Spending:
        """Reserve tokens for RCPTs about to be asked."""
        if now >= self._adapts_at:
            self._adapt(now)
        self._hour_spent += tokens
        return super().spend(now, tokens)

    def remember(self, at: float, tokens: int) -> Spending:
        """What an earlier run spent at `at` counts as spent. It earns nothing: that run has had what it earned."""
        return super().spend(at, tokens)

    def give_back(self, spending: Spending, tokens: int) -> None:
        """Return what was not refused after all."""
        super().give_back(spending, tokens)
        self._hour_spent = max(0, self._hour_spent - tokens)

    def blamed(self, now: float) -> bool:
        """A rate or block reply of reach `source`: halve, rounded up, and freeze for a day; at most once an hour."""
        self._adapts_at, self._hour_spent = now + HOUR_S, 0
        if now - self._halved_at < HOUR_S:
            return False
        self._halved_at = now
        self._frozen_until = now + FROZEN_S
        self._set(max(1, (self.limit + 1) // 2))
        return True

    def memory(self, now: float) -> dict[str, float]:
        """What to keep beside the spendings themselves; empty before the first change."""
        if self._own is None:
            return {}
        if self._halved_at == NEVER:
            return {"limit": self._own}
        return {"limit": self._own, "halved": now - self._halved_at, "frozen": self._frozen_until - now}

    def recall(self, kept: Mapping[str, float], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later; never above today's ceiling."""
        if not kept:
            return
        self._set(max(1, int(kept["limit"])))
        if "halved" in kept:
            self._halved_at = now - away_s - kept["halved"]
            self._frozen_until = now + min(FROZEN_S, kept["frozen"] - away_s)

    def _adapt(self, now: float) -> None:
        """After an hour in which half was spent and nobody blamed us: up by a tenth of the ceiling."""
        if self._adapts_at == NEVER:
            self._adapts_at = now + HOUR_S
        if now < self._adapts_at:
            return
        allowed = self.limit * max(1.0, HOUR_S / self.window_s)
        earned = self._hour_spent * 2 >= allowed and now >= self._frozen_until
        if earned and self.limit < self._ceiling:
            self._set(min(self._ceiling, self.limit + max(1, self._ceiling // 10)))
        self._adapts_at, self._hour_spent = now + HOUR_S, 0

    @property
    def _ceiling(self) -> int:
        return max(1, round(self._range.ceiling.per_s * self._range.start.period_s))

    def _set(self, own: int | None) -> None:
        self._own = own
        self.limit = min(self._ceiling, self._range.start.count if own is None else own)

    def __repr__(self) -> str:
        return f"<RefusalBudget {self.limit} of {self._ceiling} in {self.window_s:g} s>"


class Warmth(SlidingCount):
    """The recipients that a young identity may ask in a sliding day: `per_day` by its age, and then no limit.

    `began_at` is when its first day began. Before that the first step holds.
    """

    __slots__ = ("_began_at", "_per_day")

    def __init__(self, per_day: Sequence[int], began_at: float) -> None:
        super().__init__(per_day[0], DAY_S)
        self._per_day = tuple(per_day)
        self._began_at = began_at

    def room(self, now: float) -> int:
        """How many more may be asked at `now`."""
        return sys.maxsize if self._day(now) >= len(self._per_day) else super().room(now)

    def room_at(self, now: float) -> float:
        """When the next one may be asked: when one of yesterday's leaves the count, or a higher step begins."""
        day = self._day(now)
        if day >= len(self._per_day):
            return now
        due, spent = super().room_at(now), self.spent(now)
        for step, limit in enumerate((*self._per_day[day + 1 :], sys.maxsize), start=day + 1):
            begins_at = self._began_at + step * DAY_S
            if begins_at >= due:
                break
            if limit > spent:
                return max(now, begins_at)
        return due

    def remember(self, at: float, tokens: int) -> Spending:
        """What an earlier run asked at `at` counts."""
        return self.spend(at, tokens)

    def _day(self, now: float) -> int:
        day = 0
        while day < len(self._per_day) and now >= self._began_at + (day + 1) * DAY_S:
            day += 1
        self.limit = self._per_day[min(day, len(self._per_day) - 1)]
        return day

    def __repr__(self) -> str:
        return f"<Warmth {super().__repr__()}>"
