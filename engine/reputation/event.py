"""When a listing is an event, and when it is over: what a check changes. Pure; time is data.

1. A change needs the same answer twice: the second one after the first one's TTL has run out, so that it is a new one
   (at least MIN_WAIT_S, at most MAX_WAIT_S later). Opening, another severity and closing alike.
2. Only LISTED opens, only CLEAN closes, and only from a list that is healthy. ERROR, REFUSED and SUSPECT change
   nothing and interrupt nothing. A list that lists the target under other sublists only is clean of this one.
3. One event for each (target, list, sublist). One that is listed again within FLAP_WINDOW_S of its end is the same
   event once more, and each time it has to be clean for longer: a flapping list keeps one event open and the pager
   silent.
4. A list that fails takes back what it changed since its last good probe, as far as it is doubted: one that lists the
   world its openings, one that has lost its entries or refuses us its closings. Silence takes nothing back.
   The probe that vouched for a change does not settle it: that does the next good one.
5. An answer that is older than what is known says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from engine.core.listing import Check, Listing, Severity, Status
from engine.core.listing_event import Change, Close, ListingEvent, Step, Transition

MIN_WAIT_S = 300.0  # SURBL's TTL is 180 s; five minutes are two of a zero-hour list's
MAX_WAIT_S = 3600.0  # what has a longer TTL is confirmed from a cache: an alarm that waits a day is none
VOUCH_S = 60.0  # between an answer that changes an event and the probe that vouches for it
FLAP_WINDOW_S = 2 * 86_400.0
DOUBTFUL = frozenset({Status.LISTED, Status.CLEAN})  # what can be doubted: other answers say nothing
FIRST_HOLD_S, MAX_HOLD_S = 3600.0, 86_400.0  # how long it has to be clean after its first flap, and at most


def observe(events: Sequence[ListingEvent], check: Check, *, expiry_s: float | None = None) -> Step:
    """What a check changes about the events of its target at its list.

    `events` are those that are open, not yet confirmed, or closed for less than FLAP_WINDOW_S; `expiry_s` is how long
    after the last sighting the list usually forgets.
    """
    if not _speaks(check):
        waiting = [event.ask_at for event in events if event.ask_at is not None]
        return Step(ask_at=max(min(waiting), check.at + MIN_WAIT_S) if waiting else None)
    found = {event.sublist: event for event in events}
    listed = _worst(check.listings)
    changed: list[ListingEvent] = []
    dropped: list[ListingEvent] = []
    transitions: list[Transition] = []
    for sublist in sorted(found.keys() | listed.keys()):
        before, listing = found.get(sublist), listed.get(sublist)
        if before is not None and check.at < max(before.seen_since, before.last_seen):
            continue  # rule 5
        after, transition = _step(before, check, listing)
        if after is None:
            dropped += [before] if before is not None else []
            continue
        if listing is not None:
            after = _sighted(after, check, listing, expiry_s)
            transition = replace(transition, event=after) if transition else None
        found[sublist] = after
        changed += [after] if after != before else []
        transitions += [transition] if transition else []
    gone = {event.sublist for event in dropped}
    waiting = [event.ask_at for name, event in found.items() if event.ask_at is not None and name not in gone]
    return Step(tuple(changed), tuple(dropped), tuple(transitions), min(waiting, default=None))


def list_failed(
    events: Sequence[ListingEvent], last_good: float, now: float, doubted: AbstractSet[Status] = DOUBTFUL
) -> Step:
    """The list failed its probes, and was last known to be good at `last_good`: take back what it changed since.

    `doubted` is which of its answers may have been wrong: LISTED opened events, CLEAN closed them.
    """
    listed, clean = Status.LISTED in doubted, Status.CLEAN in doubted
    since = last_good - VOUCH_S
    changed: list[ListingEvent] = []
    dropped: list[ListingEvent] = []
    transitions: list[Transition] = []
    for event in events:
        if event.confirmed_at is None:
            dropped += [event] if listed and event.seen_since > last_good else []
        elif listed and event.is_open and (event.opened_at or 0) > since:
            after = _closed(event, now, Close.LIST_FAILURE)
            changed.append(after)
            transitions.append(Transition(Change.CLOSED, after, now))
        elif event.is_open:
            waits = event.ask_at is not None and (clean if event.seen is None else listed)
            changed += [replace(event, seen=event.severity, ask_at=None)] if waits else []
        elif listed and (event.opened_at or 0) > since:
            changed.append(replace(event, close_reason=Close.LIST_FAILURE, seen=None, ask_at=None))
        elif clean and event.close_reason in (Close.DELISTED, Close.EXPIRED) and (event.closed_at or 0) > since:
            after = replace(event, closed_at=None, close_reason=None, seen=event.severity, ask_at=None)
            changed.append(after)
            transitions.append(Transition(Change.REOPENED, after, now))
        elif listed and event.ask_at is not None and event.seen_since > last_good:
            changed.append(replace(event, seen=None, ask_at=None))
    return Step(tuple(changed), tuple(dropped), tuple(transitions))


def close_by_hand(event: ListingEvent, now: float) -> Step:
    """A person closes it. If it is still listed, two more checks open it again."""
    if not event.is_open:
        return Step()
    after = _closed(event, now, Close.MANUAL)
    return Step((after,), (), (Transition(Change.CLOSED, after, now),))


def remembered(event: ListingEvent, now: float) -> bool:
    """Whether a check still concerns the event; else a new listing is a new event."""
    if event.closed_at is None:
        return True
    return event.close_reason is not Close.LIST_FAILURE and now - event.closed_at < FLAP_WINDOW_S


def _speaks(check: Check) -> bool:
    """Whether the check says anything of the target (rule 2)."""
    if not check.reliable:
        return False
    return bool(check.listings) if check.status is Status.LISTED else check.status is Status.CLEAN


def _worst(listings: Sequence[Listing]) -> dict[str, Listing]:
    found: dict[str, Listing] = {}
    for listing in listings:
        if listing.sublist not in found or listing.severity > found[listing.sublist].severity:
            found[listing.sublist] = listing
    return found


def _step(
    before: ListingEvent | None, check: Check, listing: Listing | None
) -> tuple[ListingEvent | None, Transition | None]:
    """The event after the check, and what changed; None: there is nothing to remember."""
    said = listing.severity if listing is not None else None
    if before is None or not remembered(before, check.at):
        return (_first_seen(check, listing), None) if listing is not None else (before, None)
    if before.confirmed_at is None and said is None:
        return None, None
    if not _same(before, said):
        hold_s = _hold_s(before.flaps) if said is None else 0.0
        ask_at = check.at + max(_wait_s(check), hold_s) if said != before.shown else None
        return replace(before, seen=said, seen_since=check.at, ask_at=ask_at), None
    if said == before.shown or (before.ask_at is not None and check.at < before.ask_at):
        return replace(before, seen=said), None
    return _confirmed(before, said, check.at)


def _first_seen(check: Check, listing: Listing) -> ListingEvent:
    return ListingEvent(
        check.target, check.list, listing.sublist, listing.severity, check.at, check.at, listing.severity, check.at,
        ask_at=check.at + _wait_s(check),
    )  # fmt: skip


def _same(event: ListingEvent, said: Severity | None) -> bool:
    """Whether an answer says what the one before it said; to open, any severity is as good as another."""
    if event.is_open:
        return said == event.seen
    return (said is None) == (event.seen is None)


def _confirmed(event: ListingEvent, said: Severity | None, at: float) -> tuple[ListingEvent, Transition]:
    if said is None:
        after = _closed(event, at, Close.DELISTED if event.asked else Close.EXPIRED)
        return after, Transition(Change.CLOSED, after, at)
    if event.is_open:
        after = replace(event, severity=said, ask_at=None)
        return after, Transition(Change.SEVERITY, after, at, before=event.severity)
    opened = replace(
        event, severity=said, seen=said, ask_at=None, opened_at=at, closed_at=None, close_reason=None, asked=False
    )
    if event.confirmed_at is None:
        opened = replace(opened, confirmed_at=at)
        return opened, Transition(Change.OPENED, opened, at)
    opened = replace(opened, flaps=event.flaps + 1)
    return opened, Transition(Change.REOPENED, opened, at)


def _closed(event: ListingEvent, at: float, reason: Close) -> ListingEvent:
    return replace(event, closed_at=at, close_reason=reason, seen=None, seen_since=at, ask_at=None)


def _sighted(event: ListingEvent, check: Check, listing: Listing, expiry_s: float | None) -> ListingEvent:
    """The event with what this sighting says of it; a text that is missing this once is not forgotten."""
    return replace(
        event, last_seen=check.at, code=listing.code, meaning=listing.meaning, text=check.text or event.text,
        severity=event.severity if event.is_open or event.confirmed_at is not None else listing.severity,
        expected_expiry=check.at + expiry_s if expiry_s is not None else None,
    )  # fmt: skip


def _wait_s(check: Check) -> float:
    return min(max(float(check.ttl_s or 0), MIN_WAIT_S), MAX_WAIT_S)


def _hold_s(flaps: int) -> float:
    return min(FIRST_HOLD_S * 2 ** min(flaps - 1, 10), MAX_HOLD_S) if flaps else 0.0
