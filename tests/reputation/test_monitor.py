"""The monitor over the lab's block lists, with time as data: what is listed stops who is listed, and is told."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import contextmanager

import gevent
import pytest

from engine.core.grammar import Rate
from engine.core.identity import Identity, Status
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.reputation.charge import Charge
from engine.reputation.monitor import Monitor
from engine.reputation.named import Named
from engine.reputation.query import Asker
from engine.reputation.question import target
from engine.reputation.registry import load_registry
from engine.store import reputation as tables
from engine.store.standing_order import binds, in_force, place_status, status_of
from engine.store.state import LIMIT, RESET, State
from engine.store.writer import Writer

ME = Identity("node-1", "probe.example", "probe@probe.example", public_v4="203.0.113.10")
OTHER = Identity("node-2", "probe2.example", "probe@probe.example", public_v4="203.0.113.20")
SURE_S = 400.0  # after so long a second answer counts


@pytest.fixture(scope="module")
def lab():
    with LabProcess(log=False) as running:
        yield running


class Watch:
    """A monitor of a state of its own; `now` is its clock."""

    def __init__(self, state, lab, **charge):
        self.now = 1_800_000_000.0
        self.state = state
        given = {"identities": (ME, OTHER), "dwell_s": 3600.0} | charge
        targets = tuple(target(address) for each in given["identities"] for address in each.addresses)
        registry = load_registry(None, (), shipped=SHIPPED.with_name("lists.yaml"))
        self.charge = Charge(**({"targets": targets} | given))
        self.monitor = Monitor(
            state,
            registry,
            self.charge,
            servers=(lab.dns,),
            clock=lambda: self.now,
            rng=random.Random(1),
            nowhere="lab",
        )

    def rounds(self, count=1, apart_s=SURE_S):
        for _ in range(count):
            self.now += apart_s
            self.checks = self.monitor.once()

    def held(self, identity=ME):
        about = [order for order in self.state.standing_orders(self.now) if binds(order, identity)]
        return [(status_of(order), order.by) for order in in_force(about, self.now)]

    def events(self, **more):
        return self.state.read(lambda conn: tables.events(conn, closed_since=self.now - 1e6, **more))

    def notices(self):
        waiting = self.state.read(tables.waiting_notices)
        return [one.kind.value for one in waiting]


@contextmanager
def listing(lab, zone="bl.lab", **entries):
    """These addresses are listed, as long as the context lasts."""
    lab.set(zone, listed={address: [code] for address, code in entries["listed"].items()})
    try:
        yield
    finally:
        lab.reset()


@pytest.fixture
def watch(tmp_path, lab):
    with Writer() as writer:
        yield lambda **charge: Watch(State(writer, tmp_path / "state.db"), lab, **charge)


def test_a_critical_listing_stops_its_identity_and_its_end_lets_it_go_on(lab, watch):
    """Not before the second answer; not before the dwell time is over; and nobody else is concerned."""
    it = watch()
    it.rounds()
    assert it.held() == []
    with listing(lab, listed={ME.key: "127.0.0.2"}):
        it.rounds()
        assert (it.held(), it.events()) == ([], [])
        it.rounds()
        assert it.held() == [(Status.QUARANTINED, "monitor")]
        assert [event.target for event in it.events()] == [ME.key]
        it.rounds(3)
        assert len(it.held()) == 1, "it is ordered once"
    it.rounds(2)
    assert not any(event.is_open for event in it.events())
    assert it.held() == [(Status.QUARANTINED, "monitor")], "its dwell time is not over"
    it.rounds(1, apart_s=4000.0)
    assert it.held() == []
    assert it.held(OTHER) == []
    assert {"opened", "quarantined", "closed", "released"} <= set(it.notices())


def test_what_an_operator_ordered_is_not_undone(lab, watch):
    """His hold outlasts the listing; and whom he enabled is held again only for another listing."""
    it = watch()
    with listing(lab, listed={ME.key: "127.0.0.2"}):
        it.rounds(2)
        place_status(it.state, "node-1", Status.ENABLED, by="Ann", why="known", at=it.now + 1)
        it.rounds(3)
        assert it.held() == []
        place_status(it.state, ME.key, Status.DRAINING, by="Ann", why="moving", at=it.now + 1)
    it.rounds(2)
    it.rounds(1, apart_s=4000.0)
    assert it.held() == [(Status.DRAINING, "Ann")]


def test_silence_is_no_answer_and_its_age_grows(lab, watch):
    """A target that no list tells of any more keeps the time of its last answer: an alert goes by that."""
    it = watch()
    it.rounds()
    answered = it.monitor.view().answered
    assert answered == {ME.key: it.now, OTHER.key: it.now}
    lab.set("bl.lab", fault="servfail")
    lab.set("zen.lab", fault="servfail")
    try:
        it.rounds(4)
    finally:
        lab.reset()
    assert it.monitor.view().answered == answered
    assert it.monitor.view().now == it.now > answered[ME.key]


def test_a_dry_run_orders_nothing(lab, watch):
    """It only says what it would do."""
    it = watch(dry_run=True)
    with listing(lab, listed={ME.key: "127.0.0.2"}):
        it.rounds(2)
        assert [event.is_open for event in it.events()] == [True]
        assert it.held() == []


def test_two_listings_in_one_moment_are_one_order(lab, watch):
    """Each answer has a greenlet of its own; the identity is quarantined once, and told of once."""
    it = watch()
    lab.set("bl.lab", listed={ME.key: ["127.0.0.2"]})
    lab.set("zen.lab", listed={ME.key: ["127.0.0.4"]})
    try:
        it.rounds()
        it.now += SURE_S
        gevent.joinall([gevent.spawn(it.monitor._ask, (ME.key, name)) for name in ("bl-lab", "zen-lab")])
    finally:
        lab.reset()
    assert len(it.events()) == 2
    assert it.held() == [(Status.QUARANTINED, "monitor")]
    assert it.notices().count("quarantined") == 1


def test_a_medium_listing_slows_and_stops_nobody(lab, watch):
    """By the rate of the settings, for all providers, until it is over."""
    it = watch(slow=Rate(6, 60.0))

    def limits():
        orders = [each for each in it.state.standing_orders(it.now) if each.kind in (LIMIT, RESET)]
        return [(each.kind, each.arguments.get("rate")) for each in orders]

    with listing(lab, "zen.lab", listed={ME.key: "127.0.0.10"}):
        it.rounds(3)
        assert (it.held(), limits()) == ([], [(LIMIT, "6/min")])
    it.rounds(3)
    assert limits() == [(LIMIT, "6/min"), (RESET, None)]


def test_a_list_that_fails_takes_back_what_it_said(lab, watch):
    """Its event is closed as list_failure, and the identity goes on without a dwell time."""
    it = watch()
    it.rounds(4)  # the next probe of a list that was good so often is far
    with listing(lab, listed={ME.key: "127.0.0.2"}):
        for _ in range(2):
            it.now += SURE_S
            it.monitor._ask((ME.key, "bl-lab"))
        assert it.held()
        lab.set("bl.lab", always=["127.0.0.2"])
        it.rounds(2, apart_s=7200.0)
    assert [event.close_reason.value for event in it.events()] == ["list_failure"]
    assert it.held() == []


def test_a_list_that_lists_half_the_fleet_is_probed_before_it_is_believed(lab, watch):
    """It lists everybody: none of our identities stops."""
    fleet = tuple(Identity(f"n{n}", "p.example", "p@p.example", public_v4=f"203.0.113.{100 + n}") for n in range(6))
    it = watch(identities=fleet)
    it.rounds()
    lab.set("bl.lab", always=["127.0.0.2"])
    try:
        it.rounds(3)
    finally:
        lab.reset()
    assert not any(event.is_open for event in it.events())
    assert [it.held(each) for each in fleet] == [[]] * 6


def test_a_list_that_a_reply_names_is_asked_ahead_of_its_turn(lab, watch):
    """Once in ten minutes, by its zone or its operator's name; a name that no list has is nothing."""
    it = watch()
    it.monitor._fill()
    told = Named(it.state, ME.addresses)
    assert told.tell("zen.lab", it.now)
    assert not told.tell("zen.lab", it.now + 60)
    it.monitor._hear()
    (order,) = (each for each in [it.state.order(1)] if each is not None)
    assert (order.kind, order.answer) == ("rbl check", {"asked": True})
    assert it.monitor._rota.take(it.now) == (ME.key, "zen-lab")
    assert not it.monitor.check_now(ME.key, "nobody.example")
    told.tell("bl.lab", it.now)
    it.state.take_orders("monitor", it.now)  # by a monitor that is killed now
    it.monitor._hear()
    assert it.monitor._rota.take(it.now) is None
    it.monitor._hear(again=True)
    assert it.monitor._rota.take(it.now) == (ME.key, "bl-lab")


