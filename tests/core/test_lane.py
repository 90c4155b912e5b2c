"""Laws of lanes and their schedule, with time as data and a simulated site behind them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.control import ControlAnswer
from engine.core.grammar import Range, Rate
from engine.core.lane import Batch, Lane, Visit
from engine.core.policy import BreakerLimits, Policy, Recipients, Refusals, Sessions
from engine.core.queue import Item
from engine.core.reasons import REASONS, Reach
from engine.core.schedule import Schedule, Wait


def policy(**changes: object) -> Policy:
    plain = Policy(
        name="lab",
        sessions=Sessions(concurrency=2, rate=Rate(60, 60.0), burst=2),
        recipients=Recipients(rate=Range(Rate(10, 1.0), Rate(10, 1.0)), per_session=10, per_transaction=4),
        refusals=Refusals(per_session=5, rate=Range(Rate(1000, 3600.0), Rate(1000, 3600.0))),
    )
    return replace(plain, **changes)


@dataclass
class World:
    """Drives a schedule through simulated time: each transaction takes a second."""

    lane: Lane
    refuses: frozenset[int] = frozenset()
    now: float = 0.0
    asked: list[tuple[float, int]] = field(default_factory=list)
    controls: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    most_open: int = 0
    open: list[tuple[float, Visit, Batch]] = field(default_factory=list)
    unsettled_at_once: int = 0

    def run(self, until: float = 1e6) -> None:
        schedule = Schedule()
        schedule.add(self.lane)
        schedule.touch(self.lane, self.now)
        while self.now < until:
            turn = schedule.next(self.now)
            if isinstance(turn, Visit):
                self.starts.append(self.now)
                self._begin(turn, turn.first)
                continue
            ends = [end for end, _, _ in self.open]
            moments = ends + ([turn.until] if isinstance(turn, Wait) and turn.until is not None else [])
            if not moments:
                return
            self.now = max(self.now, min(moments))
            for entry in [entry for entry in self.open if entry[0] <= self.now]:
                self.open.remove(entry)
                self._end(entry[1], entry[2])
                schedule.touch(self.lane, self.now)

    def _begin(self, visit: Visit, batch: Batch) -> None:
        at = max(self.now, batch.start_at)
        self.open.append((at + 1.0, visit, batch))
        self.most_open = max(self.most_open, self.lane.open_sessions)
        asking = [b.domain.name for _, _, b in self.open if not b.domain.settled]
        self.unsettled_at_once = max([self.unsettled_at_once] + [asking.count(name) for name in asking])
        if batch.control:
            self.controls.append(at)
        self.asked += [(at, item.id) for item in batch.items]

    def _end(self, visit: Visit, batch: Batch) -> None:
        refused = sum(item.id in self.refuses for item in batch.items) + batch.control
        self.refused += [self.now] * refused
        self.lane.settle(visit, batch, refused, self.now)
        if batch.control:
            batch.domain.control = ControlAnswer.REFUSES
        following = None
        if not batch.domain.settled and len(batch.items) > refused:
            following = self.lane.control(visit, batch.domain, self.now)
            if following is None:
                self.lane.queue.want_control(batch.domain, self.now, self.now)
        following = following or self.lane.more(visit, self.now)
        if following is None:
            self.lane.finish(visit, self.now)
        else:
            self._begin(visit, following)


def loaded(count: int, domains: int = 1, **changes: object) -> Lane:
    lane = Lane("site", policy(**changes))
    for number in range(count):
        name = f"d{number % domains}.example"
        lane.queue.domain(name, number % domains, "site")
        lane.queue.add(Item(number, f"user{number}", name), 0.0)
    return lane


LIMITS = st.fixed_dictionaries(
    {
        "concurrency": st.integers(1, 4),
        "session_rate": st.integers(1, 30),
        "burst": st.integers(1, 3),
        "recipient_rate": st.integers(1, 20),
        "per_transaction": st.integers(1, 6),
        "per_session": st.integers(2, 12),
        "refusals": st.integers(2, 8),
        "budget": st.integers(2, 60),
    }
)


@given(LIMITS, st.integers(1, 60), st.integers(1, 8), st.sets(st.integers(0, 59)))
@settings(max_examples=120, deadline=None)
def test_every_address_is_asked_once_and_no_limit_is_ever_passed(limits, count, domains, refuses):
    """Whatever the limits: no starvation, no over-issue, concurrency and budget kept in every window."""
    rate = Rate(limits["recipient_rate"], 1.0)
    budget = Rate(limits["budget"], 3600.0)
    world = World(
        loaded(
            count,
            domains,
            sessions=Sessions(limits["concurrency"], Rate(limits["session_rate"], 60.0), limits["burst"]),
            recipients=Recipients(Range(rate, rate), limits["per_session"], limits["per_transaction"]),
            refusals=Refusals(limits["refusals"], Range(budget, budget)),
        ),
        frozenset(refuses),
    )
    world.run()
    assert sorted(item for _, item in world.asked) == list(range(count))
    assert world.lane.idle
    assert world.most_open <= limits["concurrency"]
    assert world.unsettled_at_once <= 1
    for first in world.starts:
        window = sum(first <= at < first + 60.0 for at in world.starts)
        assert window <= math.ceil(limits["burst"] - 1 + limits["session_rate"] + 1e-9)
    for first in world.refused:
        assert sum(first <= at < first + 3600.0 - 2.0 for at in world.refused) <= limits["budget"]


def test_one_session_asks_a_domain_until_its_control_question_is_settled():
    """First contact is one session and one transaction, and the control follows in the same session."""
    world = World(loaded(100))
    world.run()
    assert world.unsettled_at_once == 1
    assert len(world.controls) == 1
    assert [at for at, _ in world.asked].count(world.asked[0][0]) == 4  # one transaction before the control
    assert world.controls[0] <= sorted(at for at, _ in world.asked)[4]


def test_a_domain_known_to_refuse_is_asked_no_control():
    """A settled control question costs nothing more."""
    lane = loaded(30)
    lane.queue.domains["d0.example"].control = ControlAnswer.REFUSES
    world = World(lane)
    world.run()
    assert world.controls == []


def test_refusals_are_reserved_before_they_are_asked():
    """With a budget of three in the window, a write never holds more than three recipients."""
    budget = Rate(3, 3600.0)
    lane = loaded(9, refusals=Refusals(5, Range(budget, budget)))
    lane.queue.domains["d0.example"].control = ControlAnswer.REFUSES
    world = World(lane, frozenset(range(9)))
    world.run()
    by_moment = [at for at, _ in world.asked]
    assert all(sum(first <= at < first + 3599.0 for at in by_moment) <= 3 for first in by_moment)


def test_no_session_starts_after_the_source_was_refused_until_half_open():
    """A refusal of reach `source` opens the lane at the first; half-open asks one address."""
    lane = loaded(50)
    visit = lane.start(0.0)
    assert visit is not None
    lane.observe(visit.first.domain, REASONS["ip_blocklisted"], Reach.SOURCE, 1.0, 0.0, first=True)
    assert lane.more(visit, 1.0) is None
    lane.settle(visit, visit.first, 0, 1.0)
    lane.finish(visit, 1.0)
    due = lane.ready_at(1.0)
    assert due == pytest.approx(1.0 + lane.policy.breaker.open_s)
    trial = lane.start(due)
    assert trial is not None
    assert len(trial.first.items) == 1
    assert lane.start(due) is None


def test_a_domain_that_refuses_us_does_not_stop_its_neighbours():
    """Reach `domain` holds that domain only; three in a row are the source's refusal."""
    lane = loaded(40, domains=4)
    names = list(lane.queue.domains)
    lane.observe(lane.queue.domains[names[0]], REASONS["policy_rejected"], Reach.DOMAIN, 0.0, 0.0, first=True)
    visit = lane.start(0.0)
    assert visit is not None
    assert visit.first.domain.name != names[0]
    lane.observe(lane.queue.domains[names[1]], REASONS["policy_rejected"], Reach.DOMAIN, 0.0, 0.0, first=True)
    assert lane.breaker.allows(0.0)
    lane.observe(lane.queue.domains[names[2]], REASONS["policy_rejected"], Reach.DOMAIN, 0.0, 0.0, first=True)
    assert not lane.breaker.allows(0.0)


