"""A lane: what one identity asks one provider or site, within its limits.

1. Nothing is asked without its tokens: a session's, a recipient's, and one refusal reserved for every RCPT in flight.
2. Until a domain's control question is settled, one session asks that domain, in one transaction.
3. An open breaker or a brake in doubt starts nothing; what is in flight is told so at its next transaction.
4. It decides and counts; it never dials, sleeps or writes. Time comes in as `now`.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import count

from engine.core.brake import Brake, Doubt
from engine.core.breaker import Breaker, BreakerState
from engine.core.bucket import SlidingCount, Spending, TokenBucket
from engine.core.control import ControlAnswer
from engine.core.policy import Policy
from engine.core.reasons import Fault, Reach, Reason

PATIENCE_S = 2.0  # no session idles for tokens: one that would wait longer says QUIT
DOMAINS_IN_A_ROW = 3  # so many domains of a lane that refuse us one after the other are the source's refusal
ALLOWANCE_S = 3600.0  # a lane pays one positive control in this time, outside its refusal budget


@dataclass(slots=True)
class Item:
    """An address that waits to be asked. `id` is the journal's; steps count what its ladders used."""

    id: int
    local: str
    domain: str
    attempts: int = 0
    greylist_steps: int = 0
    tempfail_steps: int = 0
    reconnects: int = 0
    first_at: float | None = None  # wall clock of its first attempt
    last_reason: str = ""


@dataclass(slots=True)
class Domain:
    """What the lane knows of one domain: its queue and its control question."""

    name: str
    id: int
    site: str
    items: deque[Item] = field(default_factory=deque)
    control: ControlAnswer = ControlAnswer.UNKNOWN
    control_due: float | None = None  # accepted addresses wait for a control from this moment on
    control_steps: int = 0
    control_number: int = 0
    busy: bool = False
    hold: Breaker | None = None  # a refusal of reach `domain` holds this domain only

    @property
    def settled(self) -> bool:
        """Whether its control question is answered for now."""
        return self.control is not ControlAnswer.UNKNOWN


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
    recipients: int = 0
    refusals: int = 0
    half_open: bool = False


