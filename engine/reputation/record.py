"""What is seen becomes rows: check, event, request and notice in one commit.

1. The newest rows decide, not a memory of this process: a command line may have closed an event, another process may
   have checked, this one may have been killed.
2. An address for which nothing is remembered costs one row a stretch of equal answers, and nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from engine.core.listing import Check, Severity, Status
from engine.core.listing_event import ListingEvent, Method, Progress, Request, Step, Transition
from engine.core.notice import Notice
from engine.reputation import alert, delist, push_record
from engine.reputation.delist import DelistError, Procedure
from engine.reputation.event import DOUBTFUL, FLAP_WINDOW_S, close_by_hand, list_failed, observe, remembered
from engine.reputation.wording import day
from engine.store import push_outbox
from engine.store import reputation as tables
from engine.store.state import State


@dataclass(frozen=True, slots=True)
class Observed:
    """What a check led to; `ask_at` is when this list has to be asked about this target again, None: as usual.

    `unsure`: nothing was taken in, because it would change something and the list is not vouched for.
    """

    transitions: tuple[Transition, ...] = ()
    ask_at: float | None = None
    unsure: bool = False


class Events:
    """The events of this machine's identity state. Each method returns after its commit; raises StoreError."""

    def __init__(
        self, state: State, procedure: Callable[[str], Procedure | None] = lambda _: None, *, pushes: bool = False
    ) -> None:  # fmt: skip
        self._state = state
        self._procedure = procedure
        self._pushes = pushes  # whether checks go to a control plane, too

    def observe(self, check: Check, *, sure: bool = True) -> Observed:
        """Take in an answer of a list; one that would change an event only if the list is `sure` to work."""
        procedure = self._procedure(check.list)
        expiry_s = procedure.expiry_s if procedure is not None else None

        def do(conn: sqlite3.Connection) -> Observed:
            closed_since = check.at - FLAP_WINDOW_S
            known = tables.events_of(conn, check.target, check.list, closed_since)
            step = observe([one for one in known if remembered(one, check.at)], check, expiry_s=expiry_s)
            if step.transitions and not sure:
                return Observed(unsure=True)
            tables.put_check(conn, check)
            if self._pushes:
                push_outbox.put(conn, push_record.CHECK, check.at, push_record.of_check(check))
            return Observed(_keep(conn, step, procedure), step.ask_at)

        return self._state.enqueue(do).wait()

    def waiting(self) -> list[ListingEvent]:
        """What waits for a second answer, the soonest first: each names target, list and `ask_at`. For a start."""
        return self._state.read(tables.unconfirmed)

    def list_failed(
        self, name: str, why: str, *, last_good: float, severity: Severity, now: float,
        doubted: AbstractSet[Status] = DOUBTFUL,
    ) -> tuple[Transition, ...]:  # fmt: skip
        """A list failed its probes; `last_good` is when it last passed them (0: never). Told once for each failure.

        What it said since then is marked as far as it is doubted, and what it changed by that is taken back. `severity`
        is the worst that it can report.
        """
        procedure = self._procedure(name)

        def do(conn: sqlite3.Connection) -> tuple[Transition, ...]:
            tables.mark_unreliable(conn, name, last_good, doubted)
            step = list_failed(tables.events_at(conn, name, now - FLAP_WINDOW_S), last_good, now, doubted)
            transitions = _keep(conn, step, procedure)
            withdrawn = [one.event for one in transitions if not one.event.is_open]
            notice = alert.list_broken(name, why, severity=severity, last_good=last_good, withdrawn=withdrawn, now=now)
            if tables.put_notices(conn, [notice]):
                said = ",".join(sorted(doubted))
                body = push_record.of_list(name, usable=False, at=now, why=why, doubted=said, since=last_good or None)
                push_outbox.put(conn, push_record.LIST, now, body)
            untrue = {alert.subject_of(event) for event in withdrawn}  # what waits to be told is told no more
            keys = [one.key for one in tables.waiting_notices(conn) if one.subject in untrue]
            tables.settle(conn, keys, now)
            return transitions

        return self._state.enqueue(do).wait()

    def list_usable(self, name: str, *, severity: Severity, last_good: float, now: float) -> None:
        """The list passes its probes again; `last_good` is the one that `list_failed` was told."""

        def do(conn: sqlite3.Connection) -> None:
            if tables.put_notices(conn, [alert.list_usable(name, severity=severity, last_good=last_good, now=now)]):
                push_outbox.put(conn, push_record.LIST, now, push_record.of_list(name, usable=True, at=now))

        self._state.enqueue(do).wait()

    def tell(self, notices: Sequence[Notice]) -> int:
        """Have operators told something (`alert.quarantined`, `alert.released`); says how many they don't know yet."""
        return self._state.enqueue(lambda conn: tables.put_notices(conn, notices)).wait()

    def close(self, number: int, *, by: str, why: str, now: float) -> Transition:
        """Close an event by hand; raises DelistError where there is none that is open."""

        def do(conn: sqlite3.Connection) -> Transition:
            event = _open_event(conn, number)
            request = tables.request_of(conn, number)
            if request is not None and request.status is not Progress.DONE:
                tables.put_request(conn, delist.noted(request, by=by, text=f"event closed by hand: {why}", now=now))
            return _keep(conn, close_by_hand(event, now), None)[0]

        return self._state.enqueue(do).wait()

    def move(self, number: int, to: Progress, *, by: str, text: str, now: float) -> Request:
        """Move the request of an event on; raises DelistError. One is begun where no procedure was known."""

        def do(conn: sqlite3.Connection) -> Request:
            return _put(conn, delist.move(_request(conn, number, now), to, by=by, text=text, now=now))

        return self._state.enqueue(do).wait()

    def note(self, number: int, *, by: str, text: str, now: float) -> Request:
        """Add a line to the history of an event's request; raises DelistError."""

        def do(conn: sqlite3.Connection) -> Request:
            return _put(conn, delist.noted(_request(conn, number, now), by=by, text=text, now=now))

        return self._state.enqueue(do).wait()

    def prune(self, now: float) -> int:
        """Forget what ended long ago (`tables.KEEP_S`); once a day is enough."""
        return self._state.enqueue(lambda conn: tables.prune(conn, now) + push_outbox.prune(conn, now)).wait()


