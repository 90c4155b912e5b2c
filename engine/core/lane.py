"""A lane: what one identity asks one provider or site, within its limits.

1. Nothing is asked without its tokens: a session's, a recipient's, and one refusal reserved for every RCPT in flight.
2. Until a domain's control question is settled, one session asks that domain, in one transaction.
3. An open breaker or a brake in doubt starts nothing; what is in flight is told so at its next transaction.
4. It decides and counts; it never dials, sleeps or writes. Time comes in as `now` (monotonic seconds).
5. What it was told and has spent outlives it: `memory` and `recall` carry it over a restart.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.core.brake import Brake, Doubt
from engine.core.breaker import LONGEST_S, Breaker, BreakerState
from engine.core.bucket import Spending, TokenBucket
from engine.core.pace import CUTS_PACE, Pace, RefusalBudget
from engine.core.policy import Policy
from engine.core.queue import Domain, Item, Queue
from engine.core.reasons import Fault, Reach, Reason

MAX_TRANSACTIONS = 10  # in a session: Exim counts RSETs and drops it at the 12th (smtp_accept_max_nonmail = 10)
PATIENCE_S = 2.0  # no session idles for tokens: one that would wait longer says QUIT
AGE = 0.5  # of the session's time: after that no transaction is begun that the deadline could cut
DOMAINS_IN_A_ROW = 3  # so many domains of a lane that refuse us one after the other are the source's refusal
OF_LAST = 25  # or so many of the lane's last domains that answered
DOMAINS_OF_LAST = 5
ALLOWANCE_S = 3600.0  # a lane pays the positive control of one doubt in this time, outside its refusal budget

_SERVERS_STATE = frozenset({"server_busy", "server_storage", "smtp_tempfail"})
_BUSY = frozenset({"server_busy", "server_storage"})


@dataclass(slots=True)
class Batch:
    """One transaction that may be asked: recipients of one domain, or a control, from `start_at` on."""

    domain: Domain
    items: list[Item]
    start_at: float
    spending: Spending | None
    control: bool = False
    positive: bool = False
    grant: int | None = None  # of the identity state, once it is written there

    @property
    def tokens(self) -> int:
        """Refusals reserved for it."""
        return self.spending.tokens if self.spending else 0


@dataclass(slots=True)
class Visit:
    """One session that the lane let start, and what it has spent of its own limits."""

    lane: Lane
    site: str
    first: Batch
    started_at: float
    recipients: int = 0
    refusals: int = 0
    transactions: int = 0
    half_open: bool = False
    waited_s: float = 0.0  # how long its domain had waited for its turn
    trial: bool = False  # the half-open session of the identity
    touched: set[str] = field(default_factory=set)


class Lane:
    """The queue, limits, budget, breaker and brake of one (provider or site, identity).

    `start` a visit when `ready_at` has come, ask for `more` batches in it, tell each reply by `observe` and each
    batch's end by `settle`, and `finish` the visit.
    """

    def __init__(self, key: str, policy: Policy) -> None:
        self.key = key
        self.policy = policy
        self.queue = Queue()
        self.open_sessions = 0
        self._taught = (sys.maxsize, sys.maxsize)  # recipients a transaction and a session, as far as its sites told
        self.learn()
        self.breaker = Breaker(policy.breaker.open_s, policy.breaker.max_open_s)
        self.brake = Brake()
        self.budget = RefusalBudget(policy.refusals.rate)
        self._sessions = TokenBucket(policy.sessions.rate.per_s, policy.sessions.burst)
        self._recipients = TokenBucket(policy.recipients.rate.start.per_s, policy.recipients.per_transaction)
        self.pace = Pace(policy.recipients.rate, policy.pace, self._recipients)
        self.unsaved = False  # something changed that the next run has to know
        self._positive_at = float("-inf")  # when the allowance pays for another doubt
        self._refusing: deque[tuple[str, bool]] = deque(maxlen=OF_LAST)  # one answer a domain: did it refuse us
        self._tempfails: deque[tuple[float, bool]] = deque()  # (when, bad) of replies in the breaker's window

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return self.queue.empty and not self.open_sessions and self.brake.doubt is not Doubt.ASKING

    # --- deciding ---------------------------------------------------------------------------------------------

    def ready_at(self, now: float) -> float | None:
        """When the next session could start; None while only an event (a session's end) can change that."""
        self.queue.wake(now)
        if self.brake.doubt is not Doubt.NONE:
            return self._positive_ready_at(now)
        if self.open_sessions >= self.policy.sessions.concurrency or self.breaker.state is BreakerState.HALF_OPEN:
            return None
        domain = self.queue.next()
        if domain is None and self.queue.next_at is None:
            return None
        due = self._sessions.ready_at(now)
        if self.breaker.state is BreakerState.OPEN:
            due = max(due, self.breaker.until)
        if domain is None:
            return max(due, self.queue.next_at or now)
        self.pace.recover(now)
        return max(due, self.budget.room_at(now), self._recipients.ready_at(now, self._first_size(domain, now)))

    def waits_for(self, now: float) -> str:
        """The limit by which `ready_at` lies ahead, as its key in the policy file; empty where none does.

        `retry` stands for the ladders and for domains that are held.
        """
        if self.queue.empty:
            return ""
        if self.open_sessions >= self.policy.sessions.concurrency:
            return "sessions.concurrency"
        if self.breaker.state is not BreakerState.CLOSED:
            return "breaker.open"
        domain = self.queue.next()
        if domain is None or self.brake.doubt is not Doubt.NONE:
            return "control_rcpt" if self.queue.next_at is None else "retry"
        moments = {
            "refusals.rate": self.budget.room_at(now),
            "recipients.rate": self._recipients.ready_at(now, self._first_size(domain, now)),
            "sessions.rate": self._sessions.ready_at(now),
        }
        latest = max(moments, key=lambda key: moments[key])
        return latest if moments[latest] > now else ""

    def start(self, now: float, *, trial: bool = False) -> Visit | None:
        """Start a session with the tokens of its whole first transaction, or nothing at all.

        A `trial` is the half-open session of the identity: it asks one address, whoever is asked.
        """
        due = self.ready_at(now)
        if due is None or due > now:
            return None
        if self.brake.doubt is Doubt.ASKING:
            return self._start_positive(now, trial=trial)
        domain = self.queue.next()
        if domain is None or not self._sessions.take(now):
            return None
        self.breaker.attempt(now)
        half_open = trial or self.breaker.state is BreakerState.HALF_OPEN
        if domain.hold is not None:
            domain.hold.attempt(now)
            half_open = half_open or domain.hold.state is BreakerState.HALF_OPEN
        waited_s = max(0.0, now - domain.ready_since)
        first = self._batch(domain, now, 1 if half_open else self._first_size(domain, now))
        self.open_sessions += 1
        visit = Visit(self, domain.site, first, now, half_open=half_open, waited_s=waited_s, trial=trial)
        self._count(visit, first)
        return visit

    def more(self, visit: Visit, now: float) -> Batch | None:
        """The next transaction of a session at its site, or None: it should say QUIT.

        `start_at` of the batch may lie up to PATIENCE_S ahead.
        """
        self.queue.wake(now)
        left = self.policy.refusals.per_session - visit.refusals
        stopped = visit.half_open or self.breaker.state is not BreakerState.CLOSED or self.brake.doubt is not Doubt.NONE
        spent = visit.recipients >= self.per_session or left < 1 or visit.transactions >= MAX_TRANSACTIONS
        too_many = self.open_sessions > self.policy.sessions.concurrency  # the limit was lowered meanwhile
        if stopped or spent or too_many or self._old(visit, now):
            return None
        domain = self.queue.next(visit.site)
        if domain is None or domain.hold is not None or not self.budget.room(now):
            return None
        if not domain.settled and left < 2 and domain.control_due is None:
            return None  # one token is kept back for the control
        size = min(self._size(domain, now, left), self.per_session - visit.recipients)
        at = self._recipients.ready_at(now, size)
        if at > now + PATIENCE_S:
            return None
        batch = self._batch(domain, at, size)
        self._count(visit, batch)
        return batch

    def control(self, visit: Visit, domain: Domain, now: float) -> Batch | None:
        """Reserve the control RCPT in this session, or None where a token is missing: it then waits its turn."""
        spent = visit.refusals >= self.policy.refusals.per_session
        if spent or not self.budget.room(now) or visit.recipients >= self.per_session or self._old(visit, now):
            return None
        at = self._recipients.ready_at(now)
        if at > now + PATIENCE_S:
            return None
        self.queue.want_control(domain, now, now)
        batch = self._batch(domain, at, 1)
        self._count(visit, batch)
        return batch

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
    ) -> bool:
        """One judged reply: the one place where breaker, hold, pace and budget learn of it. True: it refuses us.

        `jitter` is a share of the open time, drawn by the caller; `first` marks an address's first attempt, whose
        450 or 451 at RCPT may be greylisting and is no sign of trouble. What is closed by it stays closed for the
        delay `delay_s` that the reply names, at least.
        """
        at_least_s, state = delay_s or 0.0, self.breaker.state
        answers = reason.fault not in {Fault.US, Fault.NETWORK} and reason.code not in _BUSY
        source = reach is Reach.SOURCE or (reach is Reach.DOMAIN and self._refused_by(domain.name))
        if reason.code in CUTS_PACE:
            self.unsaved |= self.pace.cut(now)
        if reach is Reach.SOURCE:
            self.unsaved |= self.budget.blamed(now)
        if source or (not answers and self.breaker.state is BreakerState.HALF_OPEN):
            self.breaker.open(now, reason.code, jitter, at_least_s=at_least_s)
            self.unsaved |= bool(at_least_s)
        elif self.breaker.state is BreakerState.HALF_OPEN:
            self.breaker.close()
        self._hold(domain, reason, reach, now, jitter, at_least_s, answers=answers)
        if reach is Reach.NONE:
            if answers:
                self._answered(domain.name, refused=False)
            self._weigh(reason, now, jitter, first=first)
        self.unsaved |= self.breaker.state is not state
        return source

    def settle(self, visit: Visit, batch: Batch, refused: int, now: float, *, errors: int | None = None) -> int:
        """The answers of a batch are in: give back what was not refused; says how many tokens that is.

        The session keeps those of all `errors`, 4yz included: Postfix counts them alike, slows down from the 10th in a
        session and ends it at the 20th; postscreen ends one after 20 commands.
        """
        back = 0
        if batch.spending is not None:
            back = batch.spending.tokens - refused
            visit.refusals -= batch.spending.tokens - max(refused, errors or 0)
            self.budget.give_back(batch.spending, back)
            batch.domain.in_flight -= 1
        if batch.control:
            batch.domain.control_asked = False
        batch.domain.busy = batch.domain.control_asked
        self.queue.offer(batch.domain, now)
        return back

    def finish(self, visit: Visit, now: float) -> None:
        """The session is over."""
        self.open_sessions -= 1
        if visit.half_open:
            self.breaker.release(now)
        for name in visit.touched:
            domain = self.queue.domains.get(name)
            if domain is None:
                continue
            if visit.half_open and domain.hold is not None:
                domain.hold.release(now)
            self.queue.offer(domain, now)
            if name not in self.brake.domains:
                self.queue.forget(domain)

    def learn(self, *, per_transaction: int | None = None, per_session: int | None = None) -> None:
        """A site told that it takes fewer recipients; what was learnt only ever shrinks."""
        transaction, session = self._taught
        if per_transaction is not None:
            transaction = max(1, min(transaction, per_transaction))
        if per_session is not None:
            session = max(2, min(session, per_session))
        self._taught = transaction, session
        self.per_transaction = min(transaction, self.policy.recipients.per_transaction)
        self.per_session = min(session, self.policy.recipients.per_session)

    def adopt(self, policy: Policy, now: float) -> None:
        """Other limits from now on. What was spent, learnt and refused stays; sessions beyond the new number end."""
        self.policy = policy
        self.learn()
        self._sessions.set_rate(policy.sessions.rate.per_s, now, policy.sessions.burst)
        self.pace.adopt(policy.recipients.rate, policy.pace, policy.recipients.per_transaction, now)
        self.budget.adopt(policy.refusals.rate)
        self.breaker.adopt(policy.breaker.open_s, policy.breaker.max_open_s)
        for domain in self.queue.held():
            if domain.hold is not None:
                domain.hold.adopt(policy.breaker.open_s, policy.breaker.max_open_s)

    def greet(self, now: float) -> float | None:
        """Count a connection that asks nothing; until when to wait for its token (0: it is counted), None: not here."""
        if self.breaker.state is not BreakerState.CLOSED or self.open_sessions >= self.policy.sessions.concurrency:
            return None
        if not self._sessions.take(now):
            return self._sessions.ready_at(now)
        self.open_sessions += 1
        return 0.0

    def part(self) -> None:
        """The connection that asked nothing is over."""
        self.open_sessions -= 1

    # --- remembering ------------------------------------------------------------------------------------------

    def memory(self, now: float) -> dict[str, Any]:
        """What the next run has to know, as plain data; nothing for a lane like a new one. Spendings apart."""
        holds = {domain.name: domain.hold.memory(now) for domain in self.queue.held() if domain.hold is not None}
        kept = {
            "breaker": self.breaker.memory(now),
            "holds": {name: hold for name, hold in (holds | self.queue.holds_to_come(now)).items() if hold},
            "pace": self.pace.memory(now),
            "refusals": self.budget.memory(now),
            "owed": {
                name: owed_s
                for name, bucket in (("sessions", self._sessions), ("recipients", self._recipients))
                if (owed_s := bucket.owed_s(now)) > 0
            },
        }
        return {name: value for name, value in kept.items() if value}

    def recall(self, kept: Mapping[str, Any], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later."""
        limits = self.policy.breaker
        self.breaker.recall(kept.get("breaker", {}), now, away_s)
        for name, hold in kept.get("holds", {}).items():
            breaker = Breaker(limits.open_s, limits.max_open_s)
            breaker.recall(hold, now, away_s)
            self.queue.recall_hold(name, breaker)
        self.pace.recall(kept.get("pace", {}), now, away_s)
        self.budget.recall(kept.get("refusals", {}), now, away_s)
        owed = kept.get("owed", {})
        self._sessions.owe(min(LONGEST_S, owed.get("sessions", 0.0) - away_s), now)
        self._recipients.owe(min(LONGEST_S, owed.get("recipients", 0.0) - away_s), now)

    # --- inside -----------------------------------------------------------------------------------------------

    def _old(self, visit: Visit, now: float) -> bool:
        return now - visit.started_at > AGE * self.policy.timeouts.session_s

    def _first_size(self, domain: Domain, now: float) -> int:
        """How many recipients a session that starts at `domain` asks in its first transaction."""
        return self._size(domain, now, min(self.policy.refusals.per_session, self.per_session + 1))

    def _size(self, domain: Domain, now: float, left: int) -> int:
        """How many recipients the next transaction at `domain` has; a due control goes alone."""
        if domain.control_due is not None and domain.control_due <= now:
            return 1
        keep_back = 0 if domain.settled else 1
        return max(1, min(len(domain.items), self.per_transaction, left - keep_back, max(1, self.budget.room(now))))

    def _batch(self, domain: Domain, at: float, size: int) -> Batch:
        """Charge and take the next transaction of `domain`."""
        control = domain.control_due is not None and domain.control_due <= at
        if control:
            self.queue.drop_control(domain)
            domain.control_asked = True
        items = self.queue.take(domain, 0 if control else size)
        tokens = 1 if control else len(items)
        self._recipients.take(at, tokens)
        domain.in_flight += 1
        domain.busy = control or not domain.settled
        self.queue.offer(domain, at)
        return Batch(domain, items, at, self.budget.spend(at, tokens), control=control)

    @staticmethod
    def _count(visit: Visit, batch: Batch) -> None:
        visit.recipients += batch.tokens
        visit.transactions += 1
        visit.refusals += batch.tokens
        visit.touched.add(batch.domain.name)

    def _hold(
        self,
        domain: Domain,
        reason: Reason,
        reach: Reach,
        now: float,
        jitter: float,
        at_least_s: float,
        *,
        answers: bool,
    ) -> None:
        hold = domain.hold
        if reach is Reach.DOMAIN:
            if hold is None:
                hold = Breaker(self.policy.breaker.open_s, self.policy.breaker.max_open_s)
                self.queue.hold(domain, hold)
            self.unsaved |= hold.open(now, reason.code, jitter, at_least_s=at_least_s) or bool(at_least_s)
        elif hold is not None and hold.state is BreakerState.HALF_OPEN:
            if answers:
                domain.hold = None
            else:
                hold.open(now, reason.code, jitter, at_least_s=at_least_s)
            self.unsaved = True
        self.queue.offer(domain, now)

    def _refused_by(self, name: str) -> bool:
        """A refusal of reach `domain`: whether so many domains refuse that it is the source they mean."""
        self._answered(name, refused=True)
        last = list(self._refusing)
        in_a_row = len(last) >= DOMAINS_IN_A_ROW and all(refused for _, refused in last[-DOMAINS_IN_A_ROW:])
        return in_a_row or sum(refused for _, refused in last) >= DOMAINS_OF_LAST

    def _answered(self, name: str, *, refused: bool) -> None:
        if self._refusing and self._refusing[-1] == (name, refused):
            return
        for known in self._refusing:
            if known[0] == name:
                self._refusing.remove(known)
                break
        self._refusing.append((name, refused))

    def _weigh(self, reason: Reason, now: float, jitter: float, *, first: bool) -> None:
        """The tempfail ratio: connection failures and tempfails of the server open the breaker, others are neutral."""
        bad = reason.fault is Fault.NETWORK or reason.code in _SERVERS_STATE
        if reason.fault is Fault.RECIPIENT or reason.code in {"greylisted", "too_many_recipients"}:
            return
        if reason.code == "smtp_tempfail" and first:
            return
        limits, window = self.policy.breaker, self._tempfails
        window.append((now, bad))
        while window[0][0] <= now - limits.window_s:
            window.popleft()
        if not bad or len(window) < limits.min_samples:
            return
        if sum(failed for _, failed in window) >= limits.tempfail_ratio * len(window):
            window.clear()
            self.breaker.open(now, reason.code, jitter)

    def _positive_ready_at(self, now: float) -> float | None:
        """When the brake's positive control may be asked: within the session rate, from an allowance of its own."""
        if self.brake.doubt is not Doubt.ASKING or self.open_sessions or self.breaker.state is BreakerState.HALF_OPEN:
            return None
        due = self.brake.ask_at  # it may lie behind us, and then sorts before every lane that is ready now
        if self._sessions.ready_at(now) > now:
            due = max(due, self._sessions.ready_at(now))
        if not self.brake.asked:
            due = max(due, self._positive_at)
        return max(due, self.breaker.until) if self.breaker.state is BreakerState.OPEN else due

    def _start_positive(self, now: float, *, trial: bool) -> Visit | None:
        domain = self.queue.domains.get(self.brake.most_refused)
        if domain is None or not self._sessions.take(now):
            self.brake.release()
            return None
        if not self.brake.asked:
            self._positive_at = now + ALLOWANCE_S
        self.brake.asked = True
        self.breaker.attempt(now)
        self.open_sessions += 1
        half_open = trial or self.breaker.state is BreakerState.HALF_OPEN
        batch = Batch(domain, [], now, None, positive=True)
        return Visit(self, domain.site, batch, now, half_open=half_open, trial=trial, touched={domain.name})

    def __repr__(self) -> str:
        return f"<Lane {self.key} {self.queue.waiting} waiting, {self.open_sessions} open, {self.breaker.state}>"
