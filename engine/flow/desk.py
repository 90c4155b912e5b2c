"""What the visits of one identity share: whom they ask as, where they write, and who learns of each reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent

from engine.core.brake import IdentityBrake
from engine.core.cap import Cap, let_out
from engine.core.classify import Classifier
from engine.core.identity import Identity, Job
from engine.core.lane import Visit
from engine.core.policy import Policy, PolicySet
from engine.core.queue import Domain
from engine.flow.guard import Guard
from engine.flow.judged import Judged
from engine.flow.line import Line
from engine.flow.memory import Memory
from engine.metrics import Metrics
from engine.store.audit import AuditRow
from engine.store.job_tables import Outcome
from engine.store.journal import Journal
from engine.store.state import State
from engine.store.writer import Ticket


@dataclass(slots=True)
class Desk:
    """What every visit of a run shares."""

    job: Job
    identity: Identity
    policies: PolicySet
    journal: Journal
    state: State
    secret: bytes
    port: int
    clock: Callable[[], float]  # monotonic seconds
    wall: Callable[[], float]  # seconds since the epoch
    stamp: Callable[[], str]  # RFC 3339, UTC
    jitter: Callable[[], float]
    metrics: Metrics
    guard: Guard
    memory: Memory
    admit: Callable[[Visit, str, str], bool]  # whether a visit may dial this host at this address
    transcript: Callable[[str, str, float], None] | None = None
    one_attempt: bool = False  # `check` asks once and says what a run would do next
    draining: bool = False  # nothing more is asked; sessions say QUIT
    brake: IdentityBrake = field(default_factory=IdentityBrake)
    failed: Callable[[Exception], None] = lambda error: None  # a write that did not reach the disk ends the run
    suspect: bool = False  # the identity's unbacked refusals prove nothing until somebody accepts
    _writing: Ticket[Any] | None = field(default=None, init=False)
    _classifiers: dict[str, Classifier] = field(default_factory=dict, init=False)  # by policy
    offset_s: float = field(init=False)  # of the wall clock to the run's own, which it follows
    asker: str = field(init=False)  # who, by the identity's key, and which consent stand in each row of the audit
    consent: str = field(init=False)

    def __post_init__(self) -> None:
        self.offset_s = self.wall() - self.clock()
        self.asker = self.identity.key
        self.consent = self.job.consent.reference if self.job.consent else ""

    def classifier(self, policy: Policy) -> Classifier:
        """Who reads the replies of hosts under a policy: another one after a reload that changed it."""
        known = self._classifiers.get(policy.name)
        if known is None or known.rows is not policy.replies:
            known = self._classifiers[policy.name] = Classifier(policy.replies)
        return known

    def count(self, policy: Policy, one: Judged) -> None:
        """An answer goes to the metrics: once, where it was judged."""
        self.metrics.judged(
            policy.name, self.identity.name, one.answer.stage, one.code, one.reason, refusal=one.refusal
        )

    def stops(self, visit: Visit) -> bool:
        """Whether this visit may ask nothing more: the run ends, or the identity is refused."""
        return self.draining or self.guard.stops(visit)

    def in_turn(
        self, caps: Sequence[Cap], stops: Callable[[], bool], recipients: int = 0, latest: float = float("inf")
    ) -> float | None:
        """Wait until these caps let a connection out, or so many recipients: that moment.

        None when it `stops` meanwhile, or would have to wait beyond `latest`; nothing may leave then.
        """
        while not stops():
            now = self.clock()
            until = let_out(caps, now, recipients)
            if not until:
                return now
            if until > latest:
                return None
            gevent.sleep(until - now)
        return None

    def observe(
        self, visit: Visit, line: Line, domain: Domain, judged: Sequence[Judged], now: float, firsts: Sequence[bool]
    ) -> None:
        """One observation a reply: lane, identity and what the next run must know learn of it at once.

        `firsts` says of each whether it is an address's first.
        """
        lane, jitter, told = visit.lane, self.jitter(), None
        for one, first in zip(judged, firsts, strict=True):
            source = lane.observe(
                domain, one.reason, one.reach, now, jitter, first=first, delay_s=one.delay_s, caps=visit.caps
            )
            if one.reason.code == "too_many_connections" and lane.own.open_sessions > 1:  # this one was too many
                lane.learn(connections=lane.own.open_sessions - 1)
                self.state.learn(lane.key, "connections", lane.own.most, self.wall())
            if source or one.reason is not told:  # else the identity has heard it from this site already
                self.guard.replied(visit, line, one, now, source=source)
                told = None if source else one.reason
        self.memory.note(lane, visit.caps)

    def distrust(self) -> None:
        """Unbacked refusals prove nothing any more, wherever they come from; a resume remembers it."""
        self.suspect = True
        self.journal.put(f"suspect {self.identity.key}", True)

    def trust(self) -> None:
        """Somebody was accepted."""
        if self.suspect:
            self.suspect = False
            self.journal.put(f"suspect {self.identity.key}", False)

    def write(self, outcomes: Sequence[Outcome], rows: Sequence[AuditRow]) -> None:
        """Replies to the journal, and then the audit's head to the state; nobody waits for it."""
        ticket = self.journal.record(outcomes, rows)
        if ticket is not self._writing:  # else the head of all of them is seen to
            self._writing = ticket
            ticket.then(self._written)

    def _written(self, ticket: Ticket[Any]) -> None:
        try:
            head = ticket.wait()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must not go on without its journal
            self.failed(error)
            return
        if head is not None:
            self.state.put_head(self.job.id, head.seq, head.hash)
