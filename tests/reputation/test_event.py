"""Laws of events: nothing opens or closes on one answer, on an answer that says nothing, or on a list that failed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.core.listing import Check, Listing, Severity, Status
from engine.core.listing_event import Change, Close, ListingEvent, Step
from engine.reputation.event import (
    FLAP_WINDOW_S,
    MAX_HOLD_S,
    MAX_WAIT_S,
    MIN_WAIT_S,
    close_by_hand,
    list_failed,
    observe,
    remembered,
)

NOW = 1_790_000_000.0
DAY = 86_400.0
SBL = Listing("sbl", "127.0.0.2", Severity.CRITICAL, "manual listing")
CSS = Listing("css", "127.0.0.3", Severity.HIGH, "low reputation")
SILENT = [Status.ERROR, Status.REFUSED, Status.SUSPECT]


def check(
    at: float, *listings: Listing, status: Status | None = None, ttl_s: int | None = None, reliable: bool = True
) -> Check:
    said = status or (Status.LISTED if listings else Status.CLEAN)
    return Check("203.0.113.7", "zen", said, at, listings, ttl_s=ttl_s, reliable=reliable)


class World:
    """Events that are kept as a store would."""

    def __init__(self) -> None:
        self.events: dict[int, ListingEvent] = {}
        self.changes: list[tuple[Change, Close | None]] = []
        self.ask_at: float | None = None

    def ask(self, one: Check, expiry_s: float | None = None) -> list[Change]:
        known = [event for event in self.events.values() if remembered(event, one.at)]
        return self.keep(observe(known, one, expiry_s=expiry_s))

    def keep(self, step: Step) -> list[Change]:
        for event in step.dropped:
            del self.events[event.id]
        for event in step.changed:
            number = event.id or max(self.events, default=0) + 1
            self.events[number] = replace(event, id=number)
        self.ask_at = step.ask_at
        self.changes += [(one.change, one.event.close_reason) for one in step.transitions]
        return [one.change for one in step.transitions]

    @property
    def open(self) -> list[ListingEvent]:
        return [event for event in self.events.values() if event.is_open]


def listed(world: World, at: float = NOW) -> ListingEvent:
    """The world with one open event."""
    world.ask(check(at - MIN_WAIT_S, SBL))
    assert world.ask(check(at, SBL)) == [Change.OPENED]
    (event,) = world.open
    return event


def test_an_event_opens_with_the_second_answer() -> None:
    """The first one says when to ask again; the event has its first sighting, its confirmation and its expiry."""
    world = World()
    assert world.ask(check(NOW, SBL, ttl_s=600), expiry_s=DAY) == []
    assert world.ask_at == NOW + 600
    assert world.ask(check(NOW + 600, SBL), expiry_s=DAY) == [Change.OPENED]
    (event,) = world.open
    assert (event.first_seen, event.confirmed_at, event.last_seen) == (NOW, NOW + 600, NOW + 600)
    assert (event.expected_expiry, event.severity, event.code) == (NOW + 600 + DAY, Severity.CRITICAL, "127.0.0.2")


@pytest.mark.parametrize(
    ("ttl_s", "wait_s"), [(None, MIN_WAIT_S), (60, MIN_WAIT_S), (1800, 1800), (86_400, MAX_WAIT_S)]
)
def test_the_second_answer_is_a_new_one(ttl_s: int | None, wait_s: float) -> None:
    """One that a cache may still give confirms nothing; a TTL of a day does not put off an alarm for a day."""
    world = World()
    world.ask(check(NOW, SBL, ttl_s=ttl_s))
    assert world.ask(check(NOW + wait_s - 1, SBL)) == []
    assert world.ask(check(NOW + wait_s, SBL)) == [Change.OPENED]


def test_a_single_sighting_is_forgotten() -> None:
    """A list that takes it back before the second answer has opened nothing."""
    world = World()
    world.ask(check(NOW, SBL))
    assert world.ask(check(NOW + MIN_WAIT_S)) == []
    assert world.events == {}
    assert world.ask(check(NOW + 2 * MIN_WAIT_S, SBL)) == []


@pytest.mark.parametrize("status", SILENT)
def test_what_says_nothing_changes_nothing(status: Status) -> None:
    """ERROR, REFUSED and SUSPECT neither open nor close, and don't interrupt what two other answers say."""
    world = World()
    for number in range(5):
        assert world.ask(check(NOW + number * DAY, status=status)) == []
    world.ask(check(NOW + 5 * DAY, SBL))
    world.ask(check(NOW + 5 * DAY + 100, status=status))
    assert world.ask_at == NOW + 5 * DAY + 100 + MIN_WAIT_S
    assert world.ask(check(NOW + 5 * DAY + 400, SBL)) == [Change.OPENED]
    for number in range(6, 20):
        assert world.ask(check(NOW + number * DAY, status=status)) == []
    assert len(world.open) == 1


@pytest.mark.parametrize("listings", [(), (SBL,)])
def test_a_list_that_failed_is_not_believed(listings: tuple[Listing, ...]) -> None:
    """An unreliable answer neither opens nor closes, however often it comes."""
    world = World()
    before = [listed(world)] if not listings else []
    for number in range(1, 5):
        assert world.ask(check(NOW + number * DAY, *listings, reliable=False)) == []
    assert world.open == before


