"""Whom a visit dials: the hosts of a site in order, and when the next one may be tried.

1. At most 3 hosts, 2 addresses each.
2. The next is tried only when one could not be reached, or said 4yz of its own state. Any reply that blames us, at
   any stage, ends the attempt for the whole site.
3. A host of another provider, or at another address, is dialled only where the caps over it grant that now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.core.brake import IdentityBrake
from engine.core.identity import Identity, Job
from engine.core.lane import Visit
from engine.core.policy import Policy, PolicySet, ReplyRow
from engine.core.reasons import Fault, Reach, Stage
from engine.flow.judged import Judged, judge_ended
from engine.metrics import Metrics
from engine.net.session import Endpoint, Session, SessionEnded
from engine.store.audit import AuditRow
from engine.store.journal import Journal, Outcome
from engine.store.state import State
from engine.store.writer import Ticket

MAX_HOSTS = 3
MAX_ADDRESSES = 2
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
    transcript: Callable[[str, str, float], None] | None = None
    one_attempt: bool = False  # `check` asks once and says what a run would do next
    draining: bool = False  # nothing more is asked; sessions say QUIT
    brake: IdentityBrake = field(default_factory=IdentityBrake)
    failed: Callable[[Exception], None] = lambda error: None  # a write that did not reach the disk ends the run
    admit: Callable[[Visit, str, str], bool] = lambda visit, host, ip: True  # may the visit go on to this address
    suspect: bool = False  # the identity's unbacked refusals prove nothing until somebody accepts

    def count(self, policy: Policy, one: Judged) -> None:
        """An answer goes to the metrics: once, where it was judged."""
        reply = one.answer.reply
        self.metrics.judged(
            policy.name, self.identity.name, one.answer.stage, reply.code if reply else None, one.reason,
            refusal=one.refusal,
        )  # fmt: skip

    def distrust(self) -> None:
        """Unbacked refusals prove nothing any more, wherever they come from; a resume remembers it."""
        self.suspect = True
        self.journal.put("suspect", True)

    def trust(self) -> None:
        """Somebody was accepted."""
        if self.suspect:
            self.suspect = False
            self.journal.put("suspect", False)

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
    """An open session, or why there is none; `endpoint` is the last one dialled, `rows` those of its policy."""

    endpoint: Endpoint | None = None
    session: Session | None = None
    rows: Sequence[ReplyRow] = ()
    failure: Judged | None = None


def dial(desk: Desk, visit: Visit, site: SiteHosts, *, eai: bool = False) -> Line:
    """Open a session at the first host that lets us in. `eai` puts hosts known to lack SMTPUTF8 last."""
    policy = visit.lane.policy
    endpoints = site.endpoints(desk.port)
    if eai:
        endpoints.sort(key=lambda endpoint: endpoint.host in site.without_utf8)
    line = Line()
    for endpoint in endpoints:
        if desk.draining:
            return line
        if not desk.admit(visit, endpoint.host, endpoint.ip):
            continue
        claimed = desk.policies.claiming(endpoint.host)
        line.rows = (claimed or policy).replies
        line.endpoint = endpoint
        session = Session(endpoint, desk.identity, policy.timeouts, policy.tls, transcript=desk.transcript)
        try:
            session.open()
        except SessionEnded as ended:
            line.failure = judge_ended(ended, line.rows)
            desk.count(policy, line.failure)
            if not _next_may_try(line.failure):
                return line
        else:
            line.session, line.failure = session, None
            return line
    if line.failure is None:
        line.failure = judge_ended(SessionEnded(Stage.CONNECT, "network_unreachable", None, "no address to dial"), ())
    return line


def _next_may_try(failure: Judged) -> bool:
    """Whether the host could not be reached, or said 4yz of its own state and nothing of us."""
    if failure.reach is not Reach.NONE:
        return False
    if failure.answer.reply is not None:
        return not failure.permanent and failure.reason.code in _OWN_STATE
    return failure.reason.fault is Fault.NETWORK
