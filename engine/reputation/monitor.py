"""Watches what block lists say of us, in a greenlet group of its own: asks, keeps events, reacts, tells people.

1. A sweep never slows probes, and probes never delay a sweep: AT_ONCE checks at most, each a few datagrams, and nothing
   of a run is waited for.
2. Every answer goes through `Events` before anything follows from it; what follows is read back from there. A monitor
   that was killed goes on where it stood, and orders nothing twice.
3. A list that lists much of what it answered for is probed before its answer counts.
4. What a running engine hears of a list (a reply that names one) reaches the monitor as an order of the state,
   whichever process it runs in, and is looked at within seconds.
5. An operator's order outweighs it: what he held stays held, and what he enabled is held again only for a listing
   that opened after that.
6. A resolver that invents answers, or through which nobody answers, is told once and not believed: no list is blamed
   for it, and nobody is called clean.
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
from gevent.monkey import is_module_patched
from gevent.pool import Group, Pool

from engine.core.grammar import rate_text
from engine.core.identity import Identity, Status
from engine.core.identity_breaker import operator
from engine.core.listing import Check
from engine.core.listing import Status as Answer
from engine.core.listing_event import Method
from engine.log import log
from engine.metrics import View
from engine.reputation import alert
from engine.reputation.charge import Charge
from engine.reputation.checker import Checker
from engine.reputation.delist import Procedure
from engine.reputation.delivery import Alerts
from engine.reputation.diagnosis import NOWHERE, diagnose
from engine.reputation.guard import mass_listed
from engine.reputation.health import Finding, Move
from engine.reputation.named import ADDRESS
from engine.reputation.query import Server
from engine.reputation.reaction import BY, Wanted, wanted
from engine.reputation.record import Events
from engine.reputation.registry import Registry
from engine.reputation.rota import Pair, Rota
from engine.store import reputation as tables
from engine.store.standing_order import binds, in_force, place_status, status_of
from engine.store.state import IDENTITY, LIMIT, RESET, Order, State

AT_ONCE = 50
LOOK_EVERY_S = 2.0  # for orders, and for identities whose dwell time is over
DAY_S = 86_400.0
EXAMINE_S = 60.0  # between two looks at a resolver that is unfit


class Count(Protocol):
    """Who counts checks (`engine_rbl_checks_total`)."""

    def rbl_checked(self, name: str, outcome: str) -> None: ...


class Monitor:
    """One machine's watch; `serve` until it is killed, or `once`."""

    def __init__(
        self, state: State, registry: Registry, charge: Charge, *, servers: Sequence[Server] = (),
        alerts: Alerts | None = None, counts: Count | None = None, clock: Callable[[], float] = time.time,
        rng: random.Random | None = None, nowhere: str = NOWHERE,
    ) -> None:  # fmt: skip
        self.trouble = ""  # what is wrong with the resolver
        self.registry = registry
        self.charge = charge
        self._state = state
        self._servers = tuple(servers)
        self._alerts = alerts
        self._counts = counts
        self._clock = clock
        self._rng = rng or random.Random()
        self._events = Events(state, self._procedure)
        self._checker = self._make_checker()
        self._rota = Rota(self._rng.random)
        self._newest: dict[Pair, Check] = {}
        self._failed: dict[str, float] = {}  # lists that are told broken, with their last good probe
        self._again_at: float | None = None  # when an identity's dwell time is over
        self._wake = Event()
        self._error: Exception | None = None
        self._nowhere = nowhere  # where a made-up name must not exist
        self._examined_at = float("-inf")
        self._moves: list[Move] | None = None  # those of an examination, until it is over

    # --- at work ----------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Watch until killed; what goes wrong with us or the disk is raised."""
        if not is_module_patched("socket"):
            raise RuntimeError("the monitor serves only in a process that gevent patched (`engine monitor`)")
        self._fill()
        self._react()
        works: list[Callable[[], None]] = [self._sweep, self._look, self._tidy]
        if self._alerts is not None:
            works.append(self._alerts.serve)
        group = Group()
        for work in works:
            group.spawn(work)
        try:
            gevent.joinall(group.greenlets, raise_error=True, count=1)
        finally:
            group.kill()

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
        self._events.prune(self._clock())
        return sure

    def adopt(self, registry: Registry, charge: Charge) -> None:
        """Other lists or targets from now on; what is known of those that stay is kept."""
        self.registry, self.charge = registry, charge
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
        return View(self._clock(), dict(self._newest), lists, waiting, self.unchecked)

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
            return
        for move in moves:
            self._moved(move)

    def _make_checker(self, *, afresh: bool = False) -> Checker:
        known = None if afresh else getattr(self, "_checker", None)
        health = [known.health(each.name) for each in self.registry.enabled] if known is not None else ()
        return Checker(
            self.registry, self._servers, moved=self._moved, health=health, clock=self._clock, rng=self._rng
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
        for event in self._events.waiting():
            if event.ask_at is not None:
                self._rota.bring_forward((event.target, event.list), max(now, event.ask_at))

    def _sweep(self) -> None:
        self._examine()
        while self.trouble:
            gevent.sleep(EXAMINE_S)
            self._checker = self._make_checker(afresh=True)
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
        if self._counts is not None:
            self._counts.rbl_checked(check.list, check.status.value)
        observed = self._events.observe(check)
        if observed.ask_at is not None:
            self._rota.bring_forward(pair, observed.ask_at)
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
            return
        if move.finding is Finding.SILENT and self._nobody_answers():
            return
        if move.usable:
            self.trouble = ""
        severity, now = self.registry.named(move.list).severity, self._clock()
        if move.usable:
            since = self._failed.pop(move.list, None)
            if since is not None:
                self._events.list_usable(move.list, severity=severity, last_good=since, now=now)
            return
        # Silence throws no doubt on what was said: then nothing is taken back.
        health = self._checker.health(move.list)
        never = health.last_good is None
        since = move.doubtful_since if move.doubtful_since is not None else (0.0 if never else now)
        self._failed[move.list] = since
        why = move.detail or move.finding.value
        self._events.list_failed(move.list, why, last_good=since, severity=severity, now=now)
        log.warning("list_failed", list=move.list, why=why)

    def _nobody_answers(self) -> bool:
        """Whether it is the resolver that is silent, and not a list; looked at once in EXAMINE_S."""
        now = self._clock()
        if now - self._examined_at >= EXAMINE_S:
            self._examined_at = now
            made_up = self._checker.asker.ask(f"{secrets.token_hex(12)}.{self._nowhere}")
            told, self.trouble = self.trouble, "The resolver gives no answer." if made_up.error else ""
            if self.trouble and not told:
                log.error("resolver_unfit", why=self.trouble)
        return bool(self.trouble)

    def _look(self) -> None:
        """Orders of running engines, and the ends of dwell times."""
        while True:
            self._hear()
            if self._again_at is not None and self._clock() >= self._again_at:
                self._react()
            gevent.sleep(LOOK_EVERY_S)

    def _hear(self) -> None:
        now = self._clock()
        for order in self._state.take_orders(ADDRESS, now):
            asked = self.check_now(str(order.arguments.get("target")), str(order.arguments.get("named")))
            self._state.answer_order(order.id, {"asked": asked}, now)

    def _tidy(self) -> None:
        while True:
            self._events.prune(self._clock())
            gevent.sleep(DAY_S)

    # --- what follows -----------------------------------------------------------------------------------------

    def _react(self) -> None:
        """Have every identity stand as its listings ask."""
        now, dwell_s = self._clock(), self.charge.dwell_s
        found = self._state.read(lambda conn: tables.events(conn, closed_since=now - dwell_s - DAY_S))
        orders = self._state.standing_orders(now)
        moments = []
        for identity in self.charge.identities:
            about = [order for order in orders if binds(order, identity)]
            freed = [order for order in about if order.kind == IDENTITY and status_of(order) is Status.ENABLED]
            freed_at = max((order.at for order in freed if order.by != BY), default=0.0)
            its = wanted(identity, [each for each in found if (each.opened_at or 0.0) > freed_at], dwell_s, now)
            moments += [its.again_at] if its.again_at is not None else []
            mine = [order for order in about if order.by == BY or order in freed]
            if self.charge.quarantine:
                self._quarantine(identity, its, in_force(mine, now), now)
            if self.charge.slow is not None:
                self._slow(identity, its, mine, now)
        self._again_at = min(moments, default=None)

    def _quarantine(self, identity: Identity, its: Wanted, mine: Sequence[Order], now: float) -> None:
        held = next((order for order in mine if status_of(order) is Status.QUARANTINED), None)
        if bool(its.quarantine) == (held is not None):
            return
        if self.charge.dry_run:
            log.warning("would_quarantine", identity=identity.name, why=its.quarantine or "released")
            return
        if its.quarantine:
            place_status(self._state, identity.key, Status.QUARANTINED, by=BY, why=its.quarantine, at=now)
            self._events.tell([alert.quarantined(identity.name, its.quarantine, since=now, until=None, now=now)])
        elif held is not None:
            why = "no critical listing any more"
            place_status(self._state, identity.key, Status.ENABLED, by=BY, why=why, at=now, of=BY)
            self._events.tell([alert.released(identity.name, why, since=held.at, now=now)])
        log.warning("reaction", identity=identity.name, quarantined=bool(its.quarantine), why=its.quarantine)

    def _slow(self, identity: Identity, its: Wanted, mine: Sequence[Order], now: float) -> None:
        limits = [order for order in mine if order.kind in (LIMIT, RESET) and not order.arguments.get("provider")]
        slowed = bool(limits) and limits[-1].kind == LIMIT
        if bool(its.slow) == slowed or self.charge.slow is None or self.charge.dry_run:
            return
        kind = LIMIT if its.slow else RESET
        arguments = {"provider": ""} | ({"rate": rate_text(self.charge.slow), "concurrency": None} if its.slow else {})
        why = its.slow or "no such listing any more"
        self._state.place_order(identity.key, kind, arguments, by=BY, why=why, at=now).wait()
        log.warning("reaction", identity=identity.name, slowed=bool(its.slow), why=why)

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
