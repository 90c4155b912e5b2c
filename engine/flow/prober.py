"""One identity's part of a run: its lanes, the limits and breakers above them, and the desk that its visits share.

1. Identities share the journal, the machine's state and the pool of sessions, and nothing that is asked or limited: a
   site is asked by one of them, and each has lanes, caps, breakers and budgets of its own.
2. It starts nothing by itself: `Run` asks each in turn what may start, and spawns.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import gevent

from engine.core.brake import SITES
from engine.core.breaker import BreakerState
from engine.core.caps import Caps
from engine.core.hold import Hold
from engine.core.identity import Identity, Job, Mode, Status
from engine.core.lane import Lane, Visit
from engine.core.policy import Policy, PolicySet
from engine.core.reasons import REASONS, Fault
from engine.core.schedule import Schedule, Wait
from engine.families import LaneState
from engine.flow.closure import GIVE_UP_EVERY_S, Closures
from engine.flow.desk import Desk
from engine.flow.dial import reach
from engine.flow.guard import Guard, PortClosed
from engine.flow.knock import knock
from engine.flow.memory import Memory
from engine.flow.supply import Supply
from engine.flow.survey import asker_of, forbidden, reaches, unpack_hosts
from engine.flow.visit import Call
from engine.log import log
from engine.metrics import Metrics
from engine.reputation.named import Named
from engine.store.job_tables import Site
from engine.store.journal import Journal
from engine.store.state import State
from engine.views import LaneView


@dataclass(frozen=True, slots=True)
class Shared:
    """What the probers of a run have in common. `wall` is seconds since the epoch, `stamp` RFC 3339."""

    job: Job
    journal: Journal
    state: State
    port: int
    metrics: Metrics
    wall: Callable[[], float]
    stamp: Callable[[], str]
    wake: Callable[[], object]
    fail: Callable[[Exception], None]
    transcript: Callable[[str, str, float], None] | None = None
    one_attempt: bool = False
    concurrency: int = 500


class Prober:
    """Asks in the name of one identity; `identity` is None where nobody is asked by name."""

    def __init__(self, shared: Shared, identity: Identity | None, policies: PolicySet) -> None:
        self.identity = identity or Identity("none", "", "")
        self.policies = policies
        self.schedule = Schedule()
        self.open_sessions = 0
        self.released = False  # an order holds it, and others have taken what was never asked
        self.ended = ""  # the ending of all that waits under this identity, once it was given up
        self._shared = shared
        self._rescued_at = float("-inf")  # when a lane was last found that could start and that nobody looked at
        self._doubting: gevent.Greenlet | None = None
        self._watching: gevent.Greenlet | None = None
        key, wall, journal = self.identity.key, shared.wall, shared.journal
        self._lists = Named(shared.state, self.identity.addresses)
        self._memory = Memory(shared.state, key, time.monotonic, wall)
        warmup = self.identity.warmup
        self._caps = Caps(policies, identity, warmup.began_at - wall() + time.monotonic() if warmup else 0.0)
        self._supply = Supply(
            journal, shared.state, policies, self._caps, self.schedule, shared.job.mode, self._memory, key,
            time.monotonic, wall, shared.concurrency,
        )  # fmt: skip
        self._closures = Closures(self.schedule, self._supply, journal, shared.metrics, self.identity, shared.stamp)
        self._guard = Guard(
            self.schedule, self._supply.sites, self._memory, time.monotonic, _jitter, self._doubt, shared.wake,
            self._caps.identity, self._tell_named,
        )  # fmt: skip
        self._desk = Desk(
            job=shared.job, identity=self.identity, policies=policies, journal=journal, state=shared.state,
            secret=shared.state.secret(), port=shared.port, clock=time.monotonic, wall=wall, stamp=shared.stamp,
            jitter=_jitter, metrics=shared.metrics, guard=self._guard, memory=self._memory, admit=self._admit,
            transcript=shared.transcript, one_attempt=shared.one_attempt, failed=shared.fail,
            suspect=bool(journal.get(f"suspect {key}")),
        )  # fmt: skip

    # --- the run's side ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before its first turn."""
        for key, unbacked in self._shared.journal.last_sites(SITES, self.identity.key):
            self._desk.brake.answered(key, key, unbacked=unbacked)
        self._watching = gevent.spawn(self._watch_closed)

    def next(self, now: float) -> Visit | Wait:
        """Start the visit whose turn it is, or say how long to wait."""
        return Wait(None) if self.ended else self._guard.next(now)

    def fill(self, now: float) -> None:
        """Take in work from the journal, where it is time."""
        if not self.ended and not self.released:
            self._supply.fill(now)

    @property
    def look_at(self) -> float | None:
        """When to take in work again; None when the journal holds no more."""
        return None if self.ended or self.released else self._supply.look_at

    @property
    def waits(self) -> bool:
        """Whether something is left to ask."""
        return not self.ended and (self.released or bool(self.schedule.lanes) or self._supply.look_at is not None)

    @property
    def able(self) -> bool:
        """Whether it may take over what another identity may not ask."""
        return not self.ended and self.hold.starts and not self._guard.breaker.stops

    @property
    def to_release(self) -> bool:
        """Whether an order holds it, its sessions are over, and its work was not offered to others yet."""
        return not self.hold.starts and not self.open_sessions and not self.released and not self.ended

    def release(self, others: Sequence[Prober]) -> int:
        """Leave to other identities what was never asked, at sites that did not refuse this one; says how much.

        What was asked from here is never asked from elsewhere, and a site that refuses us is left alone by all: this
        is for work that can't be done, not a way around a block.
        """
        self._supply.reset()
        self.released = True
        refused = [code for code, reason in REASONS.items() if reason.fault is Fault.US]
        moves = []
        for site in self._shared.journal.untouched(self.identity.key, refused):
            policy = self.policies.named(site.policy) or self.policies.default
            taker = asker_of(site.key, [each.identity for each in others if each.may_ask(policy, site)])
            if taker is not None:
                moves.append((site, taker.key))
        moved = self._shared.journal.hand_over(moves)
        for other in others:
            other.take_over()
        log.warning("handed_over", identity=self.identity.name, addresses=moved, why=self.hold.why)
        return moved

    def take_over(self) -> None:
        """Another identity left sites to this one."""
        self._supply.look_anew()

    def may_ask(self, policy: Policy, site: Site) -> bool:
        """Whether this identity may and can ask at a site."""
        allowed = self._shared.job.mode is Mode.STANDARD or forbidden(policy, self.identity.pool_tags) is None
        return allowed and reaches(self.identity, unpack_hosts(site.hosts))

    def ending(self) -> tuple[float | None, str]:
        """When all that waits ends because everybody stayed closed to this identity, and as what."""
        give_up_s = self.policies.default.retry.give_up_s
        return (None, "") if self.ended else self._guard.ending(give_up_s, busy=bool(self.open_sessions))

    def end(self, ending: str) -> None:
        """Ask nothing more under this identity: what waits ends so when the run does."""
        self.ended = ending
        self._desk.draining = True
        log.warning("identity_ended", identity=self.identity.name, ending=ending)

    def started(self, visit: Visit) -> None:
        """A visit of its got a place in the pool."""
        self.open_sessions += 1
        self._memory.charged(visit.caps)
        self._desk.metrics.lane_waited(visit.lane.policy.name, self.identity.name, visit.waited_s)
        self._closures.tell(visit.lane, visit.caps)
        self._closures.tell_identity(self._guard.breaker.breaker)

    def visit(self, visit: Visit) -> None:
        """Make a visit; whatever goes wrong with us or the disk ends the run."""
        try:
            site = self._supply.sites[visit.site]
            if self._shared.job.mode is Mode.STANDARD:
                knock(self._desk, visit, site)
            else:
                Call(self._desk, visit, site).run()
            self._guard.ended(visit, time.monotonic())
            if self._guard.egress.closed:
                self._shared.fail(PortClosed(self._shared.port))
            self._after(visit)
        except Exception as error:  # noqa: BLE001 - a fault of ours or of the disk ends the run, and nothing is lost
            self._shared.fail(error)
        finally:
            self.open_sessions -= 1

    def unstick(self) -> bool:
        """Nothing runs and no moment is known: let idle lanes go; one that has work would be a fault of ours.

        But for an order that holds the identity: then it waits for that one's end. False where no lane went.
        """
        before, now = len(self.schedule.lanes), time.monotonic()
        for lane in list(self.schedule.lanes.values()):
            if lane.idle:
                self._supply.retire(lane)
            elif lane.ready_at(now) is not None and now - self._rescued_at > 1.0:  # it was overlooked: look again
                self._rescued_at = now
                self.schedule.touch(lane, now)
                log.warning("lane_overlooked", lane=lane.key)
                return True
            elif self.hold.starts and not self.ended:
                raise RuntimeError(f"{lane!r} waits for nothing: {lane.queue!r} {lane.brake!r} {lane.breaker!r}")
        return len(self.schedule.lanes) < before

    def stop(self) -> None:
        """Ask nothing more; sessions in flight say QUIT."""
        self._desk.draining = True

    def drain(self) -> None:
        """Stop, and look after nothing any more."""
        self.stop()
        for greenlet in (self._doubting, self._watching):
            if greenlet is not None:
                greenlet.kill(timeout=1.0)

    def save(self) -> None:
        """Keep for the next run what this one was told."""
        self._memory.save(self.schedule.lanes.values(), self._caps)
        self._memory.save_identity(self._guard.breaker)

    def conclude(self) -> None:
        """The work is done, or ended: what is provisional still gets what its evidence is worth.

        Refusals in a lane that is still in doubt, or not through with its work, are no verdicts.
        """
        journal, key, at = self._shared.journal, self.identity.key, self._shared.stamp()
        if self.ended:
            journal.end(self.ended, at, identity=key)
        for lane in self.schedule.lanes.values():
            journal.end("deadline_exceeded", at, lane=lane.key, identity=key)
        journal.settle_refused("refusals_suspect" if self._desk.suspect else "rcpt_rejected", identity=key)

    # --- what changes under a run -----------------------------------------------------------------------------

    def adopt(self, policies: PolicySet) -> int:
        """Other policies from now on, for lanes at work too; says how many lanes they change. See `flow.reload`."""
        self.policies = self._desk.policies = policies
        changed = self._supply.adopt(policies, time.monotonic())
        for policy in (policies.default, *policies.policies):
            self._refuse(policy)
        self._shared.wake()
        return changed

    @property
    def hold(self) -> Hold:
        """What an order about the identity lets it do."""
        return self._guard.hold

    @property
    def refused(self) -> bool:
        """Whether its breaker is open: so many refuse the identity that it starts nothing."""
        return self._guard.breaker.stops

    @property
    def status(self) -> Status:
        """What the identity may do now: what an order says, else its file."""
        return self.identity.status if self.hold.starts else self.hold.status

    def obey(self, status: Status, why: str = "", lasts_s: float | None = None) -> int:
        """Obey an order about the identity from now on; says how many sessions are open. See `flow.standing`."""
        now = time.monotonic()
        if status is Status.ENABLED:
            self.released = False
        self.hold.put(status, now, why=why, until=None if lasts_s is None else now + lasts_s)
        log.warning("identity_held", identity=self.identity.name, status=status.value, why=why)
        self._shared.wake()
        return self.open_sessions

    def reserve(self, item_id: int) -> None:
        """An address that was just added to the journal is for `ask_first` alone."""
        self._supply.reserve(item_id)

    def ask_first(self, key: str) -> None:
        """Put an address of the journal ahead of the queues, within the same limits, if its site is this one's."""
        self._supply.ask_first(key, time.monotonic())
        self._shared.wake()

    # --- who watches ------------------------------------------------------------------------------------------

    def paused(self) -> dict[str, str]:
        """Why lanes, or all of them, start nothing."""
        found = {lane.key: cause for lane in self.schedule.lanes.values() if (cause := _closed_by(lane))}
        if self._guard.breaker.stops:
            found[self.identity.name] = self._guard.breaker.breaker.cause
        if not self.hold.starts:
            found[self.identity.name] = self.hold.why
        return found

    def lanes(self) -> Iterator[LaneView]:
        """Every lane as it is now, for a scrape, which lets others run between two of them."""
        now = time.monotonic()
        for lane in list(self.schedule.lanes.values()):
            yield LaneView(
                lane.policy.name, self.identity.name, _state(lane, now), lane.queue.waiting, lane.open_sessions,
                lane.budget.used_ratio(now), lane.pace.rate_per_s,
            )  # fmt: skip

    # --- inside -----------------------------------------------------------------------------------------------

    def _admit(self, visit: Visit, host: str, ip: str) -> bool:
        """Whether a visit may dial this address: all of its caps grant it, with what earlier runs knew of them."""
        before, caps = visit.caps, self._caps.reach(visit.lane, host, ip)
        self._memory.restore(self._caps)
        admitted = self._caps.admit(self.schedule, visit, caps, time.monotonic())
        if visit.caps != before:
            self._memory.charged(visit.caps)
        return admitted

    def _after(self, visit: Visit) -> None:
        """A session ended: more work from the journal, endings, and the lane's new place in the heap."""
        now, lane = time.monotonic(), visit.lane
        self._refuse(lane.policy)
        self._supply.refill(lane, now)
        self._closures.tell(lane, visit.caps)
        self._closures.tell_identity(self._guard.breaker.breaker)
        self._closures.give_up(lane, now)
        self.schedule.touch(lane, now, visit.caps)
        self._caps.done(visit, now)
        self._closures.leave(lane)

    def _refuse(self, policy: Policy) -> None:
        """What waits under a policy that has come to forbid RCPT gets its verdict, lanes with open sessions later."""
        refused = forbidden(policy, self.identity.pool_tags) if self._shared.job.mode is Mode.ENHANCED else None
        if refused is not None:
            busy = self._supply.drop(policy.name, time.monotonic())
            self._shared.journal.settle_policy(
                policy.name, *refused, self._shared.stamp(), busy, identity=self.identity.key
            ).wait()

    def _watch_closed(self) -> None:
        """What nobody visits any more is given up all the same."""
        try:
            while True:
                gevent.sleep(GIVE_UP_EVERY_S)
                if self._closures.look():
                    self._shared.wake()
        except Exception as error:  # noqa: BLE001 - as in a session
            self._shared.fail(error)

    def _tell_named(self, named: str) -> None:
        """A reply named a block list: whoever watches asks that list at once."""
        if self._lists.tell(named, self._shared.wall()):
            log.warning("list_named", identity=self.identity.name, named=named)

    def _doubt(self) -> None:
        """So many connects time out that the way out may be closed: ask those who answered last."""
        if self._doubting is None or self._doubting.dead:
            self._doubting = gevent.spawn(self._ask_witnesses)

    def _ask_witnesses(self) -> None:
        try:
            before, witnesses = self._guard.connections, self._guard.witnesses()
            reached = any(reach(self._desk, lane, site) for lane, site in witnesses)
            for lane in {lane for lane, _ in witnesses}:  # what the greetings held is free again
                if self.schedule.lanes.get(lane.key) is lane:
                    self.schedule.touch(lane, time.monotonic())
                    self._closures.leave(lane)
            if witnesses and not reached and self._guard.connections == before:
                self._guard.closed()
                self._closures.tell_identity(self._guard.breaker.breaker)
        except Exception as error:  # noqa: BLE001 - as in a session
            self._shared.fail(error)
        self._shared.wake()


def _jitter() -> float:
    return 0.1 * random.random()


def _closed_by(lane: Lane) -> str:
    """Why its breaker, or that of a provider or address that it leads to, lets nothing start; empty where none does."""
    return next((cap.breaker.cause for cap in lane.caps if cap.breaker is not None and cap.breaker.cause), "")


def _state(lane: Lane, now: float) -> LaneState:
    """Its breaker's state; where that is closed, what the lane waits for."""
    if lane.breaker.state is not BreakerState.CLOSED:
        return LaneState(lane.breaker.state.value)
    return _WAITS.get(lane.waits_for(now), LaneState.CLOSED)


_WAITS = {
    "breaker.open": LaneState.OPEN,  # of a provider or address that it leads to
    "limits.refusals": LaneState.WAITING_BUDGET,
    "warmup": LaneState.WAITING_BUDGET,
    "limits.sessions": LaneState.WAITING_RATE,
    "refusals.rate": LaneState.WAITING_BUDGET,
    "recipients.rate": LaneState.WAITING_RATE,
    "sessions.rate": LaneState.WAITING_RATE,
}
