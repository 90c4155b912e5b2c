"""Watches what block lists say of us, in a greenlet group of its own: asks, keeps events, reacts, tells people.

1. A sweep never slows probes, and probes never delay a sweep: AT_ONCE checks at most, each a few datagrams, and nothing
   of a run is waited for.
2. Every answer goes through `Events` before anything follows from it; what follows is read back from there. A monitor
   that was killed goes on where it stood, and orders nothing twice.
3. A list that lists much of what it answered for is probed before its answer counts.
4. What a running engine hears of a list (a reply that names one) reaches the monitor as an order of the state,
   whichever process it runs in, and is looked at within seconds.
5. An answer that would open an event, close it or change its severity counts only from a list that passed its probes
   within VOUCH_S of it: between two probes that are due a list may begin to list the world.
6. A resolver that invents answers, or through which nobody answers, is told once and not believed: no list is blamed
   for it, and nobody is called clean. What lists did meanwhile is told when the resolver works again.
7. It works in a process that gevent patched, and refuses to serve in any other: dnspython would hold up the hub.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from gevent.monkey import is_module_patched
from gevent.pool import Group, Pool

from engine.core.identity_breaker import operator
from engine.core.listing import Check
from engine.core.listing import Status as Answer
from engine.core.listing_event import Method
from engine.log import log
from engine.reputation.blocklist import BlockList, Kind
from engine.reputation.channels import AlertSettings
from engine.reputation.charge import Charge
from engine.reputation.checker import Checker
from engine.reputation.control_plane import PushSettings
from engine.reputation.delist import Procedure
from engine.reputation.delivery import Alerts
from engine.reputation.diagnosis import NOWHERE, diagnose
from engine.reputation.event import VOUCH_S
from engine.reputation.guard import mass_listed
from engine.reputation.health import Finding, Health, Move
from engine.reputation.hold import Hold
from engine.reputation.named import ADDRESS
from engine.reputation.push import Push
from engine.reputation.query import Server
from engine.reputation.record import Events
from engine.reputation.registry import Registry
from engine.reputation.rota import Pair, Rota
from engine.store import list_health
from engine.store.state import State
from engine.views import View

AT_ONCE = 50
LOOK_EVERY_S = 2.0  # for orders, and for identities whose dwell time is over
DAY_S = 86_400.0
EXAMINE_S = 60.0  # between two looks at a resolver that is unfit
HEARD_S = 30.0  # so long after an answer of any list the resolver is not the one that is silent


class Count(Protocol):
    """Who counts checks (`engine_rbl_checks_total`)."""

    def rbl_checked(self, name: str, outcome: str) -> None: ...


class Monitor:
    """One machine's watch; `serve` until it is killed, or `once`."""

    def __init__(
        self, state: State, registry: Registry, charge: Charge, *, servers: Sequence[Server] = (),
        alerts: Alerts | None = None, push: Push | None = None, counts: Count | None = None,
        clock: Callable[[], float] = time.time, rng: random.Random | None = None, nowhere: str = NOWHERE,
    ) -> None:  # fmt: skip
        self.trouble = ""  # what is wrong with the resolver
        self.registry = registry
        self.charge = charge
        self._state = state
        self._servers = tuple(servers)
        self._alerts = alerts
        self._push = push
        self._counts = counts
        self._clock = clock
        self._rng = rng or random.Random()
        self._events = Events(state, self._procedure, pushes=push is not None)
        self._hold = Hold(state)
        self._reacting = BoundedSemaphore(1)
        self._failed: dict[str, float] = {}  # lists that are told broken, with their last good probe (0: never)
        self._untold: dict[str, Move] = {}  # lists that fell silent while the resolver was, too
        self._moves: list[Move] | None = None  # those of an examination, until it is over
        self._name_unasked()
        self._checker = self._make_checker(afresh=True)
        self._rota = Rota(self._rng.random)
        self._newest: dict[Pair, Check] = {}
        self._answered: dict[str, float] = {}  # target -> when a list last told of it, or the watch began
        self._again_at: float | None = None  # when an identity's dwell time is over
        self._wake = Event()
        self._probing: set[str] = set()
        self._probes = Pool(AT_ONCE)
        self._error: Exception | None = None
        self._nowhere = nowhere  # where a made-up name must not exist
        self._examined_at = float("-inf")
        self._heard_at = float("-inf")  # when any list last gave an answer

    # --- at work ----------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Watch until killed; what goes wrong with us or the disk is raised."""
        if not is_module_patched("socket"):
            raise RuntimeError("the monitor serves only in a process that gevent patched (`engine monitor`)")
        self._fill()
        self._react()
        works: list[Callable[[], None]] = [self._sweep, self._look, self._tidy]
        works += [each.serve for each in (self._alerts, self._push) if each is not None]
        group = Group()
        for work in works:
            group.spawn(work)
        try:
            gevent.joinall(group.greenlets, raise_error=True, count=1)
        finally:
            group.kill()
            self._probes.kill()

    def once(self) -> list[Check]:
        """Ask every list about every target once, react, tell; the checks. None at all through an unfit resolver."""
        self._examine()
        if self.trouble:
            return []
        self._hear()
        checks = list(self._checker.sweep(self.charge.targets))
        sure = [self._take_in(check) for check in self._held(checks)]
        self._react()
        if self._alerts is not None:
            self._alerts.turn(self._clock())
        if self._push is not None:
            self._push.turn(self._clock())
        self._events.prune(self._clock())
        return sure

    def adopt(
        self, registry: Registry, charge: Charge, alerts: AlertSettings | None = None, push: PushSettings | None = None
    ) -> None:  # fmt: skip
        """Other lists, targets, channels from now on; what is known of those that stay is kept.

        Where nothing was pushed before, a control plane needs a new start.
        """
        if self._alerts is not None and alerts is not None:
            self._alerts.adopt(alerts)
        if self._push is not None and push is not None:
            self._push.adopt(push)
        self.registry, self.charge = registry, charge
        self._name_unasked()
        self._checker = self._make_checker()
        self._newest = {pair: check for pair, check in self._newest.items() if pair[1] in registry.lists}
        self._fill()
        self._wake.set()

    def check_now(self, address: str, named: str) -> bool:
        """Ask the list that a reply named about an address, ahead of its turn; False where no such list is asked."""
        found = [each.name for each in self.registry.enabled if _means(named, each.zone)]
        for name in found:
            self._rota.bring_forward((address, name), self._clock())
        self._wake.set()
        return bool(found)

    def view(self) -> View:
        """How things stand now."""
        health = [self._checker.health(each.name) for each in self.registry.enabled]
        lists = [(one.name, one.usable, one.finding.value) for one in health if one.finding is not None]
        lists += [(each.name, False, "not_checked") for each in self.registry.unchecked]
        waiting = {name: count for name, (count, _) in self._alerts.waiting().items()} if self._alerts else {}
        found = View(self._clock(), dict(self._newest), dict(self._answered), lists, waiting, self.unchecked)
        if self._push is None:
            return found
        stalled = self._push.stalled_since
        return replace(
            found, to_push=self._push.waiting, push_stalled_s=found.now - stalled if stalled is not None else 0.0
        )

    @property
    def unchecked(self) -> list[str]:
        """Critical lists that say nothing of us: they are off, or fail their probes."""
        gone = [f"{each.name} ({each.why})" for each in self.registry.unchecked if each.severity.label == "critical"]
        health = {each.name: self._checker.health(each.name) for each in self.registry.enabled}
        gone += [
            f"{each.name} ({health[each.name].why})"
            for each in self.registry.enabled
            if each.severity.label == "critical" and health[each.name].finding and not health[each.name].usable
        ]
        return gone

    # --- inside -----------------------------------------------------------------------------------------------

    def _examine(self) -> None:
        """Look whether the resolver can be asked through; what its lists did meanwhile counts only if it can."""
        self._moves = []
        try:
            found = diagnose(self._checker, nowhere=self._nowhere)
        finally:
            moves, self._moves = self._moves, None
        unfit = found.rewrites or (found.asked and found.silent == found.asked)
        self.trouble = " ".join(found.faults) if unfit else ""
        if unfit:
            log.error("resolver_unfit", why=self.trouble)
            self._checker = self._make_checker(afresh=True)  # what was seen through it says nothing of lists
            return
        for move in moves:
            self._moved(move)
        for each in self.registry.enabled:
            self._probed(self._checker.health(each.name))

    def _name_unasked(self) -> None:
        if self._alerts is not None:
            self._alerts.unasked = self.registry.unasked

    def _make_checker(self, *, afresh: bool = False) -> Checker:
        """One for the lists as they are now; `afresh` believes what is on disk and not what was seen since."""
        if afresh:
            kept = [each for each in self._state.read(list_health.read) if each.name in self.registry.lists]
            self._failed = {each.name: each.failed_since for each in kept if each.failed_since is not None}
            health = [Health.of(each) for each in kept]
        else:
            health = [self._checker.health(each.name) for each in self.registry.enabled]
        return Checker(
            self.registry, self._servers, moved=self._moved, probed=self._probed, health=health, clock=self._clock,
            rng=self._rng,
        )  # fmt: skip

    def _fill(self) -> None:
        """Put every target on the rota of every list that takes it, and what waits for a second answer first."""
        now = self._clock()
        pairs = {
            (each.text, one.name): one.interval_s
            for each in self.charge.targets
            for one in self.registry.asked_about(each)
        }
        self._rota.put(pairs, now)
        self._answered = {each.text: self._answered.get(each.text, now) for each in self.charge.targets}
        for event in self._events.waiting():
            if event.ask_at is not None:
                self._rota.bring_forward((event.target, event.list), max(now, event.ask_at))

    def _sweep(self) -> None:
        self._examine()
        while self.trouble:
            gevent.sleep(EXAMINE_S)
            self._examine()
        pool = Pool(AT_ONCE)
        try:
            while True:
                self._wake.clear()
                now = self._clock()
                while pool.free_count() and (pair := self._rota.take(now)) is not None:
                    pool.spawn(self._ask, pair)
                due = self._rota.next_at
                if not pool.free_count():
                    pool.wait_available()
                    continue
                self._wake.wait(None if due is None else max(0.0, due - self._clock()))
                if self._error is not None:
                    raise self._error
        finally:
            pool.kill()

    def _ask(self, pair: Pair) -> None:
        try:
            if pair[1] in self.registry.lists and pair[1] not in self.registry.off:
                (check,) = self._held([self._checker.check(pair[0], pair[1])])
                self._take_in(check)
        except Exception as error:  # noqa: BLE001 - raised again where the sweep is at work
            self._error = error
        finally:
            self._rota.asked(pair, self._clock())
            self._wake.set()

    def _take_in(self, check: Check) -> Check:
        pair = (check.target, check.list)
        self._newest[pair] = check
        if check.reliable and check.status is not Answer.ERROR:
            self._heard_at = self._clock()
        if self._counts is not None:
            self._counts.rbl_checked(check.list, check.status.value)
        observed = self._events.observe(check, sure=self._vouched_for(check))
        if observed.unsure:
            check = replace(check, reliable=self._checker.probe(check.list).usable)
            self._newest[pair] = check
            observed = self._events.observe(check)
        if observed.ask_at is not None:
            self._rota.bring_forward(pair, observed.ask_at)
        if check.tells and self.registry.named(check.list).kind is not Kind.WHITE:  # praise says nothing of listings
            self._answered[check.target] = check.at
        if observed.transitions:
            for one in observed.transitions:
                log.warning("listing", change=one.change.value, target=check.target, list=one.event.name)
            self._react()
        return check

    def _held(self, checks: Sequence[Check]) -> Iterator[Check]:
        """Checks that count: a list that lists much of what it answered for has to pass a probe first."""
        newest = self._newest | {(check.target, check.list): check for check in checks}
        names = {check.list for check in checks if check.status is Answer.LISTED}
        suspects = mass_listed(each for each in newest.values() if each.list in names)
        bad = {name for name in suspects if not self._checker.probe(name).usable}
        for check in checks:
            yield replace(check, reliable=False) if check.list in bad else check

    def _moved(self, move: Move) -> None:
        """A list became usable, or ceased to be."""
        if self._moves is not None:
            self._moves.append(move)
        elif move.usable:
            self._recovered(move)
        elif move.finding is Finding.SILENT and self._nobody_answers():
            self._untold[move.list] = move
        else:
            self._fail(move)

    def _recovered(self, move: Move) -> None:
        self._untold.pop(move.list, None)
        if (since := self._failed.pop(move.list, None)) is not None:
            severity = self.registry.named(move.list).severity
            self._events.list_usable(move.list, severity=severity, last_good=since, now=self._clock())
        if not self.trouble:
            return
        self.trouble, untold, self._untold = "", self._untold, {}
        for each in untold.values():  # they are told if they stay silent: an alert about a list waits (alert, rule 5)
            self._checker.health(each.list).hasten(self._clock())
            self._fail(each)

    def _fail(self, move: Move) -> None:
        """Take back what the failure throws doubt on; of what a list said that fell silent, that is nothing."""
        last_good = self._checker.health(move.list).last_good or 0.0
        doubted = frozenset({move.finding.doubted} if move.finding.doubted is not None else ())
        severity, why = self.registry.named(move.list).severity, move.detail or move.finding.value
        transitions = self._events.list_failed(
            move.list, why, last_good=last_good, severity=severity, now=self._clock(), doubted=doubted
        )
        self._failed[move.list] = last_good
        log.warning("list_failed", list=move.list, why=why)
        if transitions:
            self._react()

    def _probed(self, health: Health) -> None:
        """Keep how a list stands, after what followed from it: killed in between, it follows once more."""
        if health.finding not in (None, Finding.SILENT):
            self._heard_at = self._clock()
        if self._moves is None and health.finding is not None:
            kept = health.kept(self._failed.get(health.name))
            self._state.enqueue(lambda conn: list_health.put(conn, kept))

    def _vouched_for(self, check: Check) -> bool:
        last_good = self._checker.health(check.list).last_good
        return last_good is not None and check.at - last_good <= VOUCH_S

    def _nobody_answers(self) -> bool:
        """Whether it is the resolver that is silent, and not a list; looked at once in EXAMINE_S.

        One that answered for any list lately is not, whatever it says of made-up names: it may know these zones alone.
        """
        now = self._clock()
        if now - self._heard_at < HEARD_S:
            return False
        if now - self._examined_at >= EXAMINE_S:
            self._examined_at = now
            made_up = self._checker.asker.ask(f"{secrets.token_hex(12)}.{self._nowhere}")
            told, self.trouble = self.trouble, "The resolver gives no answer." if made_up.error else ""
            if self.trouble and not told:
                log.error("resolver_unfit", why=self.trouble)
        return bool(self.trouble)

    def _look(self) -> None:
        """Orders of running engines, and the ends of dwell times."""
        self._hear(again=True)
        while True:
            self._hear()
            self._probe_due()
            if self._again_at is not None and self._clock() >= self._again_at:
                self._react()
            gevent.sleep(LOOK_EVERY_S)

    def _hear(self, *, again: bool = False) -> None:
        """What running engines ask for; `again`: also what a monitor took that was killed before it answered."""
        now = self._clock()
        for order in self._state.take_orders(ADDRESS, now, again=again):
            asked = self.check_now(str(order.arguments.get("target")), str(order.arguments.get("named")))
            self._state.answer_order(order.id, {"asked": asked}, now)

    def _probe_due(self) -> None:
        """Probes have turns of their own: a list that is seldom asked is to come back before its next question."""
        if self._moves is not None:
            return
        now = self._clock()
        for each in self.registry.enabled:
            if each.name not in self._probing and self._checker.health(each.name).due <= now:
                self._probing.add(each.name)
                self._probes.spawn(self._probe, each)

    def _probe(self, blocklist: BlockList) -> None:
        try:
            self._checker.probe_if_due(blocklist)
        except Exception as error:  # noqa: BLE001 - raised again where the sweep is at work
            self._error = error
            self._wake.set()
        finally:
            self._probing.discard(blocklist.name)

    def _react(self) -> None:
        with self._reacting:  # two events in one moment are one order, and one word about it
            self._again_at = self._hold.react(self.charge, self._clock())

    def _tidy(self) -> None:
        while True:
            self._events.prune(self._clock())
            gevent.sleep(DAY_S)

    def _procedure(self, name: str) -> Procedure | None:
        blocklist = self.registry.lists.get(name)
        if blocklist is None or blocklist.delist.method == "none":
            return None
        way = blocklist.delist
        return Procedure(name, Method(way.method), way.url, way.how, way.cooldown_s or 0.0, way.expires_s)


def _means(named: str, zone: str) -> bool:
    """Whether a list that a reply names is this one: the same zone, or the same operator."""
    told, known = named.lower().rstrip("."), zone.replace("{key}.", "").lower()
    return bool(known) and (told == known or told.endswith(f".{known}") or operator(told) == operator(known))