def test_greylisting_opens_nothing():
    """A server that asks to come back later is no refusal of us."""
    lane = loaded(4)
    for _ in range(100):
        lane.observe(lane.queue.domains["d0.example"], REASONS["greylisted"], Reach.NONE, 0.0, 0.0, first=True)
    assert lane.breaker.allows(0.0)
    assert lane.queue.domains["d0.example"].hold is None


def test_a_catch_all_domain_is_asked_no_more():
    """Its queue empties at once, what waited for later included."""
    lane = loaded(1000)
    lane.queue.add(Item(2000, "late", "d0.example"), 0.0, 500.0)
    assert lane.queue.drop_domain(lane.queue.domains["d0.example"]) == 1001
    assert lane.idle


def test_learned_limits_only_shrink():
    """A site that once told its limit is believed."""
    lane = loaded(1)
    lane.learn(per_transaction=2)
    lane.learn(per_transaction=9)
    assert lane.per_transaction == 2


def test_a_lane_says_what_keeps_its_next_session():
    """Nothing, its rate, or its refusal budget; a lane without work waits for neither."""
    lane = loaded(6, sessions=Sessions(concurrency=4, rate=Rate(1, 60.0), burst=1))
    assert lane.waits_for(0.0) == ""
    lane.queue.domains["d0.example"].control = ControlAnswer.REFUSES
    visit = lane.start(0.0)
    assert visit is not None
    assert lane.waits_for(1.0) == "sessions.rate"
    assert lane.waits_for(60.0) == ""
    lane.budget.spend(60.0, lane.budget.limit)
    assert lane.waits_for(60.0) == "refusals.rate"
    assert Lane("empty", policy()).waits_for(0.0) == ""


