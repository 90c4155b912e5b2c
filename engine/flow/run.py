"""One run: intake -> survey -> lanes -> sessions -> verdicts -> journal -> rows out.

1. The journal is the truth: lanes are filled from it and results are read back from it.
2. One dispatcher asks the schedule and spawns; nothing else starts a session.
3. A run that stops keeps everything; `resume` is the same run going on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import gevent
from gevent.event import Event
from gevent.pool import Pool

from engine.core.control import ControlAnswer
from engine.core.identity import Identity, Job, Mode
from engine.core.lane import Item, Lane, Visit
from engine.core.policy import PolicySet
from engine.core.schedule import Schedule, Wait
from engine.flow.dial import Desk, SiteHosts
from engine.flow.knock import knock
from engine.flow.survey import Survey, unpack_hosts
from engine.flow.visit import Call
from engine.net.resolver import Resolver
from engine.store.journal import WAITING, Journal, Pending, Site
from engine.store.state import State

IN_MEMORY = 50_000  # addresses that lanes hold at a time; the rest waits in the journal
SITES_AT_ONCE = 500  # sites a journal read takes in
SITE_SHARE = 1_000  # addresses of one site in memory
FILL_EVERY_S = 0.5  # how often memory is looked at for room, while the journal holds more
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
        self._sites: dict[str, SiteHosts] = {}
        self._wake = Event()
        self._stopped = ""
        self._loaded: dict[int, int] = {}  # site id -> last address id in memory, where the journal has more
        self._fill_at = 0.0
        self._cursor: int | None = 0  # last site taken in; None when all are
        self._desk = Desk(
            job=job, identity=settings.identity or Identity("none", "", ""), policies=settings.policies,
            journal=journal, state=state, secret=state.secret(), port=settings.port, clock=time.monotonic,
            wall=time.time, stamp=stamp, jitter=lambda: random.uniform(0, 0.1), transcript=transcript,
            one_attempt=settings.one_attempt,
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
        deadline = None if self.settings.deadline_s is None else time.monotonic() + self.settings.deadline_s
        while not self._stopped:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                self._drain()
                self.journal.end("deadline_exceeded", stamp()).wait()
                break
            self._fill(now)
            self._wake.clear()
            turn = self.schedule.next(now) if self._pool.free_count() else Wait(None)
            if isinstance(turn, Visit):
                session = gevent.Greenlet(self._visit, turn)
                session.link(lambda _: self._wake.set())  # after the pool has let it go
                self._pool.start(session)
                continue
            if not self._waits():
                break
            refill = None if self._cursor is None else self._fill_at
            moments = [moment for moment in (turn.until, deadline, refill) if moment is not None]
            self._wake.wait(min(moments) - now if moments else None)
        self._drain()
        if self._stopped:
            return False
        self.journal.settle_refused(None, "refusals_suspect" if self._desk.suspect else "rcpt_rejected").wait()
        return True

    def stop(self, why: str = "stopped") -> None:
        """Start nothing more; sessions in flight end by QUIT. Safe to call from a signal's greenlet."""
        self._stopped = self._stopped or why
        self._desk.draining = True
        self._wake.set()

    def ask_first(self, key: str) -> None:
        """Put an address of the journal ahead of the queues, within the same limits (an order's `check`)."""
        row, now = self.journal.row_of(key), time.monotonic()
        if row is None or row["state"] != WAITING or row["site_id"] is None:
            return
        site = self.journal.site(row["site_id"])
        lane = self._lane(site)
        self._sites.setdefault(site.key, SiteHosts(site.id, site.key, unpack_hosts(site.hosts)))
        if row["domain"] not in lane.domains:
            self._meet(lane, site.key, {row["domain"]: row["domain_id"]})
        lane.add(Item(row["id"], row["local"], row["domain"]), now, first=True)
        self.schedule.touch(lane, now)
        self._wake.set()

    def watch(self) -> Snapshot:
        """The state of the run now."""
        self.snapshot.sessions = len(self._pool)
        self.snapshot.lanes = len(self.schedule.lanes)
        self.snapshot.paused = {
            lane.key: lane.breaker.cause for lane in self.schedule.lanes.values() if lane.breaker.cause
        }
        return self.snapshot

    # --- lanes ------------------------------------------------------------------------------------------------

    def _fill(self, now: float) -> None:
        """Take sites and addresses out of the journal while there is room in memory."""
        if self._cursor is None or now < self._fill_at:
            return
        self._fill_at = now + FILL_EVERY_S
        held = sum(lane.waiting for lane in self.schedule.lanes.values())
        while self._cursor is not None and held < IN_MEMORY:
            sites = self.journal.sites(self._cursor, SITES_AT_ONCE)
            for site in sites:
                held += self._take_in(site, now)
            self._cursor = sites[-1].id if len(sites) == SITES_AT_ONCE else None

    def _take_in(self, site: Site, now: float) -> int:
        lane = self._lane(site)
        self._sites[site.key] = SiteHosts(site.id, site.key, unpack_hosts(site.hosts))
        if self.job.mode is Mode.STANDARD:
            lane.domain(site.key, 0, site.key).control = ControlAnswer.REFUSES
            lane.add(Item(-site.id, "", site.key), now)
            self.schedule.touch(lane, now)
            return 1
        pending = self._load(lane, site.key, site.id, 0, now)
        for domain_id, name in self.journal.unconfirmed(site.id):
            lane.want_control(lane.domain(name, domain_id, site.key), now, now)
        for name, words in self.journal.unbacked(site.id):
            lane.brake.refused(name, words, now)
        self.schedule.touch(lane, now)
        if lane.idle:
            self._retire(lane)
        return pending

    def _lane(self, site: Site) -> Lane:
        lane = self.schedule.lanes.get(site.lane)
        if lane is None:
            policy = self.settings.policies.named(site.policy) or self.settings.policies.default
            lane = Lane(site.lane, policy)
            self._restore(lane)
            self.schedule.add(lane)
        return lane

    def _restore(self, lane: Lane) -> None:
        """What earlier runs spent and learnt binds this one."""
        now, wall = time.monotonic(), time.time()
        for at, tokens in self.state.spent([lane.key], wall - lane.budget.window_s).get(lane.key, ()):
            lane.budget.spend(now - (wall - at), tokens)
        learned = self.state.learned(lane.key)
        lane.learn(
            per_transaction=int(learned["per_transaction"]) if "per_transaction" in learned else None,
            per_session=int(learned["per_session"]) if "per_session" in learned else None,
        )

    def _load(self, lane: Lane, site_key: str, site_id: int, after: int, now: float) -> int:
        pending = self.journal.waiting(site_id, after, SITE_SHARE)
        if len(pending) == SITE_SHARE:
            self._loaded[site_id] = pending[-1].id
        else:
            self._loaded.pop(site_id, None)
        wall = time.time()
        self._meet(lane, site_key, {one.domain: one.domain_id for one in pending if one.domain not in lane.domains})
        for one in pending:
            lane.add(_item(one), now, now + max(0.0, one.next_at - wall) if one.next_at else 0.0)
        return len(pending)

    def _meet(self, lane: Lane, site_key: str, new: dict[str, int]) -> None:
        """Domains that are new to a lane, with what is known of their control question."""
        facts = self.state.facts(list(new), time.time())
        for name, domain_id in new.items():
            domain = lane.domain(name, domain_id, site_key)
            fact = facts.get(name)
            if name in lane.policy.control.refuses_unknown_domains:
                domain.control = ControlAnswer.REFUSES
            elif fact is not None and fact.site == site_key:
                domain.control = ControlAnswer(fact.answer)

    # --- sessions ---------------------------------------------------------------------------------------------

    def _visit(self, visit: Visit) -> None:
        site = self._sites[visit.site]
        try:
            if self.job.mode is Mode.STANDARD:
                knock(self._desk, visit, site)
            else:
                Call(self._desk, visit, site).run()
        finally:
            self._after(visit.lane, site)

    def _after(self, lane: Lane, site: SiteHosts) -> None:
        """A session ended: more work from the journal, endings, and the lane's new place in the heap."""
        now = time.monotonic()
        after = self._loaded.get(site.id)
        if after is not None and lane.waiting < SITE_SHARE // 4:
            self._load(lane, site.key, site.id, after, now)
        self._give_up(lane, now)
        self.schedule.touch(lane, now)
        if lane.idle and site.id not in self._loaded and (self._cursor is None or lane.policy.scope == "site"):
            self._retire(lane)

    def _give_up(self, lane: Lane, now: float) -> None:
        """What stayed closed to us for the policy's give_up in one piece ends what waits there."""
        give_up_s = lane.policy.retry.give_up_s
        if lane.breaker.gives_up(now, give_up_s):
            sites = {domain.site for domain in lane.domains.values()}
            for domain in list(lane.domains.values()):
                lane.drop_domain(domain)
            self.journal.end("provider_paused", stamp(), site_ids=[self._sites[key].id for key in sites])
            return
        for domain in list(lane.domains.values()):
            if domain.hold is not None and domain.hold.gives_up(now, give_up_s):
                lane.drop_domain(domain)
                self.journal.end("domain_refuses_us", stamp(), domain_id=domain.id)
                domain.hold = None

    def _retire(self, lane: Lane) -> None:
        """Forget a lane whose work is done. What it refused without backing stays provisional: the identity's brake
        may still come to doubt it."""
        for key in {domain.site for domain in lane.domains.values()}:
            self._sites.pop(key, None)
        self.schedule.retire(lane)

    def _waits(self) -> bool:
        return bool(len(self._pool)) or bool(self.schedule.lanes) or self._cursor is not None

    def _drain(self) -> None:
        self._desk.draining = True
        self._pool.join(timeout=DRAIN_S)
        self._pool.kill(timeout=1.0)


def _item(one: Pending) -> Item:
    return Item(
        one.id, one.local, one.domain, one.attempts, one.greylist_steps, one.tempfail_steps, one.reconnects,
        one.first_at, one.reason,
    )  # fmt: skip


def stamp(at: float | None = None) -> str:
    """A moment as results and audit rows write it: UTC, RFC 3339, milliseconds."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