def test_a_monitor_that_was_killed_goes_on_where_it_stood(lab, watch):
    """The second answer comes from another process: it opens the event, and nothing is ordered twice."""
    first = watch()
    with listing(lab, listed={ME.key: "127.0.0.2"}):
        first.rounds()
        second = Watch(first.state, lab)
        second.now = first.now
        second.rounds()
        assert second.held() == [(Status.QUARANTINED, "monitor")]
        third = Watch(first.state, lab)
        third.now = second.now
        third.rounds(2)
        assert len(third.held()) == 1


def test_a_list_that_goes_wrong_between_two_probes_opens_nothing(lab, watch):
    """The answer that would open the event is vouched for by a probe of the same minute."""
    it = watch(identities=(ME,))
    it.rounds(6)  # the next probe of a list that was good so often is an hour away
    lab.set("bl.lab", always=["127.0.0.2"])
    try:
        for _ in range(4):
            it.now += SURE_S
            it.monitor._ask((ME.key, "bl-lab"))
    finally:
        lab.reset()
    assert (it.events(), it.held()) == ([], [])
    assert not it.monitor._checker.health("bl-lab").usable


def test_a_list_that_is_emptied_between_two_probes_closes_nothing(lab, watch):
    """It knows nobody any more; whom it listed is not clean for that."""
    it = watch(identities=(ME,))
    with listing(lab, listed={ME.key: "127.0.0.2"}):
        it.rounds(6)
        assert [event.is_open for event in it.events()] == [True]
    lab.set("bl.lab", test=[])
    try:
        for _ in range(4):
            it.now += SURE_S
            it.monitor._ask((ME.key, "bl-lab"))
    finally:
        lab.reset()
    assert [event.is_open for event in it.events()] == [True]
    assert it.held() == [(Status.QUARANTINED, "monitor")]


