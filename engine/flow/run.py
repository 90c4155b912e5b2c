"""One run: intake -> survey -> lanes -> sessions -> verdicts -> journal -> rows out.

1. The journal is the truth: lanes are filled from it and results are read back from it.
2. One dispatcher asks the schedule and spawns; nothing else starts a session.
3. A run that stops keeps everything; `resume` is the same run going on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import gevent
from gevent.event import Event
from gevent.pool import Pool

from engine.core.brake import SITES
from engine.core.breaker import BreakerState
from engine.core.hold import Hold
from engine.core.identity import Identity, Job, Mode, Status
from engine.core.lane import Lane, Visit
from engine.core.policy import Policy, PolicySet
from engine.core.schedule import Schedule, Wait
from engine.flow.dial import Desk, reach
from engine.flow.guard import Guard, PortClosed
from engine.flow.knock import knock
from engine.flow.memory import Memory
from engine.flow.supply import Supply
from engine.flow.survey import Survey, forbidden
from engine.flow.visit import Call
from engine.log import log
from engine.metrics import LaneState, LaneView, Metrics
from engine.net.resolver import Resolver
from engine.store.journal import Journal
from engine.store.state import State

DRAIN_S = 20.0  # what sessions in flight get to end politely when a run stops


@dataclass(slots=True)
class Snapshot:
    """How far a run is, for those who watch it."""

    phase: str = "reading"
    sessions: int = 0
    lanes: int = 0
    paused: dict[str, str] = field(default_factory=dict)  # lane -> why it waits


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is told from outside, beside its job."""

    identity: Identity | None
    policies: PolicySet
    port: int = 25
    concurrency: int = 500
    connect: bool = True
    deadline_s: float | None = None
    one_attempt: bool = False


