"""Above the lanes: whether anything may start at all under this identity, from this machine.

1. While the identity's breaker is open nothing starts, and what is in flight ends without asking more. Half-open is one
   session that asks one address, at the site that answered last and still has somebody to ask.
2. Until the way out is proven by one TCP connection, few sites are tried (core.egress).
3. While an order holds the identity nothing starts either (core.hold).
4. It decides by what visits tell it; `Run` starts, stops and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.core.breaker import BreakerState
from engine.core.cap import Cap
from engine.core.egress import Egress, neighbourhood
from engine.core.hold import Hold
from engine.core.identity_breaker import EGRESS, IdentityBreaker, organisation
from engine.core.lane import Lane, Visit
from engine.core.reasons import Fault
from engine.core.schedule import Schedule, Wait
from engine.flow.judged import Judged
from engine.flow.line import Line, SiteHosts
from engine.flow.memory import Memory

MET = 50  # of the sites that connected last, how many are kept at most before those that are no witnesses go
NEAR = 0.25  # of the first open time: a lane that opens so much later than the identity is waited for
_BUSY = frozenset({"server_busy", "server_storage"})


class PortClosed(Exception):  # noqa: N818 - it is the network's fault
    """No connection to port 25 gets out of this machine; the message says what it can do. Exit code 1."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"Port {port} is closed here: 6 sites in different networks gave no answer at all, and nobody else did; "
            "--no-connect gives what this machine can, answers on syntax, domain and mail hosts."
        )


