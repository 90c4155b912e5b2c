"""Which facts become which messages, and when. Pure; what the messages say is in `alert_text`.

1. A notice is told once, or never. What is told never is still in the daily digest.
2. Below `least` there is no message; below `quiet.below` there is none during quiet hours: it waits for their end.
3. Notices of one kind about one list wait GATHER_S for company; more than GROUP_FROM of them are one message. Where so
   many were told within the last hour, the next ones wait FLOOD_S.
4. An end (closed, usable, released) is told only where the beginning was. One that comes while its beginning still
   waits cancels it: nobody is woken for what is over.
5. A list's failure is one message about the list; the events that it takes back are counted in it. Where there are
   any it comes at once, after BROKEN_S otherwise. More than GROUP_FROM lists that break, or are back, are one message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo

from engine.core.listing import Severity
from engine.core.listing_event import Close, ListingEvent, Request, Transition
from engine.core.notice import Fact, Kind, Message, Notice
from engine.reputation.alert_text import group_message, single_message
from engine.reputation.delist import next_step
from engine.reputation.wording import plain

GROUP_FROM = 3  # so many are told one by one
GATHER_S = 60.0  # a sweep reaches the other addresses of a block within this
FLOOD_S = 900.0
RECENT_S = 3600.0
BROKEN_S = 900.0  # a list that is back within a quarter of an hour needs nobody
DIGEST_WITHIN_S = 6 * 3600.0  # an engine that starts later that day waits for the next morning

ENDS = frozenset({Kind.CLOSED, Kind.LIST_USABLE, Kind.RELEASED})
AT_ONCE = frozenset({Kind.QUARANTINED, Kind.RELEASED, Kind.DIGEST, Kind.TEST})


@dataclass(frozen=True, slots=True)
class Quiet:
    """Hours in which what is below a severity waits; minutes after midnight, over midnight where start > end."""

    start_min: int
    end_min: int
    below: Severity

    def holds(self, minute: int) -> bool:
        """Whether that minute of the day is quiet."""
        if self.start_min <= self.end_min:
            return self.start_min <= minute < self.end_min
        return minute >= self.start_min or minute < self.end_min


@dataclass(frozen=True, slots=True)
class Habits:
    """When the people who read it want to be told."""

    least: Severity = Severity.LOW
    quiet: Quiet | None = None
    digest_min: int | None = 8 * 60  # minutes after midnight; None: no digest
    zone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class Composed:
    """A message and the keys of the notices that it tells; `everywhere`: channels take it whatever their `least` is."""

    message: Message
    keys: tuple[str, ...]
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class Composition:
    """What is to be sent now, and which notices are settled without a message; all others wait."""

    messages: tuple[Composed, ...] = ()
    silent: tuple[str, ...] = field(default=())


def of_transition(transition: Transition, request: Request | None) -> Notice | None:
    """The notice of an event's change; None for what a failed list takes back (rule 5)."""
    event, change = transition.event, transition.change
    if event.close_reason is Close.LIST_FAILURE:
        return None
    kind = Kind(change.value)
    before = transition.before
    return Notice(
        f"{change}:{event.id}:{event.flaps}:{transition.at:.0f}", kind, transition.at,
        max(event.severity, before) if before is not None else event.severity,
        subject_of(event), event.list, event.target,
        {
            **_event_facts(event),
            "before": before.label if before is not None else None,
            "url": request.url if request is not None else "",
            "next": next_step(request, event, transition.at),
        },
    )  # fmt: skip


def of_overdue(request: Request, event: ListingEvent, why: str, now: float) -> Notice:
    """A request to be taken off that somebody has to look at; once for each status."""
    facts = {**_event_facts(event), "why": why, "url": request.url, "method": request.method.value}
    key = f"overdue:{request.id}:{request.status}"
    return Notice(key, Kind.DELIST_OVERDUE, now, event.severity, subject_of(event), event.list, event.target, facts)


def list_broken(
    name: str, why: str, *, severity: Severity, last_good: float, withdrawn: Sequence[ListingEvent], now: float
) -> Notice:
    """A list failed its own probes. `withdrawn` are the open events that it takes back with it."""
    targets = sorted({event.target for event in withdrawn})
    facts: dict[str, Fact] = {
        "why": plain(why), "last_good": last_good or None, "withdrawn": len(withdrawn),
        "targets": ", ".join(targets[:10]),
    }  # fmt: skip
    return Notice(
        f"broken:{name}:{last_good:.0f}", Kind.LIST_BROKEN, now, severity, _list(name, last_good), name, "", facts
    )


def list_usable(name: str, *, severity: Severity, last_good: float, now: float) -> Notice:
    """The list passes its probes again; `last_good` is that of its failure."""
    return Notice(f"usable:{name}:{last_good:.0f}", Kind.LIST_USABLE, now, severity, _list(name, last_good), name)


def quarantined(identity: str, why: str, *, since: float, until: float | None, now: float) -> Notice:
    """An identity stopped asking."""
    subject = f"identity:{identity}:{since:.0f}"
    facts: dict[str, Fact] = {"why": plain(why), "since": since, "until": until}
    return Notice(f"quarantined:{subject}", Kind.QUARANTINED, now, Severity.CRITICAL, subject, "", identity, facts)


