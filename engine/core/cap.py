"""Limits that lanes share: of a site, a provider or an address, of all sites of a provider, of an identity.

1. Caps form a tree. Whoever starts a session is granted it by its lane's own cap and by every cap above that one; all
   are checked first, then all are charged, or none.
2. A cap serves lanes in the order in which they first wanted to start. A lane that passed one cap and waits for the
   next above keeps its place in both, and nobody overtakes it in either.
3. A lane's own limits are a cap too: two lanes that lead to one provider or address share one cap, not one each.
4. A cap decides and counts; who waits where is the schedule's work. Time comes in as `now` (monotonic seconds).
5. What it was told and has spent outlives it: `memory` and `recall` carry it over a restart, windows apart.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.core.breaker import Breaker, BreakerState
from engine.core.bucket import NEVER, Gate, Spending
from engine.core.identity import Identity
from engine.core.pace import CUTS_PACE, Pace, RefusalBudget, Warmth
from engine.core.policy import Policy, Sessions
from engine.core.reasons import Fault, Reach, Reason

Entry = tuple[float, int, Any]  # in the schedule's heap: a moment, a number, and the lane or cap that it is for

_SERVERS_STATE = frozenset({"server_busy", "server_storage", "smtp_tempfail"})
_BUSY = frozenset({"server_busy", "server_storage"})


class Line:
    """Who waits, lowest ticket first; who comes in between by an older ticket is served before."""

    __slots__ = ("_heap", "_tickets")

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._tickets: dict[str, int] = {}

    def join(self, key: str, ticket: int) -> None:
        """Wait here; nothing changes for who waits here already with this ticket."""
        if self._tickets.get(key) != ticket:
            self._tickets[key] = ticket
            heapq.heappush(self._heap, (ticket, key))

    def leave(self, key: str) -> bool:
        """Wait here no more; False when it did not."""
        return self._tickets.pop(key, None) is not None

    def serves(self, key: str, ticket: int) -> bool:
        """Whether it would be this one's turn, if it waited here."""
        first = self.first
        return not first or first == key or ticket < self._tickets[first]

    @property
    def first(self) -> str:
        """Whose turn it is; empty when nobody waits."""
        if not self._tickets:
            self._heap.clear()
            return ""
        while True:
            ticket, key = self._heap[0]
            if self._tickets.get(key) == ticket:
                return key
            heapq.heappop(self._heap)

    @property
    def keys(self) -> list[str]:
        """All who wait, in no order."""
        return list(self._tickets)

    def __len__(self) -> int:
        return len(self._tickets)

    def __repr__(self) -> str:
        return f"<Line of {len(self)}, {self.first or 'nobody'} first>"


@dataclass(slots=True)
class Charge:
    """What one window was charged for a transaction. `key` names it in the identity state, `grant` its row there."""

    key: str
    window: RefusalBudget | Warmth
    spending: Spending
    grant: int | None = None

    def release(self, refused: int, asked: int) -> int:
        """Give back what was not used: a budget keeps what was refused, a day's count what was asked."""
        back = self.spending.tokens - (refused if isinstance(self.window, RefusalBudget) else asked)
        if back:
            self.window.give_back(self.spending, back)
        return back


