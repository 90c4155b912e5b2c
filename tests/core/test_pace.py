"""Laws of what adapts: pace and refusal budget stay in their range, learn slowly, and forget nothing by a restart."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.core.bucket import Spending, TokenBucket
from engine.core.cap import Cap, site_cap
from engine.core.grammar import Range, Rate
from engine.core.pace import CUT_GAP_S, CUTS_PACE, FROZEN_S, HOUR_S, Pace, RefusalBudget
from engine.core.policy import PaceRange, Policy, Recipients
from engine.core.reasons import REASONS, Category, Reach

FLOOR = Rate(1, 60.0)


def pace_of(start: int, ceiling: int, cut: float = 0.5) -> Pace:
    rates = Range(Rate(start, 60.0), Rate(ceiling, 60.0))
    limits = PaceRange(floor=FLOOR, cut=cut, step=Rate(2, 60.0), every_s=600.0)
    return Pace(rates, limits, TokenBucket(rates.start.per_s, 1))


def budget_of(start: int, ceiling: int, period_s: float = HOUR_S) -> RefusalBudget:
    return RefusalBudget(Range(Rate(start, period_s), Rate(ceiling, period_s)))


def through_json(kept):
    """What a file makes of it."""
    return json.loads(json.dumps(kept))


class Learning(RuleBasedStateMachine):
    """One pace and one budget through complaints, peace, spending and restarts."""

    now = 0.0
    wall_cut = float("-inf")  # when pace was last cut
    wall_halved = float("-inf")

    @initialize(start=st.integers(1, 40), more=st.integers(0, 80), cut=st.sampled_from([0.25, 0.5, 0.9]))
    def begin(self, start: int, more: int, cut: float) -> None:
        self.sizes = (start, start + more, cut)
        self.pace, self.budget = pace_of(*self.sizes), budget_of(*self.sizes[:2])
        self.spent: list[Spending] = []

    @rule(seconds=st.sampled_from([1.0, 599.0, 601.0, 3601.0, 90_000.0]))
    def peace(self, seconds: float) -> None:
        before = self.pace.rate_per_s
        self.now += seconds
        self.pace.recover(self.now)
        steps = seconds / 600.0 + 1  # what was earned before may come due now
        assert before <= self.pace.rate_per_s <= before + math.floor(steps) * 2 / 60.0 + 1e-9

    @rule()
    def complaint(self) -> None:
        before, due = self.pace.rate_per_s, self.now - self.wall_cut >= CUT_GAP_S
        assert self.pace.cut(self.now) is due
        if due:
            self.wall_cut = self.now
            assert self.pace.rate_per_s <= max(before, self.sizes[1] / 60.0)
        else:
            assert self.pace.rate_per_s >= before

    @rule()
    def blame(self) -> None:
        before, due = self.budget.limit, self.now - self.wall_halved >= HOUR_S
        assert self.budget.blamed(self.now) is due
        if due:
            self.wall_halved = self.now
        assert self.budget.limit == (max(1, math.ceil(before / 2)) if due else before)

    @rule(tokens=st.integers(1, 6), refused=st.integers(0, 6))
    def spends(self, tokens: int, refused: int) -> None:
        frozen, before = self.now - self.wall_halved < FROZEN_S, self.budget.limit
        room = self.budget.room(self.now)
        assert self.budget.limit <= (before if frozen else before + max(1, self.sizes[1] // 10))
        if tokens <= room:
            spending = self.budget.spend(self.now, tokens)
            self.budget.give_back(spending, tokens - min(refused, tokens))
            self.spent.append(spending)

    @rule(away=st.sampled_from([0.0, 30.0, 4000.0]))
    def restart(self, away: float) -> None:
        kept = through_json([self.pace.memory(self.now), self.budget.memory(self.now)])
        rate, limit = self.pace.rate_per_s, self.budget.limit
        self.now += away
        self.pace, self.budget = pace_of(*self.sizes), budget_of(*self.sizes[:2])
        self.pace.recall(kept[0], self.now, away)
        self.budget.recall(kept[1], self.now, away)
        self.spent = [self.budget.remember(each.at, each.tokens) for each in self.spent if each.tokens]
        assert self.pace.rate_per_s >= rate - 1e-9
        assert self.budget.limit == limit

    @invariant()
    def stays_in_range(self) -> None:
        if not hasattr(self, "sizes"):
            return
        start, ceiling, _ = self.sizes
        assert min(FLOOR.per_s, start / 60.0) - 1e-9 <= self.pace.rate_per_s <= ceiling / 60.0 + 1e-9
        assert 1 <= self.budget.limit <= ceiling
        assert self.budget.room(self.now) >= 0


TestLearning = Learning.TestCase


def test_a_restart_earns_nothing_again() -> None:
    """Hours that were used in peace raised the budget once: who starts ten times a day must not raise it ten times."""
    budget, spent = budget_of(10, 100), []
    for hour in range(4):
        spent.append((hour * HOUR_S, 5))
        budget.spend(*spent[-1])
    budget.room(4 * HOUR_S)
    kept = budget.memory(4 * HOUR_S)
    again = budget_of(10, 100)
    again.recall(through_json(kept), 4 * HOUR_S, 0.0)
    for at, tokens in spent:
        again.remember(at, tokens)
    assert again.used_ratio(3.5 * HOUR_S) > 0
    again.room(4 * HOUR_S)
    assert again.limit == budget.limit < 100


def cap() -> Cap:
    return site_cap("site", Policy("lab", recipients=Recipients(Range(Rate(60, 60.0), Rate(120, 60.0)), 10, 4)))


@pytest.mark.parametrize("code", sorted(REASONS))
def test_only_complaints_of_our_rate_or_load_cut_the_pace(code: str) -> None:
    """Greylisting, mailbox and recipient-count replies never do, whoever they mean; nor does any verdict."""
    site, reason = cap(), REASONS[code]
    site.observe(reason, Reach.NONE, 0.0, 0.0, source=False, first=True)
    assert (site.pace.rate_per_s < 1.0) is (code in CUTS_PACE)
    assert not (code in CUTS_PACE and reason.category is not Category.RISKY)
    assert code not in CUTS_PACE or code in {"rate_limited", "too_many_connections", "server_busy"}


def test_a_cut_multiplies_and_peace_adds() -> None:
    """From 60 a minute to 30, then 2 more every ten minutes, and no higher than the ceiling."""
    pace = pace_of(60, 70)
    assert pace.cut(0.0)
    assert 60 * pace.rate_per_s == pytest.approx(30)
    pace.recover(1800.0)
    assert 60 * pace.rate_per_s == pytest.approx(36)
    pace.recover(1e6)
    assert 60 * pace.rate_per_s == pytest.approx(70)


def test_a_budget_grows_only_by_use_in_peace() -> None:
    """An hour with half of it spent earns a tenth of the ceiling; an idle one or a day after blame nothing."""
    budget = budget_of(10, 40)
    budget.room(0.0)
    assert budget.room(HOUR_S) == 10
    budget.spend(HOUR_S + 1.0, 5)
    budget.room(2 * HOUR_S)
    assert budget.limit == 14
    assert budget.blamed(2 * HOUR_S)
    assert budget.limit == 7
    for hour in range(2, 26):
        budget.room(hour * HOUR_S + 1.0)
        budget.spend(hour * HOUR_S + 1.0, 5)
    assert budget.limit == 7
    budget.room(27 * HOUR_S + 2.0)
    assert budget.limit == 11