def released(identity: str, why: str, *, since: float, now: float) -> Notice:
    """It asks again; `since` is when its quarantine had begun."""
    subject = f"identity:{identity}:{since:.0f}"
    facts: dict[str, Fact] = {"why": plain(why), "since": since}
    return Notice(f"released:{subject}", Kind.RELEASED, now, Severity.CRITICAL, subject, "", identity, facts)


def digest_key(habits: Habits, now: float) -> str:
    """The key of the digest that is due now; empty where none is."""
    if habits.digest_min is None:
        return ""
    local = datetime.fromtimestamp(now, habits.zone)
    late_s = ((local.hour * 60 + local.minute) - habits.digest_min) * 60
    return f"digest:{local:%Y-%m-%d}" if 0 <= late_s < DIGEST_WITHIN_S else ""


def compose(
    waiting: Sequence[Notice], recent: Iterable[Notice], told: AbstractSet[str], habits: Habits, now: float
) -> Composition:
    """What becomes of the notices that wait.

    `recent` are those told within RECENT_S, `told` the subjects of all beginnings that were told.
    """
    silent = _cancelled(waiting, told)
    silent |= {one.key for one in waiting if one.severity < habits.least and one.kind not in AT_ONCE}
    left = [one for one in waiting if one.key not in silent and not _is_quiet(one, habits, now)]
    lately: dict[tuple[Kind, str], int] = {}
    for one in recent:
        lately[one.kind, one.list] = lately.get((one.kind, one.list), 0) + 1
    groups: dict[tuple[Kind, str], list[Notice]] = {}
    for one in left:
        alone = one.kind in AT_ONCE or not one.list
        if _of_a_list(one):
            if now - one.at >= _patience_s(one.kind, 0, [one]):  # none hurries along with another
                groups.setdefault((one.kind, ""), []).append(one)
            continue
        groups.setdefault((one.kind, one.key if alone else one.list), []).append(one)
    messages: list[Composed] = []
    for (kind, name), group in groups.items():
        before = lately.get((kind, name), 0)
        if now - min(one.at for one in group) < _patience_s(kind, before, group):
            continue
        if len(group) > 1 and before + len(group) > GROUP_FROM:
            messages.append(_composed(group, now))
        else:
            messages += [_composed([one], now) for one in group]
    messages.sort(key=lambda each: (-each.message.severity, each.message.at))
    return Composition(tuple(messages), tuple(sorted(silent)))


def _cancelled(waiting: Sequence[Notice], told: AbstractSet[str]) -> set[str]:
    """The notices that rule 4 settles."""
    found: set[str] = set()
    for end in waiting:
        if end.kind not in ENDS or end.subject in told:
            continue
        story = [one for one in waiting if one.subject == end.subject and one.at <= end.at]
        if not any(one.facts.get("withdrawn") for one in story):  # events that were told have to be taken back
            found |= {one.key for one in story}
    return found


def _of_a_list(one: Notice) -> bool:
    """Whether it speaks of a list and of no target: what breaks many lists is one thing, the resolver as a rule."""
    return one.kind in (Kind.LIST_BROKEN, Kind.LIST_USABLE) and not one.facts.get("withdrawn")


def _is_quiet(one: Notice, habits: Habits, now: float) -> bool:
    quiet = habits.quiet
    if quiet is None or one.severity >= quiet.below or one.kind in AT_ONCE:
        return False
    local = datetime.fromtimestamp(now, habits.zone)
    return quiet.holds(local.hour * 60 + local.minute)


def _patience_s(kind: Kind, before: int, group: Sequence[Notice]) -> float:
    if kind in AT_ONCE:
        return 0.0
    if kind is Kind.LIST_BROKEN and not any(one.facts.get("withdrawn") for one in group):
        return BROKEN_S
    return FLOOD_S if before >= GROUP_FROM else GATHER_S


def _composed(group: Sequence[Notice], now: float) -> Composed:
    keys = tuple(sorted(one.key for one in group))
    number = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:24]
    message = single_message(number, group[0], now) if len(group) == 1 else group_message(number, group, now)
    return Composed(message, keys, group[0].kind in AT_ONCE)


def subject_of(event: ListingEvent) -> str:
    """What all notices of one opening have in common."""
    return f"event:{event.id}:{event.flaps}"


def _list(name: str, last_good: float) -> str:
    return f"list:{name}:{last_good:.0f}"


def _event_facts(event: ListingEvent) -> dict[str, Fact]:
    return {
        "event": event.id, "name": event.name, "severity": event.severity.label, "code": plain(event.code, 60),
        "meaning": plain(event.meaning), "text": plain(" ".join(event.text)), "first_seen": event.first_seen,
        "opened_at": event.opened_at, "last_seen": event.last_seen, "expected_expiry": event.expected_expiry,
        "close_reason": event.close_reason.value if event.close_reason else None, "flaps": event.flaps,
    }  # fmt: skip
