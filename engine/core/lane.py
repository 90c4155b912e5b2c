"""A lane: what one identity asks one provider or site, within its limits and those of the caps above it.

1. Nothing is asked without its tokens: a session's, a recipient's, and one refusal reserved for every RCPT in flight;
   of its own limits and of every cap above them alike.
2. Until a domain's control question is settled, one session asks that domain, in one transaction.
3. An open breaker or a brake in doubt starts nothing; what is in flight is told so at its next transaction.
4. It decides and counts; it never dials, sleeps or writes. Time comes in as `now` (monotonic seconds).
5. The domains that it holds are held on after a restart: `memory` and `recall` carry them over it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.core.brake import Brake, Doubt
from engine.core.breaker import Breaker, BreakerState
from engine.core.bucket import NEVER
from engine.core.cap import Cap, Charge, Entry, answers, site_cap
from engine.core.domain_refusals import DomainRefusals
from engine.core.policy import Policy
from engine.core.queue import Domain, Item, Queue
from engine.core.reasons import Reach, Reason

MAX_TRANSACTIONS = 10  # in a session: Exim counts RSETs and drops it at the 12th (smtp_accept_max_nonmail = 10)
PATIENCE_S = 2.0  # no session idles for tokens: one that would wait longer says QUIT
AGE = 0.5  # of the session's time: after that no transaction is begun that the deadline could cut
ALLOWANCE_S = 3600.0  # a lane pays the positive control of one doubt in this time, outside its refusal budget


@dataclass(slots=True)
class Batch:
    """One transaction that may be asked: recipients of one domain, or a control, from `start_at` on."""

    domain: Domain
    items: list[Item]
    start_at: float
    tokens: int = 0  # recipients charged, each with a refusal reserved; 0 for a positive control
    charges: list[Charge] = field(default_factory=list)
    control: bool = False
    positive: bool = False


@dataclass(slots=True)
class Visit:
    """One session that the lane let start, and what it has spent of its own limits."""

    lane: Lane
    site: str
    first: Batch
    started_at: float
    caps: tuple[Cap, ...]  # what it is charged to, its lane's own limits first
    borrowed: tuple[Cap, ...] = ()  # the same, where it was diverted from its lane's: in use until it ends
    recipients: int = 0
    refusals: int = 0
    transactions: int = 0
    half_open: bool = False
    trials: dict[Breaker, int] = field(default_factory=dict)  # the breakers whose half-open session it is, and the turn
    waited_s: float = 0.0  # how long its domain had waited for its turn
    trial: bool = False  # the half-open session of the identity
    touched: set[str] = field(default_factory=set)


class Lane:
    """The queue, limits, budget, breaker and brake of one (provider or site, identity).

    Its limits are those of the cap `own`, which other lanes may share, and of all caps above that one.

    `start` a visit when `ready_at` has come, ask for `more` batches in it, tell each reply by `observe` and each
    batch's end by `settle`, and `finish` the visit.
    """

    __slots__ = (
        "_beside", "_greeted", "_positive_at", "_refusals", "_taught", "brake", "breaker", "budget", "caps", "entry",
        "kept_by", "key", "open_sessions", "own", "pace", "per_session", "per_transaction", "policy", "queue",
        "refusals_per_session", "ticket", "unsaved",
    )  # fmt: skip

    def __init__(self, key: str, policy: Policy, own: Cap | None = None, beside: Sequence[Policy] = ()) -> None:
        self.key = key
        self.policy = policy
        self.queue = Queue()
        self.open_sessions = 0
        self.own = own or site_cap(key, policy)
        assert self.own.breaker and self.own.budget and self.own.pace
        self.caps = self.own.chain
        self.breaker = self.own.breaker
        self.budget = self.own.budget
        self.pace = self.own.pace
        self.brake = Brake()
        self.unsaved = False  # something changed that the next run has to know
        self._beside = beside  # policies of other hosts that its visits may dial
        self._taught = (sys.maxsize, sys.maxsize)  # recipients a transaction and a session, as far as its sites told
        self._limit()
        self._greeted: tuple[tuple[Cap, ...], ...] = ()  # what connections that ask nothing are charged to
        self._positive_at = NEVER  # when the allowance pays for another doubt
        self._refusals: DomainRefusals | None = None  # from the first one on: what came before proves nothing
        self.entry: Entry | None = None  # the schedule's: its valid place in the heap,
        self.ticket: int | None = None  # its place in every line, while it wants to start,
        self.kept_by: Cap | None = None  # and which cap lacks something for it

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return not self.open_sessions and self.queue.empty and self.brake.doubt is not Doubt.ASKING

    # --- deciding ---------------------------------------------------------------------------------------------

    def due(self, now: float) -> float | None:
        """When it has something to ask, whatever its limits say; None while only an event can change that.

        The moment may lie behind `now`.
        """
        if self.brake.doubt is Doubt.NONE:
            return self.queue.due(now)
        self.queue.wake(now)
        if self.brake.doubt is not Doubt.ASKING or self.open_sessions:
            return None
        return self.brake.ask_at if self.brake.asked else max(self.brake.ask_at, self._positive_at)

    @property
    def urgent(self) -> bool:
        """What it asks next is a positive control: whole lanes wait for what it says."""
        return self.brake.doubt is Doubt.ASKING

    def first_size(self, now: float) -> int:
        """How many recipients its next session begins with; 0 for a positive control, which has its own allowance."""
        domain = self.queue.next()
        if domain is None or self.brake.doubt is not Doubt.NONE:
            return 0
        if self.per_transaction == 1 or len(domain.items) <= 1:
            return 1
        return self._size(domain, now, min(self.refusals_per_session, self.per_session + 1), self.caps)

    def ready_at(self, now: float) -> float | None:
        """When the next session could start; None while only an event (a session's end) can change that."""
        due = self.due(now)
        size = self.first_size(now)
        for cap in self.caps:
            granted = cap.ready_at(now, size)
            due = None if due is None or granted is None else max(due, granted)
        return due

    def waits_for(self, now: float) -> str:
        """The limit by which `ready_at` lies ahead, as its key in the policy file; empty where none does.

        It may be the lane's own or that of a cap above. `retry` stands for the ladders and for domains that are held.
        """
        if self.queue.empty:
            return ""
        size = self.first_size(now)
        closed = [found for cap in self.caps if (found := cap.closed_by())]
        if closed:
            return closed[0]
        if not size:
            return "control_rcpt" if self.queue.next_at is None else "retry"
        moments = [(at, key) for cap in self.caps for key, at in cap.moments(now, size).items()]
        latest = max(moments, key=lambda moment: moment[0])
        return latest[1] if latest[0] > now else ""

    def start(self, now: float, *, trial: bool = False) -> Visit | None:
        """Start a session with the tokens of its whole first transaction, or nothing at all.

        A `trial` is the half-open session of the identity: it asks one address, whoever is asked.
        """
        due = self.ready_at(now)
        return None if due is None or due > now else self.begin(now, self.first_size(now), trial=trial)

    def begin(self, now: float, size: int, *, trial: bool = False) -> Visit | None:
        """`start` with a first transaction of `first_size` recipients, which every cap has granted for this moment."""
        if self.brake.doubt is Doubt.ASKING:
            return self._start_positive(now, trial=trial)
        domain = self.queue.next()
        if domain is None:
            return None
        trials = self._open(now)
        half_open = trial or bool(trials)
        if domain.hold is not None:
            domain.hold.attempt(now)
            half_open = half_open or domain.hold.state is BreakerState.HALF_OPEN
        waited_s = max(0.0, now - domain.ready_since)
        first = self._batch(domain, now, 1 if half_open else size, self.caps)
        visit = Visit(
            self, domain.site, first, now, self.caps, half_open=half_open, trials=trials, waited_s=waited_s, trial=trial
        )
        self._count(visit, first)
        return visit

    def divert(self, visit: Visit, caps: tuple[Cap, ...], now: float) -> bool:
        """Its first host did not take the session, and the next one has other caps: charge those now, or nothing.

        What it held of the caps that it leaves returns, but for the start of the session. False: it may not go there.
        """
        new, first = [cap for cap in caps if cap not in visit.caps], visit.first
        for cap in new:
            granted = cap.ready_at(now, first.tokens)
            closed = cap.breaker is not None and cap.breaker.state is not BreakerState.CLOSED
            if granted is None or granted > now or cap.line or (closed and len(first.items) > 1):
                return False
        trials = _charged(new, now)
        visit.trials |= trials
        visit.half_open = visit.half_open or bool(trials)
        windows = [window for cap in caps for window in cap.windows.values()]
        for charge in [charge for charge in first.charges if charge.window not in windows]:
            charge.release(0, 0)
            first.charges.remove(charge)
        for cap in [cap for cap in visit.caps if cap not in caps]:
            cap.open_sessions -= 1
            if cap.breaker is not None and cap.breaker in visit.trials:  # it asks nobody there: the next one may
                cap.breaker.release(now, visit.trials.pop(cap.breaker))
        if first.tokens:
            first.charges += [charge for cap in new for charge in cap.charge(now, first.tokens)]
        visit.caps = caps
        return True

    def more(self, visit: Visit, now: float) -> Batch | None:
        """The next transaction of a session at its site, or None: it should say QUIT.

        `start_at` of the batch may lie up to PATIENCE_S ahead.
        """
        self.queue.wake(now)
        domain = self.queue.next(visit.site)
        if domain is None or domain.hold is not None:
            return None
        left = self.refusals_per_session - visit.refusals
        stopped = visit.half_open or self.brake.doubt is not Doubt.NONE or any(cap.stops for cap in visit.caps)
        spent = visit.recipients >= self.per_session or left < 1 or visit.transactions >= MAX_TRANSACTIONS
        if stopped or spent or now > self.ages_at(visit) or not self._room(visit.caps, now):
            return None
        if not domain.settled and left < 2 and domain.control_due is None:
            return None  # one token is kept back for the control
        size = min(self._size(domain, now, left, visit.caps), self.per_session - visit.recipients)
        at = max(cap.asks_at(now, size) for cap in visit.caps)
        if at > now + PATIENCE_S:
            return None
        batch = self._batch(domain, at, size, visit.caps)
        self._count(visit, batch)
        return batch

    def control(self, visit: Visit, domain: Domain, now: float) -> Batch | None:
        """Reserve the control RCPT in this session, or None where a token is missing: it then waits its turn."""
        spent = visit.refusals >= self.refusals_per_session or visit.recipients >= self.per_session
        if spent or not self._room(visit.caps, now) or now > self.ages_at(visit):
            return None
        at = max(cap.asks_at(now, 1) for cap in visit.caps)
        if at > now + PATIENCE_S:
            return None
        batch = self._batch(domain, at, 1, visit.caps, control=True)
        self._count(visit, batch)
        return batch

    def ages_at(self, visit: Visit) -> float:
        """From when on no transaction is begun any more: the session's deadline could cut it."""
        return visit.started_at + AGE * self.policy.timeouts.session_s

    # --- reporting --------------------------------------------------------------------------------------------

    def observe(
        self,
        domain: Domain,
        reason: Reason,
        reach: Reach,
        now: float,
        jitter: float,
        *,
        first: bool,
        delay_s: float | None = None,
        caps: Sequence[Cap] = (),
    ) -> bool:
        """One judged reply: the one place where breakers, hold, pace and budgets learn of it. True: it refuses us.

        `jitter` is a share of the open time, drawn by the caller; `first` marks an address's first attempt, whose
        450 or 451 at RCPT may be greylisting and is no sign of trouble. What is closed by it stays closed for the
        delay `delay_s` that the reply names, at least. `caps` are the visit's, if not the lane's own.
        """
        at_least_s = delay_s or 0.0
        source = reach is Reach.SOURCE
        if reach is Reach.DOMAIN:
            self._refusals = self._refusals or DomainRefusals()
            source = self._refusals.refused(domain.name)
        elif reach is Reach.NONE and self._refusals is not None and answers(reason):
            self._refusals.answered(domain.name)
        for cap in caps or self.caps:
            cap.observe(reason, reach, now, jitter, source=source, first=first, at_least_s=at_least_s)
        if reach is Reach.DOMAIN or domain.hold is not None:
            self._hold(domain, reason, reach, now, jitter, at_least_s)
        return source

    def settle(
        self, visit: Visit, batch: Batch, refused: int, now: float, *, errors: int | None = None, asked: bool = True
    ) -> list[tuple[int, int]]:
        """The answers of a batch are in, or it was not `asked`: give back what was not refused.

        Says (grant, tokens) of what may return in the identity state. The session keeps the tokens of all `errors`,
        4yz included: Postfix counts them alike, slows down from the 10th in a session and ends it at the 20th;
        postscreen ends one after 20 commands.
        """
        returned = []
        for charge in batch.charges:
            back = charge.release(refused, batch.tokens if asked else 0)
            if back and charge.grant:
                returned.append((charge.grant, back))
        if batch.tokens:
            visit.refusals -= batch.tokens - max(refused, errors or 0)
            batch.domain.in_flight -= 1
        if batch.control:
            batch.domain.control_asked = False
        batch.domain.busy = batch.domain.control_asked
        self.queue.offer(batch.domain, now)
        return returned

    def finish(self, visit: Visit, now: float) -> None:
        """The session is over."""
        self.open_sessions -= 1
        for cap in visit.caps:
            cap.open_sessions -= 1
        for breaker, turn in visit.trials.items():
            breaker.release(now, turn)
        doubted = self.brake.domains
        for name in visit.touched:
            domain = self.queue.domains.get(name)
            if domain is None:
                continue
            if visit.half_open and domain.hold is not None:
                domain.hold.release(now)
                self.queue.offer(domain, now)
            if name not in doubted:
                self.queue.forget(domain)

    def learn(
        self, *, per_transaction: int | None = None, per_session: int | None = None, connections: int | None = None
    ) -> None:
        """A site told that it takes fewer recipients or connections; what was learnt only ever shrinks."""
        if connections is not None:
            self.own.crowded(connections)
        transaction, session = self._taught
        if per_transaction is not None:
            transaction = max(1, min(transaction, per_transaction))
        if per_session is not None:
            session = max(2, min(session, per_session))
        self._taught = transaction, session
        self._limit()

    def adopt(self, policy: Policy, beside: Sequence[Policy] = ()) -> None:
        """Another policy from now on, and others beside it; its caps adopt theirs on their own."""
        self.policy, self._beside = policy, beside
        self._limit()
        for domain in self.queue.held():
            if domain.hold is not None:
                domain.hold.adopt(policy.breaker.open_s, policy.breaker.max_open_s)

    def greet(self, now: float) -> float | None:
        """Count a connection that asks nothing; until when to wait for its token (0: it is counted), None: not here."""
        if any(cap.closed_by() for cap in self.caps):
            return None
        granted = [cap.ready_at(now, 0) or now for cap in self.caps]
        if max(granted) > now:
            return max(granted)
        self._open(now)
        self._greeted += (self.caps,)
        return 0.0

    def part(self) -> None:
        """The connection that asked nothing is over."""
        self.open_sessions -= 1
        caps, *others = self._greeted  # a reload may have hung the lane under others meanwhile
        self._greeted = tuple(others)
        for cap in caps:
            cap.open_sessions -= 1

    # --- remembering ------------------------------------------------------------------------------------------

    def memory(self, now: float) -> dict[str, Any]:
        """The domains that it holds, as plain data; nothing where it holds none."""
        if not self.queue.holds:
            return {}
        holds = {domain.name: domain.hold.memory(now) for domain in self.queue.held() if domain.hold is not None}
        holds = {name: hold for name, hold in (holds | self.queue.holds_to_come(now)).items() if hold}
        return {"holds": holds} if holds else {}

    def recall(self, kept: Mapping[str, Any], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later."""
        limits = self.policy.breaker
        for name, hold in kept.get("holds", {}).items():
            breaker = Breaker(limits.open_s, limits.max_open_s)
            breaker.recall(hold, now, away_s)
            self.queue.recall_hold(name, breaker)

    # --- inside -----------------------------------------------------------------------------------------------

    def _limit(self) -> None:
        """What its policies allow in a transaction and a session, as far as its sites did not teach less."""
        policy = self.policy
        transaction, session = self._taught
        self.per_transaction = min(transaction, policy.recipients.per_transaction)
        self.per_session = min(session, policy.recipients.per_session)
        self.refusals_per_session = policy.refusals.per_session
        for other in self._beside:
            self.per_transaction = min(self.per_transaction, other.recipients.per_transaction)
            self.per_session = min(self.per_session, other.recipients.per_session)
            self.refusals_per_session = min(self.refusals_per_session, other.refusals.per_session)

    def _open(self, now: float) -> dict[Breaker, int]:
        """Charge the start of a session; says of which breakers it is the half-open one."""
        self.open_sessions += 1
        return _charged(self.caps, now)

    @staticmethod
    def _room(caps: Sequence[Cap], now: float) -> int:
        return min(cap.room(now) for cap in caps)

    def _size(self, domain: Domain, now: float, left: int, caps: Sequence[Cap]) -> int:
        """How many recipients the next transaction at `domain` has; a due control goes alone."""
        if domain.control_due is not None and domain.control_due <= now:
            return 1
        keep_back = 0 if domain.settled else 1
        most = min(len(domain.items), self.per_transaction, left - keep_back)
        return most if most == 1 else max(1, min(most, self._room(caps, now)))

    def _batch(self, domain: Domain, at: float, size: int, caps: Sequence[Cap], *, control: bool = False) -> Batch:
        """Charge and take the next transaction of `domain`: its `control`, if that is due or wanted now."""
        control = control or (domain.control_due is not None and domain.control_due <= at)
        if control:
            self.queue.drop_control(domain)
            domain.control_asked = True
        items = self.queue.take(domain, 0 if control else size)
        tokens = 1 if control else len(items)
        domain.in_flight += 1
        domain.busy = control or not domain.settled
        if not domain.busy:
            self.queue.offer(domain, at)
        charges: list[Charge] = []
        for cap in caps:
            charges += cap.charge(at, tokens)
        return Batch(domain, items, at, tokens, charges, control=control)

    @staticmethod
    def _count(visit: Visit, batch: Batch) -> None:
        visit.recipients += batch.tokens
        visit.transactions += 1
        visit.refusals += batch.tokens
        visit.touched.add(batch.domain.name)

    def _hold(self, domain: Domain, reason: Reason, reach: Reach, now: float, jitter: float, at_least_s: float) -> None:
        hold = domain.hold
        if reach is Reach.DOMAIN:
            if hold is None:
                hold = Breaker(self.policy.breaker.open_s, self.policy.breaker.max_open_s)
                self.queue.hold(domain, hold)
            self.unsaved |= hold.open(now, reason.code, jitter, at_least_s=at_least_s) or bool(at_least_s)
        elif hold is not None and hold.state is BreakerState.HALF_OPEN:
            if answers(reason):
                domain.hold = None
            else:
                hold.open(now, reason.code, jitter, at_least_s=at_least_s)
            self.unsaved = True
        self.queue.offer(domain, now)

    def _start_positive(self, now: float, *, trial: bool) -> Visit | None:
        domain = self.queue.domains.get(self.brake.most_refused)
        if domain is None:
            self.brake.release()
            return None
        if not self.brake.asked:
            self._positive_at = now + ALLOWANCE_S
        self.brake.asked = True
        trials = self._open(now)
        batch = Batch(domain, [], now, positive=True)
        return Visit(
            self, domain.site, batch, now, self.caps, half_open=trial or bool(trials), trials=trials, trial=trial,
            touched={domain.name},
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Lane {self.key} {self.queue.waiting} waiting, {self.open_sessions} open, {self.breaker.state}>"


def _charged(caps: Sequence[Cap], now: float) -> dict[Breaker, int]:
    """The start of a session is charged to caps; the breakers whose half-open session it is, with its turn."""
    trials: dict[Breaker, int] = {}
    for cap in caps:
        if (trial := cap.open(now)) is not None:
            trials[trial] = trial.turn
    return trials
