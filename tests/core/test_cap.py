"""Laws of caps: what lanes share is never passed, nobody starves in line, and nothing is charged in part."""

from __future__ import annotations

import gc
import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import schedule as schedule_module
from engine.core.cap import Cap, Line, across_cap, identity_cap, site_cap
from engine.core.control import ControlAnswer
from engine.core.grammar import Range, Rate
from engine.core.identity import Identity, Limits, Warmup
from engine.core.lane import Batch, Lane, Visit
from engine.core.pace import DAY_S, HOUR_S, Warmth
from engine.core.policy import Policy, Recipients, Refusals, Sessions
from engine.core.queue import Item
from engine.core.reasons import REASONS, Reach
from engine.core.schedule import Schedule, Wait


def policy(sessions: Sessions, budget: int = 10_000, *, per_transaction: int = 3, recipients: int = 100) -> Policy:
    rate, refusals = Rate(recipients, 1.0), Rate(budget, HOUR_S)
    return Policy(
        "lab", sessions=sessions, recipients=Recipients(Range(rate, rate), 6, per_transaction),
        refusals=Refusals(4, Range(refusals, refusals)),
    )  # fmt: skip


FREE = policy(Sessions(50, Rate(1000, 1.0), 50))


def fill(lane: Lane, count: int, domains: int = 1) -> Lane:
    for number in range(count):
        name = f"d{number % domains}.{lane.key}"
        lane.queue.domain(name, number % domains, lane.key).control = ControlAnswer.REFUSES
        lane.queue.add(Item(number, f"u{number}", name), 0.0)
    return lane


@dataclass
class World:
    """Drives lanes through simulated time; each transaction takes a second, and `refuses` says who is refused."""

    lanes: list[Lane]
    refuses: Callable[[int], bool] = lambda number: False
    now: float = 0.0
    starts: list[tuple[float, Lane]] = field(default_factory=list)
    asked: list[tuple[float, Lane, int]] = field(default_factory=list)
    refused: list[tuple[float, Lane]] = field(default_factory=list)
    most_open: Counter[str] = field(default_factory=Counter)
    running: list[tuple[float, int, Visit, Batch]] = field(default_factory=list)
    schedule: Schedule = field(default_factory=Schedule)

    def run(self, until: float = 1e6) -> World:
        for lane in self.lanes:
            self.schedule.add(lane)
            self.schedule.touch(lane, self.now)
        while self.now < until:
            turn = self.schedule.next(self.now)
            if isinstance(turn, Visit):
                self.starts.append((self.now, turn.lane))
                for cap in turn.caps:
                    self.most_open[cap.key] = max(self.most_open[cap.key], cap.open_sessions)
                self._begin(turn, turn.first)
                continue
            moments = [entry[0] for entry in self.running[:1]] + ([turn.until] if turn.until is not None else [])
            if not moments:
                break
            assert min(moments) >= self.now
            self.now = min(moments)
            while self.running and self.running[0][0] <= self.now:
                self._end(*heapq.heappop(self.running)[2:])
        return self

    def _begin(self, visit: Visit, batch: Batch) -> None:
        at = max(self.now, batch.start_at)
        self.asked += [(at, visit.lane, item.id) for item in batch.items]
        heapq.heappush(self.running, (at + 1.0, len(self.asked) + len(self.starts), visit, batch))

    def _end(self, visit: Visit, batch: Batch) -> None:
        refused = sum(self.refuses(item.id) for item in batch.items)
        self.refused += [(batch.start_at, visit.lane)] * refused
        visit.lane.settle(visit, batch, refused, self.now)
        following = visit.lane.more(visit, self.now)
        if following is not None:
            self._begin(visit, following)
            return
        visit.lane.finish(visit, self.now)
        self.schedule.touch(visit.lane, self.now)

    def under(self, cap: Cap, rows: Iterable[tuple]) -> list[float]:
        """The moments of what was charged to a cap."""
        return sorted(row[0] for row in rows if cap in row[1].caps)


def most_in(moments: list[float], window_s: float) -> int:
    """The fullest half-open window of this length."""
    return max((sum(first <= at < first + window_s for at in moments) for first in moments), default=0)