def test_a_domain_has_waited_since_its_turn_was_due():
    """From the moment at which it had something to ask, not from when that was put in for later."""
    lane = loaded(1)
    visit = lane.start(7.5)
    assert visit is not None
    assert visit.waited_s == 7.5
    lane.settle(visit, visit.first, 0, 8.0)
    lane.queue.add(visit.first.items[0], 8.0, 100.0)
    lane.finish(visit, 8.0)
    again = lane.start(103.0)
    assert again is not None
    assert again.waited_s == 3.0


def adopt(lane, policy, now):
    """Another policy for a lane and the cap of its own, as a reload brings it."""
    lane.own.adopt(policy, now)
    lane.adopt(policy)


def memory(lane, now):
    """What a lane and the cap of its own leave behind, through plain JSON."""
    return json.loads(json.dumps(lane.memory(now) | lane.own.memory(now)))


def recall(lane, kept, now, away_s):
    """Bring both back."""
    lane.recall(kept, now, away_s)
    lane.own.recall(kept, now, away_s)


def test_what_a_lane_was_told_outlives_it():
    """Breaker, holds, pace, budget and what its buckets owe, through plain JSON; the time away counts."""
    lane = loaded(40, domains=4, breaker=BreakerLimits(600.0, 20, 0.5, 900.0, 21_600.0))
    names = list(lane.queue.domains)
    lane.observe(lane.queue.domains[names[1]], REASONS["policy_rejected"], Reach.DOMAIN, 90.0, 0.0, first=True)
    assert lane.unsaved
    lane.observe(lane.queue.domains[names[0]], REASONS["rate_limited"], Reach.SOURCE, 100.0, 0.0, first=True)
    kept = memory(lane, 200.0)
    again = loaded(0, breaker=lane.policy.breaker)
    recall(again, kept, 7000.0, 300.0)
    for number, name in enumerate(names):
        again.queue.domain(name, number, "site")
        again.queue.add(Item(number, "user", name), 7000.0)
    assert again.ready_at(7000.0) == pytest.approx(7000.0 + 800.0 - 300.0)
    assert [domain.name for domain in again.queue.held()] == [names[1]]
    assert again.pace.rate_per_s == pytest.approx(lane.pace.rate_per_s)
    assert again.budget.limit == lane.budget.limit == 500


def test_a_lane_like_a_new_one_leaves_nothing_behind():
    """Once its buckets are full again."""
    lane = loaded(3)
    world = World(lane)
    world.run()
    assert set(memory(lane, world.now)) <= {"tokens"}
    assert memory(lane, world.now + 3600.0) == {}


def test_a_restart_brings_no_tokens():
    """What the buckets owed when the lane was saved is owed still, less the time away."""
    lane = loaded(50, domains=50)
    starts = [lane.start(0.0), lane.start(0.0), lane.start(0.0)]
    assert starts[2] is None
    lane.settle(starts[0], starts[0].first, 0, 0.0)
    lane.finish(starts[0], 0.0)
    again = loaded(50, domains=50)
    recall(again, memory(lane, 0.0), 500.0, 0.4)
    assert again.ready_at(500.0) == pytest.approx(500.0 + 0.6)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