class Lane:
    """The queue, limits, budget, breaker and brake of one (provider or site, identity).

    Its machine is: `add` items, `start` a visit when `ready_at` has come, ask for `more` batches in it,
    report each batch by `settle`, and `finish` the visit.
    """

    def __init__(self, key: str, policy: Policy) -> None:
        self.key = key
        self.policy = policy
        self.domains: dict[str, Domain] = {}
        self.open_sessions = 0
        self.waiting = 0
        self.per_transaction = policy.recipients.per_transaction
        self.per_session = policy.recipients.per_session
        self.breaker = Breaker(policy.breaker.open_s, policy.breaker.max_open_s)
        self.brake = Brake()
        self.budget = SlidingCount(policy.refusals.rate.start.count, policy.refusals.rate.start.period_s)
        self._sessions = TokenBucket(policy.sessions.rate.per_s, policy.sessions.burst)
        self._recipients = TokenBucket(policy.recipients.rate.start.per_s, policy.recipients.per_transaction)
        self._ready: OrderedDict[str, None] = OrderedDict()  # domains that could be asked, in turn
        self._later: list[tuple[float, int, Item | None, str]] = []
        self._order = count()
        self._positive_at = float("-inf")
        self._refusing: set[str] = set()  # domains that refused us since one answered

    # --- what waits -------------------------------------------------------------------------------------------

    def domain(self, name: str, domain_id: int, site: str) -> Domain:
        """The lane's record of a domain, made when it is new."""
        known = self.domains.get(name)
        if known is None:
            known = self.domains[name] = Domain(name, domain_id, site)
        return known

    def add(self, item: Item, now: float, at: float = 0.0, *, first: bool = False) -> None:
        """Let an address wait, from `at` on; `first` puts it ahead of its domain's queue."""
        self.waiting += 1
        if at > now:
            heapq.heappush(self._later, (at, next(self._order), item, item.domain))
            return
        domain = self.domains[item.domain]
        domain.items.appendleft(item) if first else domain.items.append(item)
        self._offer(domain, first=first)

    def want_control(self, domain: Domain, now: float, at: float) -> None:
        """Accepted addresses of `domain` wait for its control, to be asked from `at` on, ahead of new addresses."""
        domain.control_due = at
        if at > now:
            heapq.heappush(self._later, (at, next(self._order), None, domain.name))
        else:
            self._offer(domain, first=True)

    def drop_domain(self, domain: Domain) -> list[Item]:
        """Take everything of a domain off the queue: it needs no asking any more."""
        kept, gone = [], list(domain.items)
        for entry in self._later:
            if entry[3] == domain.name:
                gone.extend([entry[2]] if entry[2] else [])
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self._later = kept
        domain.items.clear()
        domain.control_due = None
        self._ready.pop(domain.name, None)
        self.waiting -= len(gone)
        return gone

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        quiet = not self.waiting and not self.open_sessions and not self._later and not self._ready
        return quiet and self.brake.doubt is not Doubt.ASKING

    # --- deciding ---------------------------------------------------------------------------------------------

    def ready_at(self, now: float) -> float | None:
        """When the next session could start; None while only an event (a session's end) can change that."""
        self._wake(now)
        positive = self._positive_ready_at(now)
        if positive is not None or self.brake.doubt is not Doubt.NONE:
            return positive
        if self.open_sessions >= self.policy.sessions.concurrency:
            return None
        moments = [self._sessions.ready_at(now)]
        match self.breaker.state:
            case BreakerState.HALF_OPEN:
                return None
            case BreakerState.OPEN:
                moments.append(self.breaker.until)
            case BreakerState.CLOSED:
                pass
        domain, later = self._next_domain(now)
        if domain is None:
            if later is None:
                return None
            moments.append(later)
        else:
            moments.append(self.budget.room_at(now))
            moments.append(self._recipients.ready_at(now, self._size(domain, now, self.policy.refusals.per_session)))
        return max(moments)

    def start(self, now: float) -> Visit | None:
        """Start a session with the tokens of its whole first transaction, or nothing at all."""
        due = self.ready_at(now)
        if due is None or due > now:
            return None
        if self.brake.doubt is Doubt.ASKING:
            return self._start_positive(now)
        domain, _ = self._next_domain(now)
        if domain is None or not self._sessions.take(now):
            return None
        self.breaker.attempt(now)
        half_open = self.breaker.state is BreakerState.HALF_OPEN
        if domain.hold is not None:
            domain.hold.attempt(now)
            half_open = half_open or domain.hold.state is BreakerState.HALF_OPEN
        visit = Visit(self, domain.site, self._batch(domain, now, 1 if half_open else 0), half_open=half_open)
        self.open_sessions += 1
        visit.recipients += max(1, len(visit.first.items))
        visit.refusals += visit.first.tokens
        return visit

    def more(self, visit: Visit, now: float) -> Batch | None:
        """The next transaction of a session at its site, or None: it should say QUIT.

        `start_at` of the batch may lie up to PATIENCE_S ahead.
        """
        self._wake(now)
        if visit.half_open or self.breaker.state is not BreakerState.CLOSED or self.brake.doubt is not Doubt.NONE:
            return None
        left = self.policy.refusals.per_session - visit.refusals
        if visit.recipients >= self.per_session or left < 1:
            return None
        domain = self._next_at(visit.site, now)
        if domain is None or not self.budget.room(now):
            return None
        if not domain.settled and left < 2:
            return None  # one token is kept back for the control
        size = min(self._size(domain, now, left), self.per_session - visit.recipients)
        at = self._recipients.ready_at(now, size)
        if at > now + PATIENCE_S:
            return None
        batch = self._batch(domain, at, size)
        visit.recipients += max(1, len(batch.items))
        visit.refusals += batch.tokens
        return batch

    def control(self, visit: Visit, domain: Domain, now: float) -> Batch | None:
        """Reserve the control RCPT in this session, or None where a token is missing: it then waits its turn."""
        spent = visit.refusals >= self.policy.refusals.per_session
        if spent or not self.budget.room(now) or visit.recipients >= self.per_session:
            return None
        at = self._recipients.ready_at(now)
        if at > now + PATIENCE_S or not self._recipients.take(at):
            return None
        visit.recipients += 1
        visit.refusals += 1
        domain.busy = True
        self._ready.pop(domain.name, None)
        return Batch(domain, [], at, self.budget.spend(at, 1), control=True)

    # --- reporting --------------------------------------------------------------------------------------------

    def settle(self, visit: Visit, batch: Batch, refused: int, now: float) -> int:
        """The answers of a batch are in: give back what was not refused; says how many tokens that is."""
        back = 0
        if batch.spending is not None:
            back = batch.spending.tokens - refused
            batch.spending.give_back(back)
            visit.refusals -= back
        self._release(batch.domain, now)
        return back

    def finish(self, visit: Visit, now: float) -> None:
        """The session is over."""
        self.open_sessions -= 1
        if visit.half_open:
            self.breaker.release(now)
            if visit.first.domain.hold is not None:
                visit.first.domain.hold.release(now)

    def observe(self, domain: Domain, reason: Reason, reach: Reach, now: float, jitter: float) -> None:
        """One judged reply: reach decides what it opens. `jitter` is a share of the open time, drawn by the caller.

        A refusal of reach `source` opens the lane, one of reach `domain` holds that domain only, and counts as
        `source` when DOMAINS_IN_A_ROW refuse so one after the other.
        """
        if reach is Reach.DOMAIN:
            self._refusing.add(domain.name)
            if domain.hold is None:
                domain.hold = Breaker(self.policy.breaker.open_s, self.policy.breaker.max_open_s)
            domain.hold.open(now, reason.code, jitter)
        if reach is Reach.SOURCE or len(self._refusing) >= DOMAINS_IN_A_ROW:
            self._refusing.clear()
            self.breaker.open(now, reason.code, jitter)
        if reach is not Reach.NONE:
            return
        answers = reason.fault not in {Fault.US, Fault.NETWORK} and reason.code not in {"server_busy", "server_storage"}
        if answers:
            self._refusing.clear()
            self.breaker.close()
            if domain.hold is not None:
                domain.hold.close()
        elif self.breaker.state is BreakerState.HALF_OPEN:
            self.breaker.open(now, reason.code, jitter)
        elif domain.hold is not None and domain.hold.state is BreakerState.HALF_OPEN:
            domain.hold.open(now, reason.code, jitter)

    def take_site(self, site: str) -> list[Item]:
        """Take every address that waits for its first or next try at a site whose hosts can't be reached."""
        taken: list[Item] = []
        for name in [name for name in self._ready if self.domains[name].site == site]:
            domain = self.domains[name]
            taken.extend(domain.items)
            domain.items.clear()
            if domain.control_due is None:
                self._ready.pop(name)
        self.waiting -= len(taken)
        return taken

    def learn(self, *, per_transaction: int | None = None, per_session: int | None = None) -> None:
        """A site told that it takes fewer recipients; limits only ever shrink here."""
        if per_transaction is not None:
            self.per_transaction = max(1, min(self.per_transaction, per_transaction))
        if per_session is not None:
            self.per_session = max(2, min(self.per_session, per_session))

    # --- inside -----------------------------------------------------------------------------------------------

    def _wake(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            _, _, item, name = heapq.heappop(self._later)
            domain = self.domains[name]
            if item is not None:
                domain.items.append(item)
            self._offer(domain, first=item is None)

    def _offer(self, domain: Domain, *, first: bool = False) -> None:
        if domain.busy or not (domain.items or domain.control_due is not None):
            return
        self._ready[domain.name] = None
        if first:
            self._ready.move_to_end(domain.name, last=False)

    def _next_domain(self, now: float) -> tuple[Domain | None, float | None]:
        """The domain whose turn it is, or the moment at which one could have its turn."""
        soonest = self._later[0][0] if self._later else None
        for name in self._ready:
            domain = self.domains[name]
            hold = domain.hold
            if hold is None or hold.allows(now):
                return domain, None
            if hold.state is BreakerState.OPEN:
                soonest = hold.until if soonest is None else min(soonest, hold.until)
        return None, soonest

    def _next_at(self, site: str, now: float) -> Domain | None:
        for name in self._ready:
            domain = self.domains[name]
            if domain.site == site and (domain.hold is None or domain.hold.state is BreakerState.CLOSED):
                return domain
        return None

    def _size(self, domain: Domain, now: float, left: int) -> int:
        """How many recipients the next transaction at `domain` has; a due control goes alone."""
        if domain.control_due is not None and domain.control_due <= now:
            return 1
        keep_back = 0 if domain.settled else 1
        return max(1, min(len(domain.items), self.per_transaction, left - keep_back, max(1, self.budget.room(now))))

    def _batch(self, domain: Domain, at: float, size: int) -> Batch:
        """Charge and take the next transaction of `domain`; `size` 0 means as many as fit."""
        if domain.control_due is not None and domain.control_due <= at:
            domain.control_due = None
            domain.busy = True
            self._ready.pop(domain.name, None)
            self._recipients.take(at)
            return Batch(domain, [], at, self.budget.spend(at, 1), control=True)
        size = size or self._size(domain, at, self.policy.refusals.per_session)
        items = [domain.items.popleft() for _ in range(min(size, len(domain.items)))]
        self.waiting -= len(items)
        self._recipients.take(at, len(items))
        if not domain.settled:
            domain.busy = True
        self._ready.pop(domain.name, None)
        self._offer(domain)
        return Batch(domain, items, at, self.budget.spend(at, len(items)))

    def _release(self, domain: Domain, now: float) -> None:
        domain.busy = False
        self._offer(domain)

    def _positive_ready_at(self, now: float) -> float | None:
        """When the brake's positive control may be asked: from an allowance of its own, one session at a time."""
        if self.brake.doubt is not Doubt.ASKING or self.open_sessions:
            return None
        return max(now, self.brake.ask_at, self._positive_at)

    def _start_positive(self, now: float) -> Visit:
        domain = self.domains[self.brake.most_refused]
        self._positive_at = now + min(ALLOWANCE_S, self.brake.again_s)
        self.open_sessions += 1
        return Visit(self, domain.site, Batch(domain, [], now, None, positive=True))

    def __repr__(self) -> str:
        return (
            f"<Lane {self.key} {self.waiting} waiting, {self.open_sessions} open, {self.breaker.state}, {self.budget}>"
        )