def bound(sessions: Sessions, window_s: float) -> int:
    return math.ceil(sessions.burst - 1 + sessions.rate.per_s * window_s + 1e-9)


SESSIONS = st.builds(
    Sessions, st.integers(1, 4), st.integers(1, 40).map(lambda number: Rate(number, 60.0)), st.integers(1, 3)
)


@given(
    st.lists(st.tuples(SESSIONS, st.integers(2, 40)), min_size=1, max_size=3), SESSIONS,
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 15), SESSIONS), min_size=1, max_size=9),
    st.integers(1, 60), st.integers(2, 200), st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_window_of_any_cap_is_passed_and_every_address_is_asked_once(
    middles, across, lanes, per_minute, per_hour, every
):
    """Whatever the tree: identity over a provider's sites over hosts over lanes; and nobody starves."""
    limits = Limits(Range(Rate(per_minute, 60.0), Rate(per_minute, 60.0)), _flat(per_hour))
    identity = identity_cap(Identity("me", "h", "m@x", "192.0.2.1", limits=limits))
    sites = across_cap("lab across_sites", FREE, across, identity)
    hosts = [site_cap(f"host{n}", policy(sessions, budget), sites) for n, (sessions, budget) in enumerate(middles)]
    made = []
    for number, (place, count, sessions) in enumerate(lanes):
        above = (*hosts, sites, identity, *hosts)[place % (len(hosts) + 2)]
        shared = place == 5 and above in hosts  # its own limits are the host's
        own = above if shared else site_cap(f"lane{number}", policy(sessions), above)
        made.append(fill(Lane(f"lane{number}", own.policy, own), count, 2))
    world = World(made, lambda number: number % every == 0).run()
    assert all(lane.idle for lane in made)
    assert Counter((lane.key, item) for _, lane, item in world.asked) == Counter(
        (lane.key, item) for lane, (_, count, _) in zip(made, lanes, strict=True) for item in range(count)
    )
    for cap in {cap for lane in made for cap in lane.caps}:
        assert cap.open_sessions == 0
        starts, refused = world.under(cap, world.starts), world.under(cap, world.refused)
        if cap is identity:
            assert most_in(starts, 60.0) <= per_minute
            assert most_in(refused, HOUR_S) <= per_hour
            continue
        assert world.most_open[cap.key] <= cap.concurrency
        numbers = across if cap is sites else cap.policy.sessions
        for window_s in (1.0, 10.0, 60.0):
            assert most_in(starts, window_s) <= bound(numbers, window_s)
        if cap.budget is not None:
            assert most_in(refused, HOUR_S) <= cap.budget.limit


def _flat(per_hour: int) -> Range:
    return Range(Rate(per_hour, HOUR_S), Rate(per_hour, HOUR_S))


def test_500_lanes_at_one_address_never_pass_its_limits():
    """500 domains with 500 MX names on one address are one neighbour, and each of them gets its turn in line."""
    numbers = Sessions(2, Rate(150, 60.0), 1)
    address = site_cap("[192.0.2.9]", policy(numbers, 60))
    lanes = [fill(Lane(f"l{n}", FREE, site_cap(f"l{n}", FREE, address)), 2) for n in range(499)]
    lanes.append(fill(Lane("[192.0.2.9]", address.policy, address), 2))
    world = World(lanes, lambda number: number == 0).run()
    starts = world.under(address, world.starts)
    assert world.most_open["[192.0.2.9]"] == 2
    assert most_in(starts, 60.0) <= bound(numbers, 60.0)
    assert most_in(world.under(address, world.refused), HOUR_S) <= 60
    assert len(world.asked) == 1000
    order = dict.fromkeys(lane.key for _, lane in world.starts)
    assert list(order) == [lane.key for lane in lanes]


