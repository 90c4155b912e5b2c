"""One run: intake -> survey -> lanes -> sessions -> verdicts -> journal -> rows out.

1. The journal is the truth: lanes are filled from it and results are read back from it.
2. One dispatcher asks each identity's prober in turn and spawns; nothing else starts a session.
3. A run that stops keeps everything; `resume` is the same run going on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import chain

import gevent
from gevent.event import Event

from engine.core.identity import Identity, Job
from engine.core.lane import Lane, Visit
from engine.core.policy import PolicySet
from engine.core.schedule import Wait
from engine.flow.crew import Crew
from engine.flow.prober import Prober, Shared
from engine.flow.survey import Survey
from engine.log import log
from engine.metrics import Metrics
from engine.net.resolver import Resolver
from engine.store.audit import AuditRow
from engine.store.journal import Journal
from engine.store.state import State
from engine.views import LaneView

STARTS_AT_ONCE = 20  # sessions that are started before those under way get their turn: the hub must not lag
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
    """What a run is told from outside, beside its job. Without identities nobody is asked by name."""

    identities: tuple[Identity, ...]
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
        self._wake = Event()
        self._crew = Crew(settings.concurrency, self._wake.set)
        self._stopped = ""
        self._failed: Exception | None = None
        began = time.time() - time.monotonic()

        def wall() -> float:  # a wall clock that is set while the run lasts moves nothing
            return began + time.monotonic()

        shared = Shared(
            job, journal, state, settings.port, metrics or Metrics(), wall, stamp, self._wake.set, self.fail,
            transcript, settings.one_attempt, settings.concurrency,
        )  # fmt: skip
        self.probers = [Prober(shared, each, settings.policies) for each in settings.identities or (None,)]

    # --- phases -----------------------------------------------------------------------------------------------

    def survey(self) -> int:
        """Resolve every domain that has no route yet; says how many."""
        self.snapshot.phase = "resolving"
        settings = self.settings
        policies = self.probers[0].policies
        survey = Survey(self.job.mode, policies, self.resolver, settings.identities, settings.connect, time.time)
        return survey.run(self.journal, self.state, stamp, lambda: bool(self._stopped))

    def probe(self) -> bool:
        """Ask whatever waits; True when nothing is left, False after `stop`."""
        self.snapshot.phase = "probing"
        for prober in self.probers:
            prober.begin()
        deadline, ending = self._deadline()
        started = 0
        while not self._stopped:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                self.drain()
                self.journal.end(ending, stamp()).wait()
                log.warning("run_ended", ending=ending)
                break
            moments = [deadline, *(self._end(prober, now) for prober in self.probers)]
            self._wake.clear()
            for prober in self.probers:
                self._hand_over(prober)
                prober.fill(now)
            turn = self._turn(now) if self._crew.free else Wait(None)
            if turn is None:
                started += 1
                if started % STARTS_AT_ONCE == 0:
                    gevent.sleep(0)
                continue
            if not self._crew and not any(prober.waits for prober in self.probers):
                break
            looks = [prober.look_at for prober in self.probers if prober.look_at is not None]
            stuck = turn.until is None and not self._crew and not looks
            if stuck and any([prober.unstick() for prober in self.probers]):  # noqa: C419 - all of them
                continue
            due = [moment for moment in (turn.until, *moments, *looks) if moment is not None]
            self._wake.wait(max(0.0, min(due) - now) if due else None)
        self.drain()
        if self._failed is not None:
            raise self._failed
        if self._stopped:
            return False
        for prober in self.probers:
            prober.conclude()
        self.journal.end("cancelled", stamp()).wait()  # an acceptance whose control was never answered is no verdict
        return True

    def stop(self, why: str = "stopped") -> None:
        """Start nothing more; sessions in flight end by QUIT. Safe to call from a signal's greenlet."""
        self._stopped = self._stopped or why
        for prober in self.probers:
            prober.stop()
        self._wake.set()

    def fail(self, error: Exception) -> None:
        """Stop because of a fault; `probe` raises the first one after sessions in flight have ended."""
        self._failed = self._failed or error
        self.stop("failed")

    def drain(self) -> None:
        """Let sessions in flight end by QUIT, for a while; the rest is cut."""
        for prober in self.probers:
            prober.drain()
        if not self._crew.join(DRAIN_S):
            self._crew.kill(1.0)
        self._crew.dismiss()
        for prober in self.probers:
            prober.save()

    @property
    def askers(self) -> list[Prober]:
        """The probers of named identities."""
        return self.probers if self.settings.identities else []

    # --- who watches ------------------------------------------------------------------------------------------

    def watch(self) -> Snapshot:
        """The state of the run now."""
        self.snapshot.sessions = len(self._crew)
        self.snapshot.lanes = sum(len(prober.schedule.lanes) for prober in self.probers)
        self.snapshot.paused = {name: why for prober in self.probers for name, why in prober.paused().items()}
        return self.snapshot

    def views(self) -> Iterator[LaneView]:
        """Every lane as it is now, for a scrape."""
        return chain.from_iterable(prober.lanes() for prober in self.probers)

    def lanes(self) -> list[Lane]:
        """The lanes in memory."""
        return [lane for prober in self.probers for lane in prober.schedule.lanes.values()]

    # --- inside -----------------------------------------------------------------------------------------------

    def _turn(self, now: float) -> Wait | None:
        """Start one visit, of the next identity that has one ready; None: it started, else how long to wait."""
        until: list[float] = []
        for place, prober in enumerate(self.probers):
            turn = prober.next(now)
            if isinstance(turn, Visit):
                self.probers = self.probers[place + 1 :] + self.probers[: place + 1]  # the others are asked first now
                prober.started(turn)
                self._crew.start(partial(prober.visit, turn))
                return None
            if turn.until is not None:
                until.append(turn.until)
        return Wait(min(until, default=None))

    def _hand_over(self, prober: Prober) -> None:
        """What a held identity has never asked may be asked by another one, within that one's own limits."""
        others = [other for other in self.probers if other is not prober and other.able]
        if others and prober.to_release:
            moved = prober.release(others)
            note = f"{moved} addresses that {prober.identity.name} never asked left to other identities"
            self.journal.audit([AuditRow(time.time(), "order", identity=prober.identity.key, note=note)])

    def _end(self, prober: Prober, now: float) -> float | None:
        """When all that waits under an identity ends; at that moment it does."""
        at, ending = prober.ending()
        if at is not None and now >= at:
            prober.end(ending)
            return None
        return at

    def _deadline(self) -> tuple[float | None, str]:
        """When what still waits ends, and as what: by --deadline, or because the consent allows no more."""
        now, moments = time.monotonic(), []
        if self.settings.deadline_s is not None:
            moments.append((now + self.settings.deadline_s, "deadline_exceeded"))
        consent = self.job.consent
        if consent is not None and consent.expires is not None:
            moments.append((now + (consent.expires - datetime.now(UTC)).total_seconds(), "consent_expired"))
        return min(moments) if moments else (None, "")


def stamp(at: float | None = None) -> str:
    """A moment as results and audit rows write it: UTC, RFC 3339, milliseconds."""
    second, milliseconds = divmod(int((time.time() if at is None else at) * 1000), 1000)
    return f"{_second(second)}.{milliseconds:03}Z"


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat()