@pytest.mark.parametrize("fault", ["servfail", "refused"])
def test_a_true_listing_outlives_a_restart_and_a_list_that_does_not_answer(lab, watch, fault):
    """What a list said before it fell silent or refused us stands, whoever was restarted in between."""
    first = watch(identities=(ME,))
    with listing(lab, listed={ME.key: "127.0.0.2"}):
        first.rounds(3)
        assert first.held()
    lab.set("bl.lab", **({"fault": "servfail"} if fault == "servfail" else {"always": ["127.255.255.254"]}))
    try:
        second = Watch(first.state, lab, identities=(ME,))
        second.now = first.now
        second.rounds(3)
    finally:
        lab.reset()
    assert [event.is_open for event in second.events()] == [True]
    assert second.held() == [(Status.QUARANTINED, "monitor")]


def test_a_failure_that_people_know_of_is_not_told_anew_by_a_restart(lab, watch):
    """One notice for one failure, and one for its end."""
    first = watch(identities=(ME,))
    first.rounds(2)
    lab.set("bl.lab", always=["127.0.0.2"])
    first.rounds(1, apart_s=7200.0)
    second = Watch(first.state, lab, identities=(ME,))
    second.now = first.now
    second.rounds(3)
    lab.reset()
    third = Watch(first.state, lab, identities=(ME,))
    third.now = second.now
    third.rounds(3, apart_s=7200.0)
    told = [one.kind.value for one in third.state.read(tables.waiting_notices) if one.list == "bl-lab"]
    assert told == ["list_broken", "list_usable"]