class Guard:
    """Asked by the dispatcher what to start, and by visits whether to go on."""

    def __init__(
        self,
        schedule: Schedule,
        sites: Mapping[str, SiteHosts],
        memory: Memory,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        doubt: Callable[[], None],
        wake: Callable[[], object],
        cap: Cap | None = None,
        named: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.breaker = IdentityBreaker()
        self.egress = Egress()
        self.hold = Hold()
        self._schedule = schedule
        self._sites = sites
        self._memory = memory
        self._clock = clock
        self._jitter = jitter
        self._doubt = doubt
        self._wake = wake
        self._cap = cap  # the identity's own limits
        self._named = named  # whom to tell that a reply names a block list
        self.connections = 0  # that came about
        self._met: dict[str, tuple[Lane, SiteHosts]] = {}  # sites that connected last
        memory.recall_identity(self.breaker)

    # --- deciding ---------------------------------------------------------------------------------------------

    def next(self, now: float) -> Visit | Wait:
        """Start the visit whose turn it is, or say how long to wait."""
        breaker = self.breaker.breaker
        if not self.hold.starts or breaker.state is BreakerState.HALF_OPEN:
            return Wait(None)
        if breaker.state is BreakerState.OPEN:
            return self._trial(now) if now >= breaker.until else Wait(breaker.until)
        return self._schedule.next(now) if self.egress.proven else self._feel(now)

    def stops(self, visit: Visit) -> bool:
        """Whether this visit may ask nothing more."""
        return self.hold.stops or (self.breaker.breaker.state is not BreakerState.CLOSED and not visit.trial)

    def ending(self, give_up_s: float, *, busy: bool) -> tuple[float | None, str]:
        """When what waits ends because the identity is held or closed to us, and as what; None while it is not."""
        breaker = self.breaker.breaker
        held = self.hold.ending(give_up_s, busy=busy)
        if held is not None:
            return held, "identity_paused"
        if breaker.state is not BreakerState.OPEN or breaker.closed_to_us_since is None:
            return None, ""
        reason = EGRESS if breaker.cause == EGRESS else "identity_paused"
        return breaker.closed_to_us_since + give_up_s, reason

    def witnesses(self) -> list[tuple[Lane, SiteHosts]]:
        """The sites whose silence would prove that the way out is closed; none may be dialled while we are stopped."""
        if self.hold.stops:
            return []
        return [self._met[site] for site, _ in self.breaker.witnesses if site in self._met]

    # --- reporting --------------------------------------------------------------------------------------------

    def dialled(self, visit: Visit, site: SiteHosts, *, connected: bool, reason: str = "") -> None:
        """A connect came about, or failed for a reason."""
        if connected:
            self.connections += 1
            if not self.egress.proven:
                self.egress.connected()
                self._wake()
            self.breaker.connected(site.key, visit.lane.key)
            self._met[site.key] = (visit.lane, site)
            if len(self._met) >= 2 * MET:
                self._met = {key: met for key, met in self._met.items() if key in self.breaker.last}
            return
        silent = reason == "connect_timeout"
        self.egress.failed(site.key, timed_out=silent)
        if not silent:
            self.breaker.refused()
        elif self.breaker.timed_out(site.key):
            self._doubt()

    def replied(self, visit: Visit, line: Line, one: Judged, now: float, *, source: bool) -> None:
        """What a site said, or why it said nothing; `source` when it refuses the source."""
        reason, endpoint = one.reason, line.endpoint
        answers = reason.fault not in {Fault.US, Fault.NETWORK} and reason.code not in _BUSY
        state = self.breaker.breaker.state
        if visit.trial:
            cause = EGRESS if self.breaker.breaker.cause == EGRESS and not self._spoke(line) else reason.code
            self.breaker.tried(now, self._jitter(), cause="" if answers and not source else cause)
        elif endpoint is not None and (source or answers):
            who = organisation(endpoint.host, endpoint.ip)
            cause, jitter = (reason.code, self._jitter()) if source else ("", 0.0)
            self.breaker.answered(visit.site, who, now, jitter, cause=cause, named=one.detail)
        if source and reason.code == "ip_blocklisted" and one.detail:
            self._named(one.detail)
        moved = self.breaker.breaker.state is not state
        if source or moved:
            self._memory.save_identity(self.breaker)
        if moved and state is BreakerState.CLOSED and self._cap is not None:
            self._cap.blamed(now)

    def closed(self) -> None:
        """The witnesses could not be reached: the way out is closed."""
        if self.breaker.egress_closed(self._clock(), self._jitter()):
            self._memory.save_identity(self.breaker)

    def ended(self, visit: Visit, now: float) -> None:
        """A session is over."""
        if self.egress.flying:  # else it is proven that something gets out, or nothing was tried for that
            self.egress.ended(visit.site, self._neighbourhoods(visit.site))
        if visit.trial:
            self.breaker.breaker.release(now)

    # --- inside -----------------------------------------------------------------------------------------------

    def _trial(self, now: float) -> Visit | Wait:
        """The half-open session: at the site that answered last, or whoever is next where nobody waits there."""
        breaker = self.breaker.breaker
        for key in reversed(self.breaker.last.values()):
            lane = self._schedule.lanes.get(key)
            due = lane.ready_at(now) if lane is not None else None
            if lane is None or due is None or due > max(now, breaker.until + NEAR * breaker.open_s):
                continue
            if due > now:
                return Wait(due)
            visit = self._schedule.start(lane, now, trial=True)
            if visit is not None:
                breaker.attempt(now)
                return visit
        turn = self._schedule.next(now, trial=True)
        if isinstance(turn, Visit):
            breaker.attempt(now)
        return turn

    def _feel(self, now: float) -> Visit | Wait:
        """The first sessions of a run: few, until one of them connects."""
        if self.egress.waits:
            return Wait(None)
        turn = self._schedule.next(now, admits=self._admits)
        if isinstance(turn, Visit):
            self.egress.started(turn.site, self._neighbourhoods(turn.site))
        elif not self.egress.flying:  # nobody left who would tell more: the list is short, or all in one network
            turn = self._schedule.next(now)
            if isinstance(turn, Visit):
                self.egress.started(turn.site, (), counts=False)
        return turn

    def _admits(self, lane: Lane) -> bool:
        domain = lane.queue.next()
        return domain is not None and self.egress.admits(domain.site, self._neighbourhoods(domain.site))

    def _neighbourhoods(self, site: str) -> set[str]:
        hosts = self._sites[site].hosts if site in self._sites else ()
        return {neighbourhood(ip) for _, addresses in hosts for ip in addresses}

    @staticmethod
    def _spoke(line: Line) -> bool:
        return line.session is not None or (line.failure is not None and line.failure.reason.code != "connect_timeout")
