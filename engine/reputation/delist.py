"""Getting off a list: what to do, how far it is, and when it is overdue. Pure; a person does it, nothing is ever sent.

1. An event that opens needs a request where the list's procedure is known. One request is under way for an event.
2. Status moves along MOVES only; each move and each note says when and who.
3. A list that wants no second request within its cool-down gets none: relisting, and asking twice, make it worse.
4. A request may be submitted only by somebody who says what was fixed: lists relist what comes back.
5. When the event closes, what is still under way is done.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.core.listing import Severity
from engine.core.listing_event import ListingEvent, Method, Note, Progress, Request
from engine.reputation.wording import day, span

MOVES: dict[Progress, frozenset[Progress]] = {
    Progress.NEEDED: frozenset({Progress.SUBMITTED, Progress.DONE}),
    Progress.SUBMITTED: frozenset({Progress.ACKNOWLEDGED, Progress.REFUSED, Progress.DONE}),
    Progress.ACKNOWLEDGED: frozenset({Progress.REFUSED, Progress.DONE}),
    Progress.REFUSED: frozenset({Progress.SUBMITTED, Progress.DONE}),
    Progress.DONE: frozenset(),
}
DAY_S = 86_400.0
NEEDED_S = {Severity.CRITICAL: 4 * 3600.0, Severity.HIGH: 12 * 3600.0}  # others: a day
ANSWER_S = 3 * DAY_S  # Barracuda promises a day, small lists are run by one person
ACKNOWLEDGED_S = 7 * DAY_S
EXPIRES_TWICE = 2.0  # a listing that outlives its usual expiry this often is being renewed


class DelistError(ValueError):
    """A step that can't be taken; the message says why and what can."""


@dataclass(frozen=True, slots=True)
class Procedure:
    """What the registry knows about getting off a list."""

    list: str
    method: Method
    url: str = ""
    steps: str = ""  # in words: what the list asks for
    cooldown_s: float = 0.0
    expiry_s: float | None = None  # None: it never forgets by itself


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks, for the pre-filled text; what is empty is left for the operator to fill in."""

    fixed: str = ""
    contact: str = ""
    ptr: str = ""


def needed(event: ListingEvent, procedure: Procedure, now: float) -> Request:
    """The request that an event which has just opened needs."""
    return Request(
        event.id, procedure.method, procedure.url, procedure.steps, Progress.NEEDED, now, now,
        cooldown_s=procedure.cooldown_s, expiry_s=procedure.expiry_s,
    )  # fmt: skip


def move(request: Request, to: Progress, *, by: str, text: str, now: float) -> Request:
    """The request one step on; raises DelistError where that step can't be taken."""
    if to not in MOVES[request.status]:
        able = ", ".join(sorted(MOVES[request.status])) or "nothing: it is over"
        raise DelistError(f"the request for event {request.event} is {request.status}; it can become {able}")
    after = replace(request, status=to, moved_at=now, actor=by)
    if to is Progress.SUBMITTED:
        if not text.strip():
            raise DelistError("say what was fixed: a list takes the same listing up again when the cause comes back")
        if request.cooldown_until is not None and now < request.cooldown_until:
            raise DelistError(
                f"the list wants no second request before {day(request.cooldown_until)}, in "
                f"{span(request.cooldown_until - now)}; asking earlier makes it worse"
            )
        after = replace(after, requested_at=now, cooldown_until=now + request.cooldown_s or None)
    return noted(after, by=by, text=f"{to}: {text}" if text else str(to), now=now)


def noted(request: Request, *, by: str, text: str, now: float) -> Request:
    """The request with one more line in its history."""
    return replace(request, notes=(*request.notes, Note(now, by, text)))


def over(request: Request, event: ListingEvent, now: float) -> Request:
    """The request when its event has closed (rule 5)."""
    if request.status is Progress.DONE:
        return request
    after = replace(request, status=Progress.DONE, moved_at=now)
    return noted(after, by="engine", text=f"done: the event closed ({event.close_reason})", now=now)