def test_lanes_start_in_the_order_in_which_they_first_wanted_to():
    """Also when they wait for one cap after the other: who passed the inner one is not overtaken in the outer."""
    outer = across_cap("outer", FREE, Sessions(1, Rate(6, 60.0), 1))
    inner = site_cap("inner", policy(Sessions(9, Rate(12, 60.0), 1)), outer)
    lanes = [fill(Lane(f"l{n}", FREE, site_cap(f"l{n}", FREE, (inner, outer)[n % 2])), 20, 20) for n in range(6)]
    world = World(lanes).run(200.0)
    order = [lane.key for _, lane in world.starts]
    assert order[:6] == ["l0", "l1", "l2", "l3", "l4", "l5"]
    assert max(Counter(order[:18]).values()) == min(Counter(order[:18]).values())


def test_a_full_neighbour_holds_up_nobody_else():
    """Lanes that wait for one cap leave the others below the same outer cap alone."""
    outer = across_cap("outer", FREE, Sessions(50, Rate(10, 1.0), 1))
    narrow = site_cap("narrow", policy(Sessions(1, Rate(1, 3600.0), 1)), outer)
    stuck = [fill(Lane(f"s{n}", FREE, site_cap(f"s{n}", FREE, narrow)), 1) for n in range(50)]
    free = [fill(Lane(f"f{n}", FREE, site_cap(f"f{n}", FREE, outer)), 1) for n in range(50)]
    world = World(stuck + free).run(60.0)
    assert {lane.key for _, lane in world.starts} == {"s0"} | {lane.key for lane in free}
    assert len(world.schedule.waiting(narrow)) == 49


def test_all_caps_are_charged_or_none():
    """A lane that one cap holds up has spent nothing of the others."""
    outer = across_cap("outer", FREE, Sessions(1, Rate(60, 60.0), 1))
    host = site_cap("host", policy(Sessions(5, Rate(60, 60.0), 5)), outer)
    first, second = (fill(Lane(key, FREE, site_cap(key, FREE, host)), 1) for key in "ab")
    visit = first.start(0.0)
    assert visit is not None
    assert second.start(0.0) is None
    assert (second.own.open_sessions, host.open_sessions, outer.open_sessions) == (0, 1, 1)
    assert second.budget.room(0.0) == second.budget.limit
    assert host.budget is not None
    assert host.budget.room(0.0) == host.budget.limit - 1
    assert [charge.key for charge in visit.first.charges] == ["a", "host"]
    first.settle(visit, visit.first, 0, 1.0)
    first.finish(visit, 1.0)
    assert (host.budget.room(1.0), host.open_sessions, outer.open_sessions) == (host.budget.limit, 0, 0)
    assert second.start(1.0) is not None


def test_a_refusal_of_the_source_closes_the_dialled_provider_to_all_who_lead_there():
    """Whatever policy a domain's whole MX set has: the provider's own lane and its guests stop together."""
    provider = site_cap("provider", policy(Sessions(9, Rate(100, 1.0), 9)))
    own = fill(Lane("provider", provider.policy, provider), 4, 4)
    guest = fill(Lane("guest", FREE, site_cap("guest", FREE, provider)), 4, 4)
    visit = guest.start(0.0)
    assert visit is not None
    guest.observe(visit.first.domain, REASONS["ip_blocklisted"], Reach.SOURCE, 0.0, 0.0, first=True)
    guest.settle(visit, visit.first, 0, 0.0)
    guest.finish(visit, 0.0)
    assert own.ready_at(0.0) == provider.policy.breaker.open_s
    assert own.start(0.0) is None
    trial = own.start(provider.policy.breaker.open_s)
    assert trial is not None
    assert trial.half_open
    assert guest.start(provider.policy.breaker.open_s) is None  # half-open lets one through, whoever it is


def test_a_visit_goes_on_to_another_providers_host_only_by_its_leave():
    """The next host's caps are charged before it is dialled; what the first host's had granted returns."""
    near, far = site_cap("near", FREE), site_cap("far", policy(Sessions(1, Rate(60, 60.0), 1)))
    lanes = [fill(Lane(key, FREE, site_cap(key, FREE, near)), 1) for key in "ab"]
    schedule = Schedule()
    for lane in lanes:
        schedule.add(lane)
        schedule.touch(lane, 0.0)
    one, two = schedule.next(0.0), schedule.next(0.0)
    assert isinstance(one, Visit)
    assert isinstance(two, Visit)
    assert schedule.divert(one, (one.lane.own, far), 0.0)
    assert not schedule.divert(two, (two.lane.own, far), 0.0)
    assert near.budget is not None
    assert (near.open_sessions, far.open_sessions) == (1, 1)
    assert near.budget.room(0.0) == near.budget.limit - 1
    assert [charge.key for charge in one.first.charges] == ["a", "far"]
    one.lane.settle(one, one.first, 1, 1.0)
    one.lane.finish(one, 1.0)
    assert (near.open_sessions, far.open_sessions) == (1, 0)