class Run:
    """Probes what the journal holds. `probe` returns when nothing is left to ask, or after `stop`."""

    def __init__(
        self,
        job: Job,
        settings: Settings,
        journal: Journal,
        state: State,
        resolver: Resolver,
        *,
        metrics: Metrics | None = None,
        transcript: Callable[[str, str, float], None] | None = None,
    ) -> None:
        self.job = job
        self.settings = settings
        self.journal = journal
        self.state = state
        self.resolver = resolver
        self.snapshot = Snapshot()
        self.schedule = Schedule()
        self._pool = Pool(settings.concurrency)
        self._wake = Event()
        self._stopped = ""
        self._failed: Exception | None = None
        self._breakers: dict[str, BreakerState] = {}  # of each lane whose breaker has moved, as last told
        self._doubting: gevent.Greenlet | None = None
        began = time.time() - time.monotonic()
        identity = settings.identity or Identity("none", "", "")

        def wall() -> float:  # a wall clock that is set while the run lasts moves nothing
            return began + time.monotonic()

        def jitter() -> float:
            return random.uniform(0, 0.1)

        self._memory = Memory(state, identity.key, time.monotonic, wall)
        self._supply = Supply(journal, state, settings.policies, self.schedule, job.mode, self._memory, wall)
        self._guard = Guard(
            self.schedule, self._supply.sites, self._memory, time.monotonic, jitter, self._doubt, self._wake.set
        )
        self._desk = Desk(
            job=job, identity=identity, policies=settings.policies,
            journal=journal, state=state, secret=state.secret(), port=settings.port, clock=time.monotonic,
            wall=wall, stamp=stamp, jitter=jitter, metrics=metrics or Metrics(), guard=self._guard,
            memory=self._memory, transcript=transcript, one_attempt=settings.one_attempt, failed=self.fail,
            suspect=bool(journal.get("suspect")),
        )  # fmt: skip

    # --- phases -----------------------------------------------------------------------------------------------

    def survey(self) -> int:
        """Resolve every domain that has no route yet; says how many."""
        self.snapshot.phase = "resolving"
        settings = self.settings
        tags = settings.identity.pool_tags if settings.identity else frozenset()
        survey = Survey(self.job.mode, settings.policies, self.resolver, tags, settings.connect, time.time)
        return survey.run(self.journal, self.state, stamp, lambda: bool(self._stopped))

    def probe(self) -> bool:
        """Ask whatever waits; True when nothing is left, False after `stop`."""
        self.snapshot.phase = "probing"
        for key, unbacked in self.journal.last_sites(SITES):
            self._desk.brake.answered(key, unbacked=unbacked)
        limit, give_up_s = self._deadline(), self.settings.policies.default.retry.give_up_s
        while not self._stopped:
            now = time.monotonic()
            deadline, ending = _earlier(limit, self._guard.ending(give_up_s, busy=bool(len(self._pool))))
            if deadline is not None and now >= deadline:
                self.drain()
                self.journal.end(ending, stamp()).wait()
                log.warning("run_ended", ending=ending)
                break
            self._supply.fill(now)
            self._wake.clear()
            turn = self._guard.next(now) if self._pool.free_count() else Wait(None)
            if isinstance(turn, Visit):
                self._desk.metrics.lane_waited(turn.lane.policy.name, self._desk.identity.name, turn.waited_s)
                self._note(turn.lane)
                session = gevent.Greenlet(self._visit, turn)
                session.link(lambda _: self._wake.set())  # after the pool has let it go
                self._pool.start(session)
                continue
            if not self._waits():
                break
            if turn.until is None and not len(self._pool) and self._supply.look_at is None and self._unstick():
                continue
            moments = [moment for moment in (turn.until, deadline, self._supply.look_at) if moment is not None]
            self._wake.wait(min(moments) - now if moments else None)
        self.drain()
        if self._failed is not None:
            raise self._failed
        if self._stopped:
            return False
        self._conclude()
        return True

    def _conclude(self) -> None:
        """The work is done, or ended: what is provisional still gets what its evidence is worth.

        Refusals in a lane that is still in doubt, or not through with its work, are no verdicts; nor is an acceptance
        whose control was never answered.
        """
        for lane in self.schedule.lanes.values():
            self.journal.end("deadline_exceeded", stamp(), lane=lane.key)
        self.journal.settle_refused("refusals_suspect" if self._desk.suspect else "rcpt_rejected")
        self.journal.end("cancelled", stamp()).wait()

    def stop(self, why: str = "stopped") -> None:
        """Start nothing more; sessions in flight end by QUIT. Safe to call from a signal's greenlet."""
        self._stopped = self._stopped or why
        self._desk.draining = True
        self._wake.set()

    def adopt(self, policies: PolicySet) -> int:
        """Other policies from now on, for lanes at work too; says how many lanes they change. See `flow.reload`."""
        self.settings = replace(self.settings, policies=policies)
        self._desk.policies = policies
        changed = self._supply.adopt(policies, time.monotonic())
        for policy in (policies.default, *policies.policies):
            self._refuse(policy)
        self._wake.set()
        return changed

    @property
    def held(self) -> Hold:
        """What an order about the identity lets this run do."""
        return self._guard.hold

    def hold(self, status: Status, why: str = "", lasts_s: float | None = None) -> int:
        """Obey an order about the identity from now on; says how many sessions are open. See `flow.standing`."""
        now = time.monotonic()
        self._guard.hold.put(status, now, why=why, until=None if lasts_s is None else now + lasts_s)
        log.warning("identity_held", identity=self._desk.identity.name, status=status.value, why=why)
        self._wake.set()
        return len(self._pool)

    def ask_first(self, key: str) -> None:
        """Put an address of the journal ahead of the queues, within the same limits (an order's `check`)."""
        self._supply.ask_first(key, time.monotonic())
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """Stop because of a fault; `probe` raises the first one after sessions in flight have ended."""
        self._failed = self._failed or error
        self.stop("failed")

    def watch(self) -> Snapshot:
        """The state of the run now."""
        self.snapshot.sessions = len(self._pool)
        self.snapshot.lanes = len(self.schedule.lanes)
        self.snapshot.paused = {
            lane.key: lane.breaker.cause for lane in self.schedule.lanes.values() if lane.breaker.cause
        }
        if self._guard.breaker.stops:
            self.snapshot.paused[self._desk.identity.name] = self._guard.breaker.breaker.cause
        if not self.held.starts:
            self.snapshot.paused[self._desk.identity.name] = self.held.why
        return self.snapshot

    def lanes(self) -> Iterator[LaneView]:
        """Every lane as it is now, for a scrape, which lets others run between two of them."""
        now = time.monotonic()
        for lane in list(self.schedule.lanes.values()):
            yield LaneView(
                lane.policy.name, self._desk.identity.name, _state(lane, now), lane.queue.waiting, lane.open_sessions,
                lane.budget.used_ratio(now), lane.pace.rate_per_s,
            )  # fmt: skip

    def _deadline(self) -> tuple[float | None, str]:
        """When what still waits ends, and as what: by --deadline, or because the consent allows no more."""
        now, moments = time.monotonic(), []
        if self.settings.deadline_s is not None:
            moments.append((now + self.settings.deadline_s, "deadline_exceeded"))
        consent = self.job.consent
        if consent is not None and consent.expires is not None:
            moments.append((now + (consent.expires - datetime.now(UTC)).total_seconds(), "consent_expired"))
        return min(moments) if moments else (None, "")

    # --- sessions ---------------------------------------------------------------------------------------------

    def _visit(self, visit: Visit) -> None:
        lane = visit.lane
        try:
            site = self._supply.sites[visit.site]
            if self.job.mode is Mode.STANDARD:
                knock(self._desk, visit, site)
            else:
                Call(self._desk, visit, site).run()
            self._guard.ended(visit, time.monotonic())
            if self._guard.egress.closed:
                self.fail(PortClosed(self.settings.port))
            self._after(lane)
        except Exception as error:  # noqa: BLE001 - a fault of ours or of the disk ends the run, and nothing is lost
            self.fail(error)

    def _after(self, lane: Lane) -> None:
        """A session ended: more work from the journal, endings, and the lane's new place in the heap."""
        now = time.monotonic()
        self._refuse(lane.policy)
        self._supply.refill(lane, now)
        self._note(lane)
        self._give_up(lane, now)
        self.schedule.touch(lane, now)
        if self._supply.finished(lane):
            self._supply.retire(lane)
            self._breakers.pop(lane.key, None)

    def _refuse(self, policy: Policy) -> None:
        """What waits under a policy that has come to forbid RCPT gets its verdict, lanes with open sessions later."""
        tags = self.settings.identity.pool_tags if self.settings.identity else frozenset()
        refused = forbidden(policy, tags) if self.job.mode is Mode.ENHANCED else None
        if refused is not None:
            busy = self._supply.drop(policy.name, time.monotonic())
            self.journal.settle_policy(policy.name, *refused, stamp(), busy).wait()

    def _give_up(self, lane: Lane, now: float) -> None:
        """What stayed closed to us for the policy's give_up in one piece ends what waits there."""
        give_up_s, queue = lane.policy.retry.give_up_s, lane.queue
        if lane.breaker.gives_up(now, give_up_s):
            for domain in list(queue.domains.values()):
                queue.drop_domain(domain)
            self._supply.forget_more(lane)
            self.journal.end("provider_paused", stamp(), lane=lane.key)
            log.warning("given_up", lane=lane.key, ending="provider_paused", cause=lane.breaker.cause)
            return
        for domain in [domain for domain in queue.held() if domain.hold and domain.hold.gives_up(now, give_up_s)]:
            queue.drop_domain(domain)
            self.journal.end("domain_refuses_us", stamp(), domain_id=domain.id)
            cause = domain.hold.cause if domain.hold else ""
            log.warning("given_up", lane=lane.key, domain=domain.name, ending="domain_refuses_us", cause=cause)
            domain.hold = None
            queue.forget(domain)

    def _note(self, lane: Lane) -> None:
        """Tell a move of the lane's breaker, once."""
        breaker = lane.breaker
        if breaker.state is self._breakers.get(lane.key, BreakerState.CLOSED):
            return
        self._breakers[lane.key] = breaker.state
        self._desk.metrics.breaker_moved(lane.policy.name, self._desk.identity.name, breaker.state)
        facts: dict[str, str | int] = {"lane": lane.key, "provider": lane.policy.name}
        if breaker.state is BreakerState.OPEN:
            facts |= {"cause": breaker.cause, "for_s": max(0, round(breaker.until - time.monotonic()))}
        tell = log.debug if breaker.state is BreakerState.HALF_OPEN else log.warning  # an attempt is no news
        tell("breaker_moved", to=breaker.state.value, **facts)

    def _doubt(self) -> None:
        """So many connects time out that the way out may be closed: ask those who answered last."""
        if self._doubting is None or self._doubting.dead:
            self._doubting = gevent.spawn(self._ask_witnesses)

    def _ask_witnesses(self) -> None:
        try:
            before, witnesses = self._guard.connections, self._guard.witnesses()
            reached = any(reach(self._desk, lane, site) for lane, site in witnesses)
            if witnesses and not reached and self._guard.connections == before:
                self._guard.closed()
        except Exception as error:  # noqa: BLE001 - as in a session
            self.fail(error)
        self._wake.set()

    def _unstick(self) -> bool:
        """Nothing runs and no moment is known: let idle lanes go; one that has work would be a fault of ours.

        But for an order that holds the identity: then it waits for that one's end. False where no lane went.
        """
        before = len(self.schedule.lanes)
        for lane in list(self.schedule.lanes.values()):
            if lane.idle:
                self._supply.retire(lane)
            elif self._guard.hold.starts:
                raise RuntimeError(f"{lane!r} waits for nothing: {lane.queue!r} {lane.brake!r} {lane.breaker!r}")
        return len(self.schedule.lanes) < before

    def _waits(self) -> bool:
        return bool(len(self._pool)) or bool(self.schedule.lanes) or self._supply.look_at is not None

    def drain(self) -> None:
        """Let sessions in flight end by QUIT, for a while; the rest is cut."""
        self._desk.draining = True
        if self._doubting is not None:
            self._doubting.kill(timeout=1.0)
        self._pool.join(timeout=DRAIN_S)
        self._pool.kill(timeout=1.0)
        self._memory.save(self.schedule.lanes.values())
        self._memory.save_identity(self._guard.breaker)


def _earlier(one: tuple[float | None, str], other: tuple[float | None, str]) -> tuple[float | None, str]:
    """The ending that comes first; its moment is None where neither does."""
    if one[0] is None or (other[0] is not None and other[0] < one[0]):
        return other
    return one


def _state(lane: Lane, now: float) -> LaneState:
    """Its breaker's state; where that is closed, what the lane waits for."""
    if lane.breaker.state is not BreakerState.CLOSED:
        return LaneState(lane.breaker.state.value)
    return _WAITS.get(lane.waits_for(now), LaneState.CLOSED)


_WAITS = {
    "refusals.rate": LaneState.WAITING_BUDGET,
    "recipients.rate": LaneState.WAITING_RATE,
    "sessions.rate": LaneState.WAITING_RATE,
}


def stamp(at: float | None = None) -> str:
    """A moment as results and audit rows write it: UTC, RFC 3339, milliseconds."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