class Cap:
    """Limits that hold for everybody below it; what is None is not limited here.

    `sessions` spaces session starts, `starts` counts them in a window, `concurrency` is how many may be open at once;
    `recipients` spaces RCPTs, at the rate of `pace`; `budget` and `warmth` are windows whose spendings outlive the
    process.
    """

    __slots__ = (
        "_tempfails", "above", "breaker", "budget", "concurrency", "entry", "key", "line", "most", "open_sessions",
        "pace", "policy", "recipients", "sessions", "starts", "unsaved", "users", "warmth",
    )  # fmt: skip

    def __init__(self, key: str, above: Cap | None = None) -> None:
        self.key = key
        self.above = above
        self.line: Line | None = None  # made when somebody waits: most never form
        self.entry: Entry | None = None  # the schedule's: its valid place in the heap
        self.users = 0  # lanes and visits that are under it, as far as somebody counts them
        self.open_sessions = 0
        self.concurrency = sys.maxsize
        self.most = sys.maxsize  # sessions at once that it was told to be enough
        self.policy: Policy | None = None
        self.sessions: Gate | None = None
        self.starts: RefusalBudget | None = None
        self.recipients: Gate | None = None
        self.pace: Pace | None = None
        self.budget: RefusalBudget | None = None
        self.warmth: Warmth | None = None
        self.breaker: Breaker | None = None
        self.unsaved = False  # something changed that the next run has to know
        self._tempfails: list[tuple[float, bool]] | None = None  # (when, bad) of replies in the breaker's window

    @property
    def stops(self) -> bool:
        """Whether a session that is open here asks nothing more: the breaker opened, or a limit was lowered."""
        closed = self.breaker is None or self.breaker.state is BreakerState.CLOSED
        return not closed or self.open_sessions > self.concurrency

    @property
    def chain(self) -> tuple[Cap, ...]:
        """This cap and all above it, from the innermost on."""
        return (self, *self.above.chain) if self.above is not None else (self,)

    @property
    def windows(self) -> dict[str, RefusalBudget | Warmth]:
        """Its windows by their names in the identity state."""
        found: dict[str, RefusalBudget | Warmth] = {}
        if self.budget is not None:
            found[self.key] = self.budget
        if self.warmth is not None:
            found["warmup"] = self.warmth
        return found

    @property
    def full_at(self) -> float:
        """From when on a new one in its place is as good, while nobody uses it: its windows outlive it elsewhere."""
        full = self.sessions.full_at if self.sessions is not None else NEVER
        if self.recipients is not None and (at := self.recipients.full_at) > full:
            full = at
        if self.starts is not None and (at := self.starts.empty_at) > full:
            full = at
        if self.breaker is not None and self.breaker.state is not BreakerState.CLOSED:
            full = max(full, self.breaker.until)
        return full

    # --- deciding ---------------------------------------------------------------------------------------------

    def ready_at(self, now: float, size: int) -> float | None:
        """When it grants a session that begins with `size` recipients; None while only a session's end can tell."""
        if self.open_sessions >= self.concurrency:
            return None
        due, breaker = now, self.breaker
        if breaker is not None and breaker.state is not BreakerState.CLOSED:
            if breaker.state is BreakerState.HALF_OPEN:
                return None
            due = max(due, breaker.until)
        if self.sessions is not None and (at := self.sessions.ready_at(now)) > due:
            due = at
        if self.starts is not None and (at := self.starts.room_at(now)) > due:
            due = at
        if size and (at := self.asks_at(now, size)) > due:
            due = at
        return due

    def asks_at(self, now: float, size: int) -> float:
        """When it grants `size` recipients in a session that is open."""
        due = now
        if self.pace is not None and self.recipients is not None:
            if not self.pace.settled:
                self.pace.recover(now)
            due = self.recipients.ready_at(now, size)
        if self.budget is not None and (at := self.budget.room_at(now)) > due:
            due = at
        if self.warmth is not None and (at := self.warmth.room_at(now)) > due:
            due = at
        return due

    def moments(self, now: float, size: int) -> dict[str, float]:
        """When each of its limits would let such a session start, by its key in the policy or identity file."""
        found = {}
        if self.budget is not None:
            found["refusals.rate" if self.pace is not None else "limits.refusals"] = self.budget.room_at(now)
        if self.recipients is not None:
            found["recipients.rate"] = self.recipients.ready_at(now, size)
        if self.sessions is not None:
            found["sessions.rate"] = self.sessions.ready_at(now)
        if self.starts is not None:
            found["limits.sessions"] = self.starts.room_at(now)
        if self.warmth is not None:
            found["warmup"] = self.warmth.room_at(now)
        return found

    def closed_by(self) -> str:
        """What lets no session start before another one ended, or its breaker's time: a key of the policy file."""
        if self.open_sessions >= self.concurrency:
            return "sessions.concurrency"
        return "breaker.open" if self.breaker is not None and self.breaker.state is not BreakerState.CLOSED else ""

    def room(self, now: float) -> int:
        """How many recipients its windows hold room for."""
        room = self.budget.room(now) if self.budget is not None else sys.maxsize
        return room if self.warmth is None else min(room, self.warmth.room(now))

    # --- charging ---------------------------------------------------------------------------------------------

    def open(self, now: float) -> Breaker | None:
        """Charge a session that starts; says which breaker it is the half-open session of."""
        self.open_sessions += 1
        if self.sessions is not None:
            self.sessions.take(now)
        if self.starts is not None:
            self.starts.spend(now, 1)
        if self.breaker is None or self.breaker.state is BreakerState.CLOSED:
            return None
        self.breaker.attempt(now)
        return self.breaker if self.breaker.state is BreakerState.HALF_OPEN else None

    def charge(self, at: float, tokens: int) -> list[Charge]:
        """Charge the recipients of a transaction that is asked at `at`."""
        if self.recipients is not None:
            self.recipients.take(at, tokens)
        charges = []
        if self.budget is not None:
            charges.append(Charge(self.key, self.budget, self.budget.spend(at, tokens)))
        if self.warmth is not None:
            charges.append(Charge("warmup", self.warmth, self.warmth.spend(at, tokens)))
        return charges

    def observe(
        self,
        reason: Reason,
        reach: Reach,
        now: float,
        jitter: float,
        *,
        source: bool,
        first: bool,
        at_least_s: float = 0.0,
    ) -> None:
        """One judged reply: its breaker, pace and budget learn of it. `source` says that the source was refused."""
        if self.breaker is None or self.pace is None or self.budget is None:
            return
        state = self.breaker.state
        if reason.code in CUTS_PACE:
            self.unsaved |= self.pace.cut(now)
        if reach is Reach.SOURCE:
            self.unsaved |= self.budget.blamed(now)
        if source or (state is BreakerState.HALF_OPEN and not answers(reason)):
            self.breaker.open(now, reason.code, jitter, at_least_s=at_least_s)
            self.unsaved |= bool(at_least_s)
        elif state is BreakerState.HALF_OPEN:
            self.breaker.close()
        if reach is Reach.NONE:
            self._weigh(reason, now, jitter, first=first)
        self.unsaved |= self.breaker.state is not state

    def crowded(self, most: int) -> None:
        """So many sessions at once are enough, whatever the policy says; what was learnt only ever shrinks."""
        self.most = max(1, min(self.most, most))
        self.concurrency = min(self.concurrency, self.most)

    def blamed(self, now: float) -> None:
        """Our source as a whole is refused: the counts that adapt are halved, at most once an hour."""
        for count in (self.starts, self.budget):
            if count is not None:
                self.unsaved |= count.blamed(now)

    def adopt(self, policy: Policy, now: float) -> None:
        """Other limits from now on. What was spent, learnt and refused stays; sessions beyond the new number end."""
        self.policy = policy
        if self.pace is None or self.budget is None or self.breaker is None:
            _across(self, policy, now)
            return
        self.concurrency = min(policy.sessions.concurrency, self.most)
        assert self.sessions is not None
        self.sessions.set_rate(policy.sessions.rate.per_s, now, policy.sessions.burst)
        self.pace.adopt(policy.recipients.rate, policy.pace, policy.recipients.per_transaction, now)
        self.budget.adopt(policy.refusals.rate)
        self.breaker.adopt(policy.breaker.open_s, policy.breaker.max_open_s)

    # --- remembering ------------------------------------------------------------------------------------------

    def memory(self, now: float) -> dict[str, Any]:
        """What the next run has to know, as plain data; nothing for a cap like a new one. Spendings apart."""
        learners = (("breaker", self.breaker), ("pace", self.pace), ("refusals", self.budget), ("starts", self.starts))
        kept: dict[str, Any] = {}
        for name, learner in learners:
            if learner is not None and (learnt := learner.memory(now)):
                kept[name] = learnt
        if self.starts is not None and (begun := self.starts.recent(now)):
            kept["begun"] = begun
        for name, bucket in (("sessions", self.sessions), ("recipients", self.recipients)):
            if bucket is not None and (owed := bucket.owed(now)) > 0:
                kept.setdefault("tokens", {})[name] = owed
        return kept

    def recall(self, kept: Mapping[str, Any], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later."""
        if self.breaker is not None:
            self.breaker.recall(kept.get("breaker", {}), now, away_s)
        for name, learner in (("pace", self.pace), ("refusals", self.budget), ("starts", self.starts)):
            if learner is not None:
                learner.recall(kept.get(name, {}), now, away_s)
        if self.starts is not None:
            for ago_s, tokens in kept.get("begun", ()):
                self.starts.remember(now - away_s - ago_s, tokens)
        owed = kept.get("tokens", {})
        for name, bucket in (("sessions", self.sessions), ("recipients", self.recipients)):
            if bucket is not None:
                bucket.owe(owed.get(name, 0.0), now, away_s)

    # --- inside -----------------------------------------------------------------------------------------------

    def _weigh(self, reason: Reason, now: float, jitter: float, *, first: bool) -> None:
        """The tempfail ratio: connection failures and tempfails of the server open the breaker, others are neutral."""
        assert self.breaker is not None
        assert self.policy is not None
        bad = reason.fault is Fault.NETWORK or reason.code in _SERVERS_STATE
        if reason.fault is Fault.RECIPIENT or reason.code in {"greylisted", "too_many_recipients"}:
            return
        if reason.code == "smtp_tempfail" and first:
            return
        limits, window = self.policy.breaker, self._tempfails
        if window is None:
            window = self._tempfails = []
        window.append((now, bad))
        if window[0][0] <= now - limits.window_s:
            self._tempfails = window = [entry for entry in window if entry[0] > now - limits.window_s]
        if not bad or len(window) < limits.min_samples:
            return
        if sum(failed for _, failed in window) >= limits.tempfail_ratio * len(window):
            window.clear()
            self.breaker.open(now, reason.code, jitter)

    def __repr__(self) -> str:
        return f"<Cap {self.key} {self.open_sessions} open, {self.line or 'nobody waits'}>"


def let_out(caps: Sequence[Cap], now: float, recipients: int = 0) -> float:
    """A connection, or so many recipients, that all of these caps have granted may leave: counted, and 0.

    Else the moment at which to ask again, and nothing is counted.
    """
    tokens, due, gates = recipients or 1, now, []
    for cap in caps:
        gate = cap.recipients if recipients else cap.sessions
        if gate is not None:
            gates.append(gate)
            if (at := gate.leaves_at(now, tokens)) > due:
                due = at
    if due > now:
        return due
    for gate in gates:
        gate.leave(now, tokens)
    return 0.0


def answers(reason: Reason) -> bool:
    """Whether a reply shows that we are let in: neither a refusal of us, nor silence, nor a busy server."""
    return reason.fault not in {Fault.US, Fault.NETWORK} and reason.code not in _BUSY


def site_cap(key: str, policy: Policy, above: Cap | None = None) -> Cap:
    """All numbers of a policy, for one site, provider or address: a lane's own limits."""
    cap = Cap(key, above)
    _sessions(cap, policy, policy.sessions)
    cap.recipients = Gate(policy.recipients.rate.start.per_s, policy.recipients.per_transaction)
    cap.pace = Pace(policy.recipients.rate, policy.pace, cap.recipients)
    cap.budget = RefusalBudget(policy.refusals.rate)
    cap.breaker = Breaker(policy.breaker.open_s, policy.breaker.max_open_s)
    return cap


def across_cap(key: str, policy: Policy, across: Sessions, above: Cap | None = None) -> Cap:
    """`across_sites`: sessions to all sites of a policy together."""
    cap = Cap(key, above)
    _sessions(cap, policy, across)
    return cap


def identity_cap(identity: Identity, began_at: float = 0.0) -> Cap | None:
    """An identity's own limits over all lanes, or None where nothing limits it.

    `began_at` is the moment (monotonic seconds, it may be negative) at which the first day of its warm-up began.
    """
    limits, warmup = identity.limits, identity.warmup
    cap = Cap("identity")
    if limits.sessions is not None:
        cap.starts = RefusalBudget(limits.sessions)
    if limits.refusals is not None:
        cap.budget = RefusalBudget(limits.refusals)
    if warmup is not None:
        cap.warmth = Warmth(warmup.per_day, began_at)
    return cap if cap.starts or cap.budget or cap.warmth else None


def _sessions(cap: Cap, policy: Policy, sessions: Sessions) -> None:
    cap.policy = policy
    cap.concurrency = sessions.concurrency
    cap.sessions = Gate(sessions.rate.per_s, sessions.burst)


def _across(cap: Cap, policy: Policy, now: float) -> None:
    """Another `across_sites` under a cap that stands, or none any more."""
    across = policy.across_sites
    if across is None or cap.sessions is None:
        cap.concurrency, cap.sessions = sys.maxsize, None
    if across is not None:
        if cap.sessions is None:
            cap.sessions = Gate(across.rate.per_s, across.burst)
        cap.concurrency = across.concurrency
        cap.sessions.set_rate(across.rate.per_s, now, across.burst)