@pytest.mark.parametrize("asked", [True, False])
def test_warm_up_counts_recipients_that_were_asked_and_no_others(asked):
    """Whatever the answer: a day's count is of RCPTs, and what was not asked returns."""
    warm = Identity("me", "h", "m@x", "192.0.2.1", limits=Limits(None, None), warmup=Warmup(date(2026, 1, 1), (2, 5)))
    identity = identity_cap(warm)
    lane = fill(Lane("l", FREE, site_cap("l", FREE, identity)), 9)
    visit = lane.start(0.0)
    assert visit is not None
    assert len(visit.first.items) == 2
    lane.settle(visit, visit.first, 0, 1.0, asked=asked)
    assert lane.more(visit, 1.0) is None if asked else lane.more(visit, 1.0) is not None


def test_warm_up_allows_its_steps_and_then_everything():
    """Two a day, then three, in every sliding day; after the last step the identity is warm."""
    warm = replace(IDENTITY, warmup=Warmup(date(2026, 1, 1), (2, 3)))
    lane = fill(Lane("l", FREE, site_cap("l", FREE, identity_cap(warm))), 40)
    world = World([lane]).run()
    young = [at for at, _, _ in world.asked if at < 2 * DAY_S]
    assert sum(at < DAY_S for at in young) == 2
    assert most_in(young, DAY_S) == 3
    assert len(world.asked) == 40
    assert max(at for at, _, _ in world.asked) < 2 * DAY_S + HOUR_S


IDENTITY = Identity("me", "h", "m@x", "192.0.2.1", limits=Limits(None, None))


def test_an_identity_without_limits_and_warm_up_has_no_cap():
    """`null` lifts a limit; the other one stays."""
    assert identity_cap(IDENTITY) is None
    half = identity_cap(replace(IDENTITY, limits=Limits(sessions=None)))
    assert half is not None
    assert half.starts is None
    assert half.budget is not None


def test_an_identity_earns_a_tenth_of_its_ceiling_in_a_busy_hour_and_loses_half_when_blamed():
    """Sessions adapt as the refusal budget does; half of what the hour allowed has to be spent."""
    cap = identity_cap(replace(IDENTITY, limits=Limits(Range(Rate(60, 60.0), Rate(1200, 60.0)), None)))
    assert cap is not None
    assert cap.starts is not None
    for second in range(3601):
        cap.ready_at(float(second), 0)
        cap.open(float(second))
    assert cap.starts.limit == 180
    for second in range(3601, 7202, 4):  # a quarter of an hour's worth is not enough
        cap.ready_at(float(second), 0)
        cap.open(float(second))
    assert cap.starts.limit == 180
    cap.blamed(7300.0)
    assert cap.starts.limit == 90


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-3, 30), st.booleans()), max_size=60))
def test_a_line_serves_the_lowest_ticket_of_those_who_wait(steps):
    """Whoever comes and goes, in whatever order."""
    line, waiting = Line(), {}
    for key, ticket, comes in steps:
        if comes:
            line.join(key, ticket)
            waiting[key] = ticket
        else:
            assert line.leave(key) == (waiting.pop(key, None) is not None)
        assert len(line) == len(waiting)
        first = line.first
        assert (waiting[first] == min(waiting.values())) if waiting else first == ""