def test_an_event_closes_with_the_second_clean_answer() -> None:
    """The list had not been asked: it expired. Where it had been asked, it was delisted."""
    world = World()
    event = listed(world)
    assert world.ask(check(NOW + 900)) == []
    assert world.ask_at == NOW + 900 + MIN_WAIT_S
    assert world.ask(check(NOW + 1000, SBL)) == []  # it was not gone after all
    assert world.ask(check(NOW + 1500)) == []
    assert world.ask(check(NOW + 1800)) == [Change.CLOSED]
    assert world.events[event.id].close_reason is Close.EXPIRED
    world = World()
    event = listed(world)
    world.events[event.id] = replace(event, asked=True)
    world.ask(check(NOW + 900))
    world.ask(check(NOW + 1800))
    assert world.events[event.id].close_reason is Close.DELISTED


def test_each_sublist_has_its_own_event() -> None:
    """A target may leave one sublist while another one still lists it."""
    world = World()
    world.ask(check(NOW, SBL, CSS))
    assert world.ask(check(NOW + 300, SBL, CSS)) == [Change.OPENED, Change.OPENED]
    world.ask(check(NOW + 900, CSS))
    assert world.ask(check(NOW + 1800, CSS)) == [Change.CLOSED]
    assert [event.sublist for event in world.open] == ["css"]


def test_a_severity_changes_with_the_second_answer() -> None:
    """Up and down alike; what it was before is told."""
    world = World()
    listed(world)
    worse = replace(SBL, severity=Severity.LOW)
    assert world.ask(check(NOW + 900, worse)) == []
    assert world.open[0].severity is Severity.CRITICAL
    step = observe(world.open, check(NOW + 1800, worse))
    (change,) = step.transitions
    assert (change.change, change.before, change.event.severity) == (Change.SEVERITY, Severity.CRITICAL, Severity.LOW)


def test_two_severities_in_a_row_open_all_the_same() -> None:
    """To open, it only has to be listed twice; the newer answer says how bad it is."""
    world = World()
    world.ask(check(NOW, replace(SBL, severity=Severity.LOW)))
    assert world.ask(check(NOW + 300, SBL)) == [Change.OPENED]
    assert world.open[0].severity is Severity.CRITICAL