def test_it_serves_in_a_patched_process_only(lab, watch):
    """dnspython would hold up the hub of any other."""
    with pytest.raises(RuntimeError, match="patched"):
        watch().monitor.serve()


def test_two_monitors_don_t_watch_one_machine(tmp_path):
    """The second one says who does, and asks nobody."""
    command = [sys.executable, "-m", "engine", "monitor", "--lab", "--state", str(tmp_path / "s.db")]
    with subprocess.Popen([*command, "--metrics", "0"], stderr=subprocess.PIPE, text=True) as first:
        try:
            assert first.stderr is not None
            while "watching" not in first.stderr.readline():
                assert first.poll() is None
            again = subprocess.run([*command, "--once"], capture_output=True, text=True, timeout=60, check=False)
            assert again.returncode == 2
            assert f"process {first.pid}" in again.stderr
        finally:
            first.terminate()
            first.stderr.read()
            assert first.wait(30) == 0


def test_a_resolver_that_invents_answers_is_blamed_and_no_list(lab, watch, monkeypatch):
    """It says so, asks about nobody, and tells of no list; lists of the lab are healthy all the while."""
    it = watch()
    it.monitor._nowhere = "wildcard.lab"  # where every name exists
    it.rounds()
    assert it.checks == []
    assert "don't exist" in it.monitor.trouble
    assert it.notices() == []
    it.monitor._nowhere = "lab"
    it.rounds()
    assert it.checks
    assert it.monitor.trouble == ""


def test_a_resolver_that_knows_the_lists_alone_is_fit(lab, watch):
    """It refuses made-up names elsewhere, as one of our own may: the list that is silent is the one that is told."""
    it = watch()
    it.monitor._nowhere = "com"  # the lab says REFUSED
    it.rounds()
    assert it.monitor.trouble == ""
    assert {check.list for check in it.checks if check.reliable} >= {"bl-lab", "zen-lab"}
    assert "dead-lab" in it.monitor._failed


def test_a_resolver_that_falls_silent_is_blamed_and_no_list(lab, watch):
    """Nobody answers: that is told once, of the resolver; lists that stay silent are told when it is back."""
    it = watch()
    it.rounds(3)
    before = it.notices()
    checker = it.monitor._checker
    asker, checker.asker = checker.asker, Asker([("127.0.0.1", 9)], timeout_s=0.01)
    it.now += 7200.0
    for _ in range(3):
        it.now += 120.0
        for name in ("bl-lab", "zen-lab"):
            checker.probe(name)
    assert it.monitor.trouble
    assert it.notices() == before
    lab.set("zen.lab", fault="servfail")
    try:
        checker.asker = asker
        for _ in range(2):
            it.now += 120.0
            checker.probe("bl-lab")
    finally:
        lab.reset()
    assert it.monitor.trouble == ""
    assert len(it.notices()) == len(before) + 1
    assert list(it.monitor._failed)[-1] == "zen-lab"


def test_a_list_that_may_not_be_asked_is_named_as_not_checked(lab, watch):
    """In what a scrape sees; and a critical one in what /readyz says."""
    it = watch()
    it.rounds()
    told = {name: (works, why) for name, works, why in it.monitor.view().lists}
    assert told["members-lab"] == (False, "not_checked")
    assert told["bl-lab"] == (True, "good")
    assert [each.partition(" (")[0] for each in it.monitor.registry.unasked] == ["members-lab, medium"]
    assert it.monitor.unchecked == []  # none of the lab's critical ones is off