@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 4)), max_size=60), st.lists(st.integers(1, 9)).map(sorted)
)
def test_warmth_names_a_moment_at_which_there_is_room(steps, per_day):
    """Waiting until `room_at` always suffices, and no sliding day of a step holds more than the step allows."""
    warmth, now, spent = Warmth(per_day or [1], -1000.0), 0.0, []
    for gap, tokens in steps:
        now = max(now + gap, warmth.room_at(now + gap))
        room = warmth.room(now)
        assert room > 0
        warmth.spend(now, min(room, tokens))
        spent += [now] * min(room, tokens)
    last = (per_day or [1])[-1]
    warm_at = len(per_day or [1]) * DAY_S - 1000.0
    assert most_in([at for at in spent if at < warm_at], DAY_S) <= max([last, *per_day])


class Counting:
    """heapq, with its operations counted."""

    def __init__(self) -> None:
        self.operations = 0

    def heappush(self, heap, entry):
        self.operations += 1
        heapq.heappush(heap, entry)

    def heappop(self, heap):
        self.operations += 1
        return heapq.heappop(heap)


@pytest.mark.parametrize("count", [1_000, 100_000])
def test_a_decision_costs_the_same_few_heap_operations_however_many_lanes_wait(monkeypatch, count):
    """All below one identity that is full nearly all the time: nobody is looked at before it can matter."""
    counting = Counting()
    monkeypatch.setattr(schedule_module, "heapq", counting)
    monkeypatch.setattr("engine.core.cap.heapq", counting)
    outer = across_cap("outer", FREE, Sessions(3, Rate(1, 1.0), 1))
    neighbour = site_cap("neighbour", policy(Sessions(1, Rate(1, 10.0), 1)), outer)
    sites = [neighbour, *(site_cap(f"s{number}", FREE, outer) for number in range(99))]
    schedule, now, visits = Schedule(), 0.0, 0
    gc.disable()  # the test's own affair: many objects at once
    for number in range(count):
        lane = fill(Lane(f"l{number}", FREE, sites[number % 100]), 1)
        schedule.add(lane)
        schedule.touch(lane, now)
    gc.enable()
    assert counting.operations < 6 * count
    counting.operations = 0
    while visits < 200:
        turn = schedule.next(now)
        if isinstance(turn, Wait):
            assert turn.until is not None
            now = turn.until
            continue
        visits += 1
        turn.lane.settle(turn, turn.first, 0, now)
        turn.lane.finish(turn, now)
        schedule.touch(turn.lane, now)
        schedule.retire(turn.lane)
    assert counting.operations < 20 * visits


NARROW = policy(Sessions(5, Rate(1, 3600.0), 1), per_transaction=4, recipients=1)
WIDE = policy(Sessions(5, Rate(60, 60.0), 1), per_transaction=4, recipients=60)


@pytest.mark.parametrize(("then", "afterwards"), [(NARROW, WIDE), (WIDE, NARROW)])
def test_what_is_owed_over_a_restart_is_owed_in_tokens(then, afterwards):
    """A limit that is lifted or placed while nothing runs: as in a run, tokens stay tokens."""
    before, in_place, again = site_cap("site", then), site_cap("site", then), site_cap("site", afterwards)
    for cap in (before, in_place):
        cap.open(0.0)
        cap.charge(0.0, 4)
    in_place.adopt(afterwards, 0.5)
    again.recall(json.loads(json.dumps(before.memory(0.5))), 0.5, 0.0)
    assert again.ready_at(0.5, 1) == pytest.approx(in_place.ready_at(0.5, 1))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(0, 120), st.integers(1, 40))
def test_an_identity_s_sessions_count_on_over_a_restart(gaps, away, limit):
    """Between the last life and the next no window holds more than the limit allows."""
    limits = Limits(Range(Rate(limit, 60.0), Rate(limit, 60.0)), None)
    before, again = (identity_cap(replace(IDENTITY, limits=limits)) for _ in range(2))
    assert before is not None
    assert again is not None
    now, begun = 0.0, []
    for gap in gaps:
        now = max(now + gap, before.ready_at(now + gap, 0) or 0.0)
        before.open(now)
        begun.append(now)
    again.recall(json.loads(json.dumps(before.memory(now))), now + away, float(away))
    now += away
    for _ in range(limit):
        now = again.ready_at(now, 0) or 0.0
        again.open(now)
        begun.append(now)
    assert most_in(begun, 60.0) <= limit
    assert now <= begun[len(gaps) - 1] + away + 60.0
