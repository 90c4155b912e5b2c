"""Laws of the schedule, whatever happens in whatever order: nobody is overlooked, limits and breakers hold."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from engine.core.breaker import BreakerState
from engine.core.cap import Cap, site_cap
from engine.core.caps import Caps, Hosts, neighbour
from engine.core.control import ControlAnswer
from engine.core.grammar import Range, Rate
from engine.core.identity import Identity, Limits
from engine.core.lane import Batch, Lane, Visit
from engine.core.policy import BreakerLimits, Policy, PolicySet, Recipients, Refusals, Sessions
from engine.core.queue import Item
from engine.core.reasons import REASONS, Reach
from engine.core.schedule import Schedule, Wait

# Hosts that nobody claims, two of them at one address; one of a provider that counts a source once; two of one whose
# sites count on their own, with a cap over all of them.
ADDRESSES = {
    "a.test": "192.0.2.1", "b.test": "192.0.2.1", "c.test": "192.0.2.2", "mx.big.test": "192.0.2.3",
    "one.many.test": "192.0.2.4", "two.many.test": "192.0.2.5",
}  # fmt: skip
ACCEPTED, UNKNOWN = REASONS["rcpt_ok"], REASONS["mailbox_not_found"]
BLOCKED, BUSY = REASONS["ip_blocklisted"], REASONS["server_busy"]
REPLIES = st.sampled_from(
    [(ACCEPTED, Reach.NONE), (ACCEPTED, Reach.NONE), (UNKNOWN, Reach.NONE), (BUSY, Reach.NONE),
     (BLOCKED, Reach.SOURCE), (REASONS["policy_rejected"], Reach.DOMAIN), (REASONS["greylisted"], Reach.NONE)]
)  # fmt: skip


def a_policy(name: str, concurrency: int, per_min: int, **more) -> Policy:
    rate = Rate(60, 1.0)
    return Policy(
        name, sessions=Sessions(concurrency, Rate(per_min, 60.0), 1), recipients=Recipients(Range(rate, rate), 6, 3),
        refusals=Refusals(4, Range(Rate(40, 3600.0), Rate(40, 3600.0))),
        breaker=BreakerLimits(min_samples=3, open_s=40.0, max_open_s=300.0), **more,
    )  # fmt: skip


def policies(concurrency: int, per_min: int, across: int | None) -> PolicySet:
    sites = Sessions(across, Rate(60, 60.0), 1) if across else None
    big = a_policy("big", concurrency, per_min, scope="provider", match_mx=("*.big.test",))
    many = a_policy("many", concurrency, per_min, match_mx=("*.many.test",), across_sites=sites)
    return PolicySet((big, many), a_policy("default", concurrency, per_min, across_sites=sites))


SETS = st.builds(policies, st.integers(1, 3), st.sampled_from([1, 30, 600]), st.sampled_from([None, 1, 4]))
SITES = st.lists(st.sampled_from(sorted(ADDRESSES)), min_size=1, max_size=3, unique=True).map(sorted)


def hosts_of(names: list[str]) -> Hosts:
    return [(name, (ADDRESSES[name],)) for name in names]


@dataclass(eq=False)
class Session:
    """A visit under way, and the transaction whose answers it waits for."""

    visit: Visit
    batch: Batch | None  # None: it says QUIT
    hosts: Hosts
    asked: bool = False
    open: bool = True
    domains: set[str] = field(default_factory=set)


class Governor(RuleBasedStateMachine):
    """Work comes, sessions start, go elsewhere, are answered and end, policies change, time passes: in any order."""

    sessions = Bundle("sessions")
    greetings = Bundle("greetings")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.set = policies(2, 30, 4)
        limits = Limits(Range(Rate(20, 60.0), Rate(20, 60.0)), Range(Rate(60, 3600.0), Rate(60, 3600.0)))
        self.caps = Caps(self.set, Identity("me", "h", "m@x.test", "192.0.2.99", limits=limits))
        self.schedule = Schedule()
        self.hosts: dict[str, Hosts] = {}  # of each site
        self.sites: dict[str, set[str]] = {}  # of each lane
        self.running: list[Session] = []
        self.greeted: list[Lane] = []
        self.waiting: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()

    # --- what happens ----------------------------------------------------------------------------------------

    @rule(names=SITES, addresses=st.integers(1, 5), domains=st.integers(1, 2), known=st.booleans())
    def work_comes(self, names, addresses, domains, known):
        policy, hosts = self.set.for_hosts(names), hosts_of(names)
        ips = {ip for _, found in hosts for ip in found}
        alone = len(ips) == 1 and not any(map(self.set.claiming, names))
        site = neighbour(ips.pop()) if alone else ",".join(names)
        self.hosts[site] = hosts
        key = policy.name if policy.scope == "provider" else site
        lane = self.schedule.lanes.get(key)
        if lane is None:
            lane = self.caps.lane(key, policy, hosts)
            self.schedule.add(lane)
        for number in range(addresses):
            name = f"{number % domains}.{site}"
            domain = lane.queue.domain(name, number, site)
            if known:
                domain.control = ControlAnswer.REFUSES
            item = len(self.waiting)
            self.waiting[item] += 1
            lane.queue.add(Item(item, f"u{item}", name), self.now)
        self.schedule.touch(lane, self.now)

    @rule(target=sessions, admitted=st.none() | st.sets(st.sampled_from(sorted(ADDRESSES))))
    def a_turn(self, admitted):
        admits = None if admitted is None else lambda lane: not admitted.isdisjoint(lane.key.split(","))
        shut = {cap for cap in self.caps if cap.breaker is not None and not cap.breaker.allows(self.now)}
        full = {cap for cap in self.caps if cap.open_sessions >= cap.concurrency}
        turn = self.schedule.next(self.now, admits=admits)
        if isinstance(turn, Wait):
            assert turn.until is None or turn.until > self.now
            if admits is None:
                self.nobody_is_overlooked(turn)
            return multiple()
        assert not shut.intersection(turn.caps)
        assert not full.intersection(turn.caps)
        assert admits is None or admits(turn.lane)
        session = Session(turn, turn.first, self.hosts[turn.site], domains={turn.first.domain.name})
        self.running.append(session)
        return session

    @rule(session=sessions, place=st.integers(0, 2))
    def it_goes_to_another_host(self, session, place):
        if not session.open or session.asked:
            return  # only a visit that was not greeted yet goes on
        host, (ip,) = session.hosts[place % len(session.hosts)]
        before = session.visit.caps
        open_before = {cap: found for cap, found in self.open_in().items() if found or cap.users}  # others may go
        caps = self.caps.reach(session.visit.lane, host, ip)
        if self.caps.admit(self.schedule, session.visit, caps, self.now):
            assert session.visit.caps == caps
        else:
            assert session.visit.caps == before
            assert self.open_in() | open_before == self.open_in()

    @rule(session=sessions, reply=REPLIES, jitter=st.sampled_from([0.0, 0.1]), lingers=st.booleans())
    def it_is_answered(self, session, reply, jitter, lingers):
        if not session.open or session.batch is None:
            return
        visit, batch, (reason, reach) = session.visit, session.batch, reply
        session.asked, lane = True, session.visit.lane
        for _ in range(max(1, len(batch.items))):
            lane.observe(batch.domain, reason, reach, self.now, jitter, first=True, caps=visit.caps)
        refused = batch.tokens if reason is UNKNOWN else 0
        lane.settle(visit, batch, refused, self.now, errors=batch.tokens if reason is not ACCEPTED else 0)
        if reason in {ACCEPTED, UNKNOWN}:
            self.answered.update(item.id for item in batch.items)
            if reason is UNKNOWN or not batch.domain.settled:
                batch.domain.control = ControlAnswer.REFUSES
        else:
            for item in batch.items:
                lane.queue.add(item, self.now, self.now + 50.0)
        session.batch = lane.more(visit, self.now)
        assert session.batch is None or not visit.half_open  # that one asks one address
        if session.batch is None and not lingers:
            self.end(session)

    @rule(session=consumes(sessions))
    def it_breaks_off(self, session):
        if session.open:
            self.break_off(session)

    @rule(target=greetings, place=st.integers(0, 9))
    def a_connection_asks_nothing(self, place):
        lanes = list(self.schedule.lanes.values())
        if not lanes or lanes[place % len(lanes)].greet(self.now) != 0.0:
            return multiple()
        self.greeted.append(lanes[place % len(lanes)])
        return self.greeted[-1]

    @rule(lane=consumes(greetings))
    def it_is_over(self, lane):
        self.part(lane)

    @rule(policies=SETS)
    def policies_change(self, policies):
        self.set = policies
        dict(self.caps.adopt(policies, self.now))
        for lane in self.schedule.lanes.values():
            new = policies.named(lane.policy.name) or policies.default
            self.caps.rehang(lane, new, self.hosts.get(lane.key, ()))
            self.schedule.touch(lane, self.now)
        self.schedule.stir(list(self.caps), self.now)

    @rule(seconds=st.sampled_from([0.5, 10.0, 100.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.caps.let_go((), self.now)

    # --- laws ------------------------------------------------------------------------------------------------

    @invariant()
    def every_cap_counts_the_sessions_that_it_was_charged(self):
        assert self.open_in() == {cap: cap.open_sessions for cap in self.open_in()}

    @invariant()
    def a_half_open_breaker_has_one_session(self):
        for cap in self.caps:
            if cap.breaker is not None and cap.breaker.state is BreakerState.HALF_OPEN:
                trying = [each for each in self.running if not each.asked and cap.breaker in each.visit.trials]
                assert len(trying) == 1

    @invariant()
    def no_address_is_answered_twice(self):
        assert max(self.answered.values(), default=0) <= 1

    def nobody_is_overlooked(self, turn: Wait) -> None:
        """Who could start now, by its own reckoning, has somebody ahead of it in a line; and a moment is known."""
        for lane in self.schedule.lanes.values():
            ready = lane.ready_at(self.now) if not lane.open_sessions else None  # a session's end is an event
            if ready is not None and not self.ahead_of(lane):
                assert ready > self.now
                assert turn.until is not None
                assert turn.until <= ready + 1e-6

    def ahead_of(self, lane: Lane) -> bool:
        """Whether somebody else is first in one of its lines."""
        return any(cap.line and cap.line.first != lane.key for cap in lane.caps)

    def open_in(self) -> dict[Cap, int]:
        found: Counter[Cap] = Counter()
        for cap in self.caps:
            found[cap] = 0
        for session in self.running:
            found.update(session.visit.caps)
        for lane in self.schedule.lanes.values():
            for caps in lane._greeted:
                found.update(caps)
        return dict(found)

    # --- the end ---------------------------------------------------------------------------------------------

    def teardown(self):
        """Whatever happened: once everybody accepts, everything that waits is answered, and no cap is kept."""
        if sys.exc_info()[0] is not None:
            return  # a law is broken already, and that one is to be told
        for lane in list(self.greeted):
            self.part(lane)
        for session in list(self.running):
            self.break_off(session)
        for _ in range(5_000):
            turn = self.schedule.next(self.now)
            if isinstance(turn, Wait):
                self.nobody_is_overlooked(turn)
                if turn.until is None:
                    break
                self.now = turn.until
                continue
            session = Session(turn, turn.first, self.hosts[turn.site])
            self.running.append(session)
            while session.open:
                self.now += 0.1
                self.it_is_answered(session, (ACCEPTED, Reach.NONE), 0.0, lingers=False)
        assert not self.schedule.lanes
        assert set(self.answered) == set(self.waiting)
        self.caps.let_go((), self.now + 1e6)
        assert len(self.caps) == len([cap for cap in self.caps if "across" in cap.key])

    # --- how it is done --------------------------------------------------------------------------------------

    def break_off(self, session: Session) -> None:
        visit, batch = session.visit, session.batch
        if batch is not None:
            visit.lane.settle(visit, batch, 0, self.now, asked=False)
            for item in reversed(batch.items):
                visit.lane.queue.add(item, self.now, first=True)
        self.end(session)

    def end(self, session: Session) -> None:
        visit = session.visit
        session.open = False
        self.running.remove(session)
        visit.lane.finish(visit, self.now)
        self.schedule.touch(visit.lane, self.now, visit.caps)
        self.caps.done(visit, self.now)
        self.leave(visit.lane)

    def part(self, lane: Lane) -> None:
        self.greeted.remove(lane)
        lane.part()
        self.schedule.touch(lane, self.now)
        self.leave(lane)

    def leave(self, lane: Lane) -> None:
        if lane.idle:
            self.schedule.retire(lane)
            self.caps.let_go(lane.caps, self.now)


Governor.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
test_governor = Governor.TestCase


def waiting_under(cap: Cap, keys: str) -> tuple[Schedule, list[Lane]]:
    """Lanes with one address each whose innermost shared cap this is."""
    schedule, lanes = Schedule(), []
    for key in keys:
        lane = Lane(key, FREE, site_cap(key, FREE, cap))
        lane.queue.domain(f"d.{key}", 0, key).control = ControlAnswer.REFUSES
        lane.queue.add(Item(0, "u", f"d.{key}"), 0.0)
        lanes.append(lane)
        schedule.add(lane)
        schedule.touch(lane, 0.0)
    return schedule, lanes


FREE = a_policy("free", 50, 6000)


def test_a_site_that_comes_back_is_under_the_cap_that_the_others_are_under():
    """The sum over all sites may leave memory before a site that waits longer: they share what comes in its place."""
    chosen = policies(1, 6, 1)
    caps, schedule, many = Caps(chosen), Schedule(), chosen.policies[1]

    def lane(name: str) -> Lane:
        return caps.lane(name, many, hosts_of([name]))

    first, other = (name for name in sorted(ADDRESSES) if name.endswith(".many.test"))
    before = lane(first)
    schedule.add(before)
    before.queue.domain("d.test", 1, first)
    before.queue.add(Item(1, "u", "d.test"), 0.0)
    schedule.touch(before, 0.0)
    visit = schedule.next(0.0)
    assert isinstance(visit, Visit)
    before.settle(visit, visit.first, 0, 0.5)
    before.finish(visit, 0.5)
    schedule.retire(before)
    caps.let_go(before.caps, 2.0)
    assert [cap.key for cap in caps] == [first]
    beside, again = lane(other), lane(first)
    assert again.own is before.own
    assert again.caps[-1] is beside.caps[-1]
    caps.let_go(again.caps, 3.0)
    assert beside.caps[-1] in list(caps)


def test_a_half_open_session_that_goes_elsewhere_leaves_its_place_to_the_next():
    """The breaker of the host that it left lets another session try at once, and nobody waits for the end of this."""
    near, far = site_cap("near", FREE), site_cap("far", FREE)
    schedule, lanes = waiting_under(near, "ab")
    near.breaker.open(0.0, "ip_blocklisted")
    assert isinstance(schedule.next(0.0), Wait)
    trial = schedule.next(near.breaker.until)
    assert isinstance(trial, Visit)
    assert isinstance(schedule.next(near.breaker.until), Wait)
    assert schedule.divert(trial, (trial.lane.own, far), near.breaker.until + 1.0)
    following = schedule.next(near.breaker.until + 1.0)
    assert isinstance(following, Visit)
    assert following.half_open
    assert {trial.lane, following.lane} == set(lanes)


def test_the_late_end_of_an_answered_trial_does_not_end_the_next():
    """A half-open session that was refused and lingers at QUIT: when it ends, the next trial goes on alone."""
    near = site_cap("near", FREE)
    schedule, _ = waiting_under(near, "abc")
    near.breaker.open(0.0, "ip_blocklisted")
    schedule.next(0.0)
    late = schedule.next(near.breaker.until)
    now = near.breaker.until
    late.lane.settle(late, late.first, 0, now)
    late.lane.observe(late.first.domain, BLOCKED, Reach.SOURCE, now, 0.0, first=True)
    schedule.stir([near], now)
    now = near.breaker.until
    assert isinstance(schedule.next(now), Visit)
    late.lane.finish(late, now)
    schedule.touch(late.lane, now, late.caps)
    assert near.breaker.state is BreakerState.HALF_OPEN
    assert isinstance(schedule.next(now), Wait)


def test_a_lane_that_is_retired_leaves_memory_whatever_it_waited_for():
    """Its place in the heap lies hours ahead, and does not keep it until then: sites are parked to make room."""
    schedule = Schedule()
    for number in range(50):
        lane = Lane(f"parked-{number}", FREE)
        lane.queue.domain("d.test", number, lane.key)
        lane.queue.add(Item(number, "u", "d.test"), 0.0, 7200.0)
        schedule.add(lane)
        schedule.touch(lane, 0.0)
    for key in [*schedule.lanes][1:]:
        schedule.retire(schedule.lanes[key])
    del lane
    gc.collect()
    assert sum(isinstance(each, Lane) and each.key.startswith("parked-") for each in gc.get_objects()) <= 2
    assert schedule.next(0.0) == Wait(7200.0)
    visit = schedule.next(7200.0)
    assert isinstance(visit, Visit)
    assert visit.lane.key == "parked-0"


def test_who_waits_for_a_limit_that_is_widened_starts_at_once():
    """Also a lane of another policy, which the change of policies doesn't touch itself."""
    narrow = site_cap("narrow", replace(FREE, sessions=Sessions(50, Rate(1, 86_400.0), 1)))
    schedule, _ = waiting_under(narrow, "ab")
    assert isinstance(schedule.next(0.0), Visit)
    assert schedule.next(1.0).until > 80_000.0
    narrow.adopt(FREE, 1.0)
    schedule.stir([narrow], 1.0)
    assert isinstance(schedule.next(2.0), Visit)