@settings(max_examples=60, deadline=None)
def test_no_clock_opens_what_was_closed_for_ever(left, away):
    """Whatever a file says, a lane is closed for a day at most, and never less than what is left of it."""
    lane = loaded(1)
    recall(lane, {"breaker": {"left": left, "next": left, "cause": "ip_blocked"}}, 0.0, away)
    assert lane.ready_at(0.0) == pytest.approx(min(86_400.0, max(0.0, left - away)))


def test_a_delay_that_a_reply_names_keeps_the_lane_closed():
    """Longer than the breaker would, also when it is open already; a shorter one changes nothing."""
    lane = loaded(5)
    domain, limited = lane.queue.domains["d0.example"], REASONS["rate_limited"]
    lane.observe(domain, limited, Reach.SOURCE, 0.0, 0.0, first=True, delay_s=5000.0)
    assert lane.ready_at(0.0) == 5000.0
    lane.observe(domain, limited, Reach.SOURCE, 10.0, 0.0, first=True, delay_s=60.0)
    assert lane.ready_at(10.0) == 5000.0
    lane.observe(domain, limited, Reach.SOURCE, 20.0, 0.0, first=True, delay_s=7000.0)
    assert lane.ready_at(20.0) == 7020.0


def test_a_trial_asks_one_address():
    """The half-open session of the identity, whatever the lane would allow."""
    visit = loaded(50).start(0.0, trial=True)
    assert visit is not None
    assert (len(visit.first.items), visit.half_open, visit.trial) == (1, True, True)


def test_a_schedule_passes_over_lanes_that_are_not_admitted():
    """They keep their place."""
    schedule, lanes = Schedule(), {}
    for key in ("a", "b", "c"):
        lanes[key] = loaded(5)
        lanes[key].key = key
        schedule.add(lanes[key])
        schedule.touch(lanes[key], 0.0)
    turn = schedule.next(0.0, admits=lambda lane: lane.key == "c")
    assert isinstance(turn, Visit)
    assert turn.lane is lanes["c"]
    assert isinstance(schedule.next(0.0, admits=lambda lane: False), Wait)
    assert [schedule.next(0.0).lane.key for _ in range(2)] == ["a", "b"]


# --- other limits under a lane that is at work


FAST = Recipients(rate=Range(Rate(10, 1.0), Rate(10, 1.0)), per_session=10, per_transaction=4)
SLOW = Recipients(rate=Range(Rate(6, 60.0), Rate(6, 60.0)), per_session=4, per_transaction=1)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 60), st.integers(1, 4)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_limits_that_change_in_mid_run_are_kept_from_then_on(changes):
    """Each address is still asked once, and no stretch between two changes passes its own limits."""
    lane = loaded(150, sessions=Sessions(3, Rate(60, 60.0), 1))
    world = World(lane)
    for lasts_s, per_min, concurrency in changes:
        since = world.now
        other = policy(
            sessions=Sessions(concurrency, Rate(60, 60.0), 1),
            recipients=replace(FAST, rate=Range(Rate(per_min, 60.0), Rate(per_min, 60.0)), per_transaction=1),
        )
        adopt(lane, other, since)
        over = max(0, lane.open_sessions - concurrency)
        world.most_open = 0
        world.run(since + lasts_s)
        # 4 was the largest burst, and what was reserved before the change may lie 2 s behind it.
        asked = [at for at, _ in world.asked if since + 2.0 < at]
        for first in asked:
            for window_s in (1.0, 60.0):
                inside = sum(first <= at < first + window_s for at in asked)
                assert inside <= math.ceil(per_min * window_s / 60.0 + 1e-6)
        assert world.most_open <= concurrency + over
        world.asked = [entry for entry in world.asked if entry[0] <= world.now]
        world.asked, done = [], world.asked
        assert len({item for _, item in done}) == len(done)


def test_adopting_gives_back_nothing_that_was_spent():
    """The refusal budget, the buckets and the breaker stand after a change where they stood before it."""
    lane = loaded(40, refusals=Refusals(5, Range(Rate(10, 3600.0), Rate(10, 3600.0))))
    visit = lane.start(0.0)
    assert visit is not None
    lane.budget.spend(0.0, 10 - visit.first.tokens)
    lane.breaker.open(0.0, "ip_blocked")
    adopt(lane, policy(recipients=SLOW, refusals=Refusals(5, Range(Rate(10, 3600.0), Rate(20, 3600.0)))), 1.0)
    assert lane.budget.room(1.0) == 0
    assert not lane.breaker.allows(1.0)
    assert lane.per_transaction == 1
    adopt(lane, policy(refusals=Refusals(5, Range(Rate(12, 3600.0), Rate(20, 3600.0)))), 2.0)
    assert lane.budget.room(2.0) == 2