def overdue(request: Request, event: ListingEvent, now: float) -> str:
    """Why somebody has to look at a request; empty while it is in time."""
    since = now - request.moved_at
    if request.status is Progress.NEEDED and request.method is Method.AUTO:
        expected = EXPIRES_TWICE * request.expiry_s if request.expiry_s else 0.0
        if expected and now - request.opened_at > expected:
            return (
                f"{event.list} usually forgets {span(request.expiry_s or 0)} after the last sighting; it has listed "
                f"{event.target} for {span(now - request.opened_at)}: what causes it goes on."
            )
    elif request.status is Progress.NEEDED:
        if since > NEEDED_S.get(event.severity, DAY_S):
            return f"Nobody has asked {event.list} to delist {event.target}; it was listed {span(since)} ago."
    elif request.status is Progress.SUBMITTED:
        if now > max(request.moved_at + ANSWER_S, request.cooldown_until or 0):
            return f"{event.list} was asked {span(since)} ago and still lists {event.target}."
    elif request.status is Progress.ACKNOWLEDGED and since > ACKNOWLEDGED_S:
        return f"{event.list} acknowledged the request {span(since)} ago and still lists {event.target}."
    return ""


def next_step(request: Request | None, event: ListingEvent, now: float) -> str:
    """What an operator does next, in one sentence."""
    if not event.is_open:
        return "Nothing: the event is closed."
    if request is None:
        return f"Find out how {event.list} delists; no procedure is known."
    late = overdue(request, event, now)
    if request.status is Progress.NEEDED and request.method is Method.AUTO:
        return late or f"Stop what caused it; the list forgets by itself{_by_when(event)}."
    if request.status in (Progress.NEEDED, Progress.REFUSED):
        if request.cooldown_until is not None and now < request.cooldown_until:
            return f"Wait until {day(request.cooldown_until)}: the list wants no second request before."
        return f"Fix the cause, then {_ask(request)}; then engine rbl delist start {event.id} --fixed TEXT."
    return late or f"Wait: asked {span(now - (request.requested_at or request.moved_at))} ago{_by_when(event)}."


def instructions(event: ListingEvent, request: Request | None, applicant: Applicant, now: float) -> str:
    """What to do and in which order, with a text to copy; for a person."""
    lines = [
        f"{event.target} is on {event.name} ({event.severity.label}) since {day(event.first_seen)}.",
        *([f"Listed as: {event.meaning}"] if event.meaning else []),
        *([f"The list says: {' '.join(event.text)}"] if event.text else []),
        "",
        "1. Stop what caused it, and make sure that PTR, forward name and HELO name agree: engine identity check.",
        f"2. {_how(request)}",
    ]
    if request is not None and request.procedure:
        lines.append(f"   {request.procedure}")
    if request is not None and request.cooldown_s:
        lines.append(f"   One request, then none for {span(request.cooldown_s)}: asking twice makes it worse.")
    if event.expected_expiry is not None:
        lines.append(f"   Without a new sighting the list usually forgets by {day(event.expected_expiry)}.")
    lines.append(f"3. Write down that it was asked: engine rbl delist start {event.id} --fixed TEXT")
    if request is None or request.method is not Method.AUTO:
        lines += ["", "A text to copy:", "", *(f"   {line}".rstrip() for line in _letter(event, applicant))]
    lines += ["", f"Next: {next_step(request, event, now)}"]
    return "\n".join(lines)


def _how(request: Request | None) -> str:
    if request is None:
        return "No procedure is known for this list: look for one on its site."
    return {
        Method.FORM: f"Fill in the list's form: {request.url or 'see its site'}",
        Method.EMAIL: f"Write to the list: {request.url or 'see its site'}",
        Method.AUTO: f"Ask nobody: the list forgets by itself. {request.url}".rstrip(),
        Method.ISP: f"Only the owner of the network can ask; write to your provider. {request.url}".rstrip(),
    }[request.method]


def _ask(request: Request) -> str:
    return {
        Method.FORM: f"fill in {request.url or 'the form of the list'}",
        Method.EMAIL: f"write to {request.url or 'the list'}",
        Method.AUTO: "wait",
        Method.ISP: "let your provider ask",
    }[request.method]


def _by_when(event: ListingEvent) -> str:
    return f", usually by {day(event.expected_expiry)}" if event.expected_expiry is not None else ""


def _letter(event: ListingEvent, applicant: Applicant) -> list[str]:
    return [
        f"Please remove {event.target} from {event.name}.",
        f"Reverse name: {applicant.ptr or '(its PTR record)'}",
        f"What was fixed: {applicant.fixed or '(what caused the listing, and what was done about it)'}",
        f"Contact: {applicant.contact or '(a mailbox that a person reads)'}",
    ]