def test_a_flapping_list_keeps_one_event_open() -> None:
    """A list that changes its mind every half hour for a week opens one event, and soon no longer closes it."""
    world = World()
    at, moves = NOW, []
    while at < NOW + 7 * DAY:
        half_hours = int((at - NOW) // 1800)
        moves += world.ask(check(at, SBL) if half_hours % 2 == 0 else check(at))
        at += 300
    assert len(world.events) == 1
    assert moves[0] is Change.OPENED
    assert len(moves) <= 5


def test_a_flap_is_forgiven() -> None:
    """However often it came back: a day without a sighting closes it, and two days later a listing is a new event."""
    world = World()
    event = listed(world)
    world.events[event.id] = replace(event, flaps=9)
    at = NOW + 900
    world.ask(check(at))
    assert world.ask(check(at + MAX_HOLD_S - 1)) == []
    assert world.ask(check(at + MAX_HOLD_S)) == [Change.CLOSED]
    at += MAX_HOLD_S + FLAP_WINDOW_S
    world.ask(check(at, SBL))
    assert world.ask(check(at + 300, SBL)) == [Change.OPENED]
    assert len(world.events) == 2


def test_a_list_failure_takes_back_what_the_list_changed() -> None:
    """What it opened since its last good probe is closed with that cause, what it closed is open again."""
    world = World()
    world.ask(check(NOW, SBL, CSS))
    world.ask(check(NOW + 300, SBL, CSS))  # both open; the probe at NOW + 600 is good
    xbl = Listing("xbl", "127.0.0.4", Severity.CRITICAL, "")
    world.ask(check(NOW + 900, SBL, xbl))
    assert world.ask(check(NOW + 1200, SBL, xbl)) == [Change.CLOSED, Change.OPENED]
    moved = world.keep(list_failed(list(world.events.values()), NOW + 600, NOW + 1500))
    assert sorted(moved) == [Change.CLOSED, Change.REOPENED]
    assert [event.sublist for event in world.open] == ["css", "sbl"] or {e.sublist for e in world.open} == {
        "css",
        "sbl",
    }
    (gone,) = [event for event in world.events.values() if not event.is_open]
    assert (gone.sublist, gone.close_reason) == ("xbl", Close.LIST_FAILURE)


def test_a_list_failure_forgets_doubts() -> None:
    """A first sighting, or a first clean answer, of a list that then fails is none."""
    world = World()
    event = listed(world)
    world.ask(check(NOW + 900, CSS))
    world.keep(list_failed(list(world.events.values()), NOW + 600, NOW + 1000))
    assert list(world.events) == [event.id]
    assert world.ask(check(NOW + 1500)) == []


def test_what_a_list_failure_closed_is_a_new_event_later() -> None:
    """A real listing after the failure has nothing to do with the false one."""
    world = World()
    listed(world)
    world.keep(list_failed(list(world.events.values()), NOW - DAY, NOW + 600))
    world.ask(check(NOW + 900, SBL))
    assert world.ask(check(NOW + 1200, SBL)) == [Change.OPENED]
    assert [event.flaps for event in world.events.values()] == [0, 0]


def test_what_was_closed_by_hand_opens_again_if_it_is_listed() -> None:
    """A hand does not silence a list."""
    world = World()
    event = listed(world)
    assert world.keep(close_by_hand(event, NOW + 600)) == [Change.CLOSED]
    world.ask(check(NOW + 900, SBL))
    assert world.ask(check(NOW + 1200, SBL)) == [Change.REOPENED]


def test_an_older_answer_says_nothing() -> None:
    """An answer that was overtaken neither confirms nor takes back."""
    world = World()
    listed(world)
    assert world.ask(check(NOW - 200)) == []
    assert world.open[0].seen is Severity.CRITICAL


LIES: dict[str, Sequence[Check]] = {
    "servfail": [check(0, status=Status.ERROR)],
    "public resolver": [check(0, status=Status.REFUSED)],
    "parked": [check(0, status=Status.SUSPECT)],
    "wildcard": [check(0, SBL, reliable=False)],
    "one blip an hour": [check(0, SBL), *[check(0)] * 3],
    "errors and blips": [check(0, status=Status.ERROR), check(0, SBL), check(0), check(0, status=Status.REFUSED)],
}


@pytest.mark.parametrize("name", LIES)
def test_a_week_of_failures_opens_nothing(name: str) -> None:
    """Every way in which lists fail, for a week at an answer each quarter of an hour: no event at all."""
    world = World()
    for number in range(7 * 96):
        one = LIES[name][number % len(LIES[name])]
        world.ask(replace(one, at=NOW + number * 900.0))
    assert world.changes == []


def test_every_true_listing_opens_within_two_answers() -> None:
    """Whatever the failures around it: the second answer that says listed opens it."""
    rng = random.Random(4)
    for _ in range(200):
        world = World()
        at, told = NOW, 0
        while not world.open:
            at += 900
            silent = rng.random() < 0.5
            told += not silent
            world.ask(check(at, status=rng.choice(SILENT)) if silent else check(at, SBL))
        assert told == 2


class Machine(RuleBasedStateMachine):
    """Any answers in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.at = NOW
        self.streak: dict[str, list[tuple[bool, float]]] = {"sbl": [], "css": []}

    @rule(
        step_s=st.sampled_from([0.0, 60.0, 300.0, 900.0, 3600.0, DAY, 3 * DAY]),
        listings=st.sets(st.sampled_from([SBL, CSS, replace(CSS, severity=Severity.LOW)])),
        status=st.sampled_from([None, None, None, *SILENT]),
        ttl_s=st.sampled_from([None, 60, 1800]),
        reliable=st.booleans(),
    )
    def answer(
        self, step_s: float, listings: set[Listing], status: Status | None, ttl_s: int | None, reliable: bool
    ) -> None:
        self.at += step_s
        shown = {} if status else {one.sublist: one for one in listings}
        one = check(self.at, *shown.values(), status=status, ttl_s=ttl_s, reliable=reliable)
        before = {event.sublist for event in self.world.open}
        self.world.ask(one)
        after = {event.sublist for event in self.world.open}
        if one.status in SILENT or not reliable:
            assert before == after
            return
        for sublist, streak in self.streak.items():
            streak.append((sublist in shown, self.at))
        for sublist in before ^ after:
            newest, last = self.streak[sublist][-1], self.streak[sublist][-2]
            assert newest[0] == last[0] == (sublist in after)  # two in a row, of one mind
            first = next(
                at for place, (said, at) in enumerate(self.streak[sublist])
                if all(each[0] == newest[0] for each in self.streak[sublist][place:])
            )  # fmt: skip
            assert self.at - first >= MIN_WAIT_S

    @rule(ago_s=st.sampled_from([0.0, 600.0, DAY]))
    def failure(self, ago_s: float) -> None:
        last_good = self.at - ago_s
        self.world.keep(list_failed(list(self.world.events.values()), last_good, self.at))
        assert [event for event in self.world.open if (event.opened_at or 0) > last_good] == []
        events = {event.sublist: event for event in self.world.events.values() if event.closed_at is None}
        for sublist, streak in self.streak.items():  # a first sighting that the last good probe vouches for stands
            event = events.get(sublist)
            pending = event is not None and event.confirmed_at is None
            before = [each for each in streak if each[1] <= last_good]
            streak[:] = before if pending else [(event is not None, self.at)]

    @invariant()
    def one_event_a_sublist(self) -> None:
        names = [event.sublist for event in self.world.events.values() if event.closed_at is None]
        assert len(names) == len(set(names))

    @invariant()
    def doubt_has_its_moment(self) -> None:
        for event in self.world.events.values():
            if event.closed_at is None:
                assert (event.seen != event.shown) == (event.ask_at is not None)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
