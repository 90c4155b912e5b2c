"""The daily digest: what is open, what changed, what is not checked, what somebody has to do. Pure.

It comes on a quiet day as well: that it came says that alerts work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.core.listing import Severity, Status
from engine.core.listing_event import ListingEvent, Progress, Request
from engine.core.notice import Fact, Kind, Notice
from engine.reputation.delist import next_step
from engine.reputation.wording import day, many, plain, span
from engine.store.reputation import Answers

DAY_S = 86_400.0
LINES = 15  # of each part; the rest is counted
_MINE = frozenset({Progress.NEEDED, Progress.REFUSED})


def digest(
    key: str,
    events: Sequence[ListingEvent],
    answers: Sequence[Answers],
    requests: Sequence[tuple[Request, ListingEvent]],
    now: float,
    unasked: Sequence[str] = (),
) -> Notice:
    """The notice of the digest.

    `events` are the open ones and those that closed within the day, `answers` the newest of each target and list,
    `unasked` the lists that may not be asked, with why.
    """
    standing = [event for event in events if event.is_open]
    changed = [event for event in events if now - max(event.opened_at or 0, event.closed_at or 0) < DAY_S]
    worst = max((event.severity for event in standing), default=None)
    blank = [*unasked, *unchecked(answers)]
    counted = (
        f"{many(len(standing), 'listing')} open, the worst {worst.label}" if worst is not None else "nothing listed"
    )
    blind = f", {many(len(blank), 'list')} not checked" if blank else ""
    facts: dict[str, Fact] = {
        "summary": f"{counted}{blind}",
        "open": _lines(
            f"{event.target} on {event.name}, {event.severity.label}, for {span(now - event.first_seen)}"
            for event in standing
        ),
        "changed": _lines(_changed(event) for event in changed),
        "lists": _lines(blank),
        "requests": _lines(
            f"event {event.id}, {event.target} on {event.name}: {next_step(request, event, now)}"
            for request, event in requests
            if request.status in _MINE and event.is_open
        ),
    }
    return Notice(key, Kind.DIGEST, now, worst if worst is not None else Severity.INFO, facts=facts)


def _changed(event: ListingEvent) -> str:
    if event.is_open:
        return f"{event.target} listed on {event.name} ({event.severity.label}) {day(event.opened_at or 0)}"
    return f"{event.target} off {event.name} {day(event.closed_at or 0)} ({event.close_reason})"


def unchecked(answers: Sequence[Answers]) -> list[str]:
    """The lists whose newest answer about any target says nothing, with what they said."""
    newest: dict[str, Answers] = {}
    for one in answers:
        if one.list not in newest or one.checked_at > newest[one.list].checked_at:
            newest[one.list] = one
    told = []
    for name, one in sorted(newest.items()):
        if one.status not in (Status.LISTED, Status.CLEAN) or not one.reliable:
            said = f"{one.status}: {plain(one.detail, 80)}" if one.detail else str(one.status)
            told.append(f"{name}, since {day(one.since)} ({said if one.reliable else 'it fails its own probes'})")
    return told


def _lines(rows: Iterable[str]) -> str:
    found = list(rows)
    more = [f"and {len(found) - LINES} more"] if len(found) > LINES else []
    return "\n".join(found[:LINES] + more)