# ---- from here on: the writer's thread


def _keep(conn: sqlite3.Connection, step: Step, procedure: Procedure | None) -> tuple[Transition, ...]:
    """Write a step, the requests that it begins or ends, and its notices; gives the transitions with their numbers."""
    numbers = tables.save(conn, step)
    found = []
    for transition in step.transitions:
        event = transition.event
        if not event.id:
            event = replace(event, id=numbers[event.target, event.list, event.sublist])
        found.append(replace(transition, event=event))
        request = tables.request_of(conn, event.id)
        if not event.is_open:
            request = request and delist.over(request, event, transition.at)
        elif procedure is not None and (request is None or request.status is Progress.DONE):
            request = _begun(event, procedure, request, transition.at)
        if request is not None:
            tables.put_request(conn, request)
        push_outbox.put(conn, push_record.EVENT, transition.at, push_record.of_transition(found[-1]))
        notice = alert.of_transition(found[-1], request)
        tables.put_notices(conn, [notice] if notice is not None else [])
    return tuple(found)


def _begun(event: ListingEvent, procedure: Procedure, before: Request | None, now: float) -> Request:
    """A new request; the cool-down of the one before it holds on."""
    fresh = delist.needed(event, procedure, now)
    return replace(fresh, cooldown_until=before.cooldown_until) if before is not None else fresh


def _open_event(conn: sqlite3.Connection, number: int) -> ListingEvent:
    event = tables.event(conn, number)
    if event is None or event.confirmed_at is None:
        raise DelistError(f"there is no event {number}; engine rbl events lists them")
    if not event.is_open:
        raise DelistError(f"event {number} is closed since {day(event.closed_at or 0)} ({event.close_reason})")
    return event


def _request(conn: sqlite3.Connection, number: int, now: float) -> Request:
    event = _open_event(conn, number)
    request = tables.request_of(conn, number)
    if request is not None and request.status is not Progress.DONE:
        return request
    return delist.needed(event, Procedure(event.list, Method.FORM), now)


def _put(conn: sqlite3.Connection, request: Request) -> Request:
    tables.put_request(conn, request)
    found = tables.request_of(conn, request.event)
    assert found is not None
    return found
