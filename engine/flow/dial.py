"""Whom a visit dials: the hosts of a site in order, and when the next one may be tried.

1. At most 3 hosts, 2 addresses each, and none whose caps grant nothing now.
2. The next is tried only when one could not be reached, or said 4yz of its own state. Any reply that blames us, at
   any stage, ends the attempt for the whole site.
3. What leaves, a connection or a transaction, leaves in its turn: the limits hold at that moment too, and the audit
   has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gevent

from engine.core.brake import IdentityBrake
from engine.core.cap import Cap, let_out
from engine.core.caps import MAX_ADDRESSES, MAX_HOSTS
from engine.core.identity import Identity, Job
from engine.core.lane import Lane, Visit
from engine.core.policy import Policy, PolicySet, ReplyRow
from engine.core.queue import Domain
from engine.core.reasons import Fault, Reach, Stage
from engine.flow.evidence import audit_row, connect_row
from engine.flow.guard import Guard
from engine.flow.judged import Judged, judge_ended
from engine.flow.memory import Memory
from engine.metrics import Metrics
from engine.net.session import Endpoint, Session, SessionEnded
from engine.store.audit import AuditRow
from engine.store.job_tables import Outcome
from engine.store.journal import Journal
from engine.store.state import State
from engine.store.writer import Ticket

_OWN_STATE = frozenset({"server_busy", "server_storage", "smtp_tempfail"})


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
    offset_s: float = field(init=False)  # of the wall clock to the run's own, which it follows

    def __post_init__(self) -> None:
        self.offset_s = self.wall() - self.clock()

    def count(self, policy: Policy, one: Judged) -> None:
        """An answer goes to the metrics: once, where it was judged."""
        reply = one.answer.reply
        self.metrics.judged(
            policy.name, self.identity.name, one.answer.stage, reply.code if reply else None, one.reason,
            refusal=one.refusal,
        )  # fmt: skip

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

    def observe(self, visit: Visit, line: Line, domain: Domain, one: Judged, now: float, *, first: bool) -> None:
        """One observation a reply: lane, identity and what the next run must know learn of it at once."""
        lane = visit.lane
        source = lane.observe(
            domain, one.reason, one.reach, now, self.jitter(), first=first, delay_s=one.delay_s, caps=visit.caps
        )
        self.memory.note(lane, visit.caps)
        if one.reason.code == "too_many_connections" and lane.own.open_sessions > 1:  # this one was too many
            lane.learn(connections=lane.own.open_sessions - 1)
            self.state.learn(lane.key, "connections", lane.own.most, self.wall())
        self.guard.replied(visit, line, one, source=source)

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
        self.journal.record(outcomes, rows).then(self._written)

    def _written(self, ticket: Ticket[Any]) -> None:
        try:
            head = ticket.wait()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must not go on without its journal
            self.failed(error)
            return
        if head is not None:
            self.state.put_head(self.job.id, head.seq, head.hash)


@dataclass(slots=True)
class SiteHosts:
    """A site in memory: its journal id, its hosts to dial, and what was learnt of them in this run."""

    id: int
    key: str
    hosts: tuple[tuple[str, tuple[str, ...]], ...]
    without_utf8: set[str] = field(default_factory=set)

    def endpoints(self, port: int) -> list[Endpoint]:
        """Where to dial, in order."""
        return [
            Endpoint(name, address, port)
            for name, addresses in self.hosts[:MAX_HOSTS]
            for address in addresses[:MAX_ADDRESSES]
        ]


@dataclass(slots=True)
class Line:
    """An open session, or why there is none; `endpoint` is the last one dialled, `rows` those of its policy.

    `tried` are the audit's rows of its connections, until they are written.
    """

    endpoint: Endpoint | None = None
    session: Session | None = None
    rows: Sequence[ReplyRow] = ()
    failure: Judged | None = None
    tried: list[AuditRow] = field(default_factory=list)

    def take_tried(self) -> list[AuditRow]:
        """The rows that are not written yet, to be written now."""
        tried, self.tried = self.tried, []
        return tried


def dial(desk: Desk, visit: Visit, site: SiteHosts, *, eai: bool = False) -> Line:
    """Open a session at the first host that lets us in. `eai` puts hosts known to lack SMTPUTF8 last.

    A line without session and failure: nothing was dialled, because the run stops or no cap grants it now.
    """
    policy = visit.lane.policy
    identity = desk.identity  # it asks from addresses that it has stated, and from no other
    endpoints = [
        each for each in site.endpoints(desk.port) if (identity.public_v6 if ":" in each.ip else identity.public_v4)
    ]
    if eai:
        endpoints.sort(key=lambda endpoint: endpoint.host in site.without_utf8)
    line, dialled = Line(), not endpoints
    for endpoint in endpoints:
        if desk.stops(visit):
            line.failure = None  # nobody knows what the next host would have said
            return line
        if not desk.admit(visit, endpoint.host, endpoint.ip):
            continue
        dialled_at = desk.in_turn(visit.caps, lambda: desk.stops(visit))
        if dialled_at is None:
            line.failure = None
            return line
        claimed = desk.policies.claiming(endpoint.host)
        dialled = True
        line.rows = (claimed or policy).replies
        line.endpoint = endpoint
        session = Session(endpoint, desk.identity, policy.timeouts, policy.tls, transcript=desk.transcript)
        try:
            session.open()
        except SessionEnded as ended:
            line.failure = judge_ended(ended, line.rows)
            line.tried.append(audit_row(desk, line, "connect", line.failure, dialled_at))
            desk.count(policy, line.failure)
            desk.guard.dialled(visit, site, connected=bool(session.source_ip), reason=line.failure.reason.code)
            if not _next_may_try(line.failure):
                return line
        else:
            desk.guard.dialled(visit, site, connected=True)
            line.tried.append(connect_row(desk, line, dialled_at))
            line.session, line.failure = session, None
            return line
    if line.failure is None and dialled:
        line.failure = judge_ended(
            SessionEnded(Stage.CONNECT, "network_unreachable", None, "no address that we can dial"), ()
        )
        line.tried.append(audit_row(desk, line, "connect", line.failure, desk.clock()))
    return line


def reach(desk: Desk, lane: Lane, site: SiteHosts) -> bool:
    """Whether a site can still be connected to: one connection within its lane's limits, that says QUIT at once."""
    while until := lane.greet(desk.clock()):
        gevent.sleep(until - desk.clock())
        if desk.draining:
            return True
    if until is None:  # sessions there are open, or it refuses us: it proves nothing
        return True
    try:
        for endpoint in site.endpoints(desk.port)[:MAX_ADDRESSES]:
            if desk.in_turn(lane.caps, lambda: desk.draining) is None:
                return True
            session = Session(
                endpoint, desk.identity, lane.policy.timeouts, lane.policy.tls, transcript=desk.transcript
            )
            with suppress(SessionEnded):
                session.open()
            session.quit()
            if session.source_ip:
                return True
    finally:
        lane.part()
    return False


def _next_may_try(failure: Judged) -> bool:
    """Whether the host could not be reached, or said 4yz of its own state and nothing of us."""
    if failure.reach is not Reach.NONE:
        return False
    if failure.answer.reply is not None:
        return not failure.permanent and failure.reason.code in _OWN_STATE
    return failure.reason.fault is Fault.NETWORK