def test_what_a_site_taught_outlasts_other_limits():
    """A site that takes two recipients takes two under any policy; the policy's own smaller number holds too."""
    lane = loaded(10)
    lane.learn(per_transaction=2, per_session=6)
    adopt(lane, policy(recipients=SLOW), 0.0)
    assert (lane.per_transaction, lane.per_session) == (1, 4)
    adopt(lane, policy(recipients=FAST), 1.0)
    assert (lane.per_transaction, lane.per_session) == (2, 6)


def test_a_cut_pace_stays_cut_under_other_limits():
    """A narrower range holds at once; when it goes, the pace is the one that experience made, not the start."""
    lane = loaded(10)
    lane.pace.cut(0.0)
    assert lane.pace.rate_per_s == 5.0
    adopt(lane, policy(recipients=SLOW), 10.0)
    assert lane.pace.rate_per_s == 0.1
    lane.pace.recover(90_000.0)
    adopt(lane, policy(recipients=FAST), 90_000.0)
    assert lane.pace.rate_per_s == 5.0


def test_a_lane_that_never_met_trouble_starts_where_the_new_range_does():
    """Without a cut or a step of its own there is nothing to remember."""
    lane = loaded(10)
    adopt(lane, policy(recipients=SLOW), 0.0)
    assert lane.pace.rate_per_s == 0.1
    assert lane.pace.memory(0.0) == {}
    adopt(lane, policy(recipients=FAST), 1.0)
    assert lane.pace.rate_per_s == 10.0


def test_sessions_beyond_a_lowered_number_say_quit():
    """They ask no further transaction, and none starts until there is room again."""
    lane = loaded(40, domains=4)
    visits = [lane.start(0.0), lane.start(1.0)]
    assert None not in visits
    adopt(lane, policy(sessions=Sessions(1, Rate(60, 60.0), 2)), 1.1)
    for visit in visits:
        lane.settle(visit, visit.first, 1, 1.2)
        visit.first.domain.control = ControlAnswer.REFUSES
    assert lane.more(visits[0], 10.0) is None
    lane.finish(visits[0], 10.0)
    assert lane.more(visits[1], 10.0) is not None
    assert lane.ready_at(10.0) is None


def test_a_longer_window_counts_what_the_caller_brings_of_it():
    """10 an hour become 15 a day: what was spent in the hour counts on, the older part is told by the state."""
    lane = loaded(40, refusals=Refusals(5, Range(Rate(10, 3600.0), Rate(10, 3600.0))))
    lane.budget.spend(10_000.0, 4)
    adopt(lane, policy(refusals=Refusals(5, Range(Rate(15, 86_400.0), Rate(15, 86_400.0)))), 10_100.0)
    lane.budget.spend(100.0, 6)
    assert lane.budget.room(10_100.0) == 5
    assert lane.budget.room_at(10_100.0) == 10_100.0


def test_a_breaker_keeps_how_often_it_doubled():
    """Half an hour after two openings is half an hour under new times too, up to the new maximum."""
    lane = loaded(4)
    lane.breaker.open(0.0, "ip_blocked")
    lane.breaker.attempt(1000.0)
    changed = replace(lane.policy.breaker, open_s=60.0, max_open_s=1200.0)
    adopt(lane, policy(breaker=changed), 1000.0)
    lane.breaker.open(1000.0, "ip_blocked")
    assert lane.breaker.until == 2200.0
    lane.breaker.attempt(2200.0)
    lane.breaker.close()
    lane.breaker.open(3000.0, "ip_blocked")
    assert lane.breaker.until == 3060.0


def test_a_site_that_counts_too_many_connections_sees_fewer_from_then_on():
    """Under any policy that a reload brings, and never more again; one is always left."""
    lane = loaded(40, domains=10, sessions=Sessions(concurrency=4, rate=Rate(10, 1.0), burst=4))
    visits = [lane.start(at) for at in (0.0, 0.5, 1.0)]
    assert all(visits)
    lane.learn(connections=2)
    assert lane.start(1.5) is None
    assert lane.more(visits[0], 1.5) is None, "beyond the number it says QUIT"
    adopt(lane, policy(sessions=Sessions(concurrency=9, rate=Rate(10, 1.0), burst=4)), 2.0)
    lane.learn(connections=7)
    assert (lane.own.concurrency, lane.own.most) == (2, 2)
    lane.learn(connections=0)
    assert lane.own.concurrency == 1
