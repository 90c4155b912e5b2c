"""What a message says: what, since when, why it matters, what to do, and where to go. Pure.

1. The title alone tells how bad it is, who is concerned and where.
2. What to do is a command or an address to open, never advice to look into it.
3. What lists and servers sent is quoted on one line, cut, and without control characters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.core.notice import Fact, Kind, Message, Notice
from engine.reputation.wording import day, many, plain, span

LINES = 20  # targets that a group names; the rest is counted

MATTERS = {
    "critical": "Mail hosts that use this list refuse us outright: their answers are about us, not about mailboxes. "
    "The identity behind the address has to stand still until it is off.",
    "high": "Many mail hosts refuse or defer whoever is on it: expect blocked sessions and risky verdicts.",
    "medium": "Some mail hosts weigh it in: expect more temporary refusals.",
    "low": "Few mail hosts act on it alone. It often comes before a listing that matters.",
    "info": "Mail hosts hardly act on it.",
}
_GONE = {
    "delisted": "The list took it off after it was asked.",
    "expired": "The list dropped it by itself.",
    "manual": "Closed by hand.",
}
_GROUPED = {
    Kind.OPENED: "{count} are newly listed on {list}",
    Kind.REOPENED: "{count} are listed on {list} again",
    Kind.SEVERITY: "{count} on {list} changed in severity",
    Kind.CLOSED: "{count} are off {list}",
    Kind.DELIST_OVERDUE: "{count} to {list} are overdue",
}

_Parts = list[tuple[str, str]]


def single_message(number: str, notice: Notice, now: float) -> Message:
    """The message of one notice."""
    title, parts = _TEXTS[notice.kind](notice, now)
    link = str(notice.facts.get("url") or "")
    told = tuple((label, text) for label, text in parts if text)
    return Message(number, now, notice.severity, plain(title), told, link, notice.subject)


def group_message(number: str, notices: Sequence[Notice], now: float) -> Message:
    """One message for many notices of one kind: about one list, or each about a list of its own."""
    first = notices[0]
    if first.kind in (Kind.LIST_BROKEN, Kind.LIST_USABLE):
        return _lists_message(number, notices, now)
    worst = max(one.severity for one in notices)
    counted = many(len(notices), "request" if first.kind is Kind.DELIST_OVERDUE else "listing")
    if first.kind is not Kind.DELIST_OVERDUE:
        counted = many(len({one.target for one in notices}), "target")
    what = _GROUPED[first.kind].format(count=counted, list=first.list)
    rows = [f"{one.target} on {one.facts['name']} ({one.facts['severity']})" for one in notices[:LINES]]
    if len(notices) > LINES:
        rows.append(f"and {len(notices) - LINES} more: engine rbl events --list {first.list}")
    since = min(_time(one.facts.get("opened_at")) or one.at for one in notices)
    parts: _Parts = [("What", "\n".join(rows)), ("Since", f"{day(since)} ({span(now - since)} ago)")]
    if first.kind is Kind.CLOSED:
        label = "Resolved"
    else:
        label = worst.label.upper()
        parts += [
            ("Why it matters", MATTERS[worst.label]),
            (
                "What to do",
                (
                    "Many at once have one cause: the network, or the list itself. Look at engine rbl verify-lists and "
                    f"engine rbl events --list {first.list}; engine rbl delist show NUMBER has the steps for each."
                ),
            ),
        ]
    link = str(first.facts.get("url") or "")
    return Message(number, now, worst, plain(f"{label}: {what}"), tuple(parts), link, f"group:{number}")


def _lists_message(number: str, notices: Sequence[Notice], now: float) -> Message:
    count, since = many(len(notices), "list"), min(one.at for one in notices)
    worst = max(one.severity for one in notices)
    broken = notices[0].kind is Kind.LIST_BROKEN
    by_weight = sorted(notices, key=lambda one: (-one.severity, one.list))
    rows = [f"{one.list}: {one.facts['why']}" if broken else one.list for one in by_weight[:LINES]]
    if len(notices) > LINES:
        rows.append(f"and {len(notices) - LINES} more: engine rbl verify-lists")
    parts: _Parts = [("What", "\n".join(rows)), ("Since", f"{day(since)} ({span(now - since)} ago)")]
    if broken:
        parts += [
            ("Why it matters", "Nothing that they say counts until they are back: targets are shown as not checked."),
            ("What to do", "Many at once have one cause, the resolver as a rule: engine rbl verify-lists examines it."),
        ]
    title = f"Lists broken: {count} are not checked" if broken else f"Resolved: {count} are checked again"
    return Message(number, now, worst, title, tuple(parts), "", f"group:{number}")


def _opened(one: Notice, now: float) -> tuple[str, _Parts]:
    facts = one.facts
    again = one.kind is Kind.REOPENED
    title = f"{_level(one)}: {one.target} is {'again ' if again else ''}listed on {facts['name']}"
    since = _time(facts["first_seen"])
    flapped = f" It came back {_times(facts['flaps'])} so far." if again and facts["flaps"] else ""
    return title, [
        ("What", _what(facts)),
        ("Since", f"First seen {day(since)}, {span(now - since)} ago; confirmed by a second answer.{flapped}"),
        ("Why it matters", MATTERS[str(facts["severity"])]),
        ("What to do", f"{facts['next']} Every step: engine rbl delist show {facts['event']}"),
    ]


def _severity(one: Notice, now: float) -> tuple[str, _Parts]:
    facts = one.facts
    title = f"{_level(one)}: {one.target} on {facts['name']} went from {facts['before']} to {facts['severity']}"
    since = _time(facts["first_seen"])
    return title, [
        ("What", _what(facts)),
        ("Since", f"{day(one.at)}; listed since {day(since)}, for {span(now - since)}."),
        ("Why it matters", MATTERS[str(facts["severity"])]),
        ("What to do", f"{facts['next']} Every step: engine rbl delist show {facts['event']}"),
    ]


def _closed(one: Notice, _: float) -> tuple[str, _Parts]:
    facts = one.facts
    since = _time(facts["opened_at"]) or one.at
    return f"Resolved: {one.target} is off {facts['name']}", [
        ("What", f"{_GONE.get(str(facts['close_reason']), 'It is over.')} Two answers in a row are clean."),
        ("Since", f"{day(one.at)}; it was open for {span(one.at - since)}."),
        ("What to do", "Nothing, if the cause is gone. A quarantine ends by its own rules: engine identity status"),
    ]


def _broken(one: Notice, now: float) -> tuple[str, _Parts]:
    facts = one.facts
    good = _time(facts["last_good"])
    since = f"Last good {day(good)}, {span(now - good)} ago." if good else "It never answered as it must."
    taken = ""
    if facts["withdrawn"]:
        listings = many(int(_time(facts["withdrawn"])), "listing")
        taken = f" Taken back with it: {listings} that it reported since then ({facts['targets']})."
    return f"List broken: {one.list} is not checked", [
        ("What", f"{one.list} fails its own test points: {facts['why']}.{taken}"),
        ("Since", since),
        (
            "Why it matters",
            "Nothing that it says counts until it is back: targets are shown as not checked, not clean.",
        ),
        ("What to do", "engine rbl verify-lists says what it answers to this resolver, and what would help."),
    ]


def _usable(one: Notice, _: float) -> tuple[str, _Parts]:
    return f"Resolved: {one.list} is checked again", [
        ("What", f"{one.list} answers its test points as it must."),
        ("Since", day(one.at)),
    ]


def _quarantined(one: Notice, now: float) -> tuple[str, _Parts]:
    facts = one.facts
    since, until = _time(facts["since"]), _time(facts["until"])
    ends = f", until {day(until)}" if until else ""
    return f"CRITICAL: identity {one.target} is quarantined", [
        ("What", f"It asks nothing any more: {facts['why']}"),
        ("Since", f"{day(since)}, {span(now - since)} ago{ends}."),
        ("Why it matters", "Addresses in its lanes wait or end as identity_paused; no other source asks those again."),
        ("What to do", "engine identity status shows the cause; engine identity enable lifts it by hand."),
    ]


def _released(one: Notice, _: float) -> tuple[str, _Parts]:
    since = _time(one.facts["since"])
    return f"Resolved: identity {one.target} asks again", [
        ("What", str(one.facts["why"])),
        ("Since", f"{day(one.at)}; it stood still for {span(one.at - since)}."),
    ]


def _overdue(one: Notice, now: float) -> tuple[str, _Parts]:
    facts = one.facts
    since = _time(facts["opened_at"]) or one.at
    return f"Overdue: {one.target} is still on {facts['name']} ({facts['severity']})", [
        ("What", str(facts["why"])),
        ("Since", f"Listed {day(since)}, {span(now - since)} ago."),
        ("Why it matters", MATTERS[str(facts["severity"])]),
        ("What to do", f"engine rbl delist show {facts['event']} has the steps and a text to copy."),
    ]


def _digest(one: Notice, _: float) -> tuple[str, _Parts]:
    facts = one.facts
    parts = [(label, str(facts.get(key) or none)) for key, label, none in _DIGEST]
    return f"Daily digest: {facts['summary']}", parts


_DIGEST = (
    ("open", "Open now", "No listing is open."),
    ("changed", "The last 24 hours", "Nothing opened, closed or changed."),
    ("lists", "Not checked", "Every list answered."),
    ("requests", "To be done", "No request waits for anybody."),
)


def _test(one: Notice, _: float) -> tuple[str, _Parts]:
    return "Test: alerts reach you", [
        ("What", f"A test, sent by {one.facts['by']}. Nothing is listed and nothing is broken."),
        ("What to do", "Nothing. If others should have had it too, look at the section alerts of the settings file."),
    ]


_TEXTS: dict[Kind, Callable[[Notice, float], tuple[str, _Parts]]] = {
    Kind.OPENED: _opened,
    Kind.REOPENED: _opened,
    Kind.SEVERITY: _severity,
    Kind.CLOSED: _closed,
    Kind.LIST_BROKEN: _broken,
    Kind.LIST_USABLE: _usable,
    Kind.QUARANTINED: _quarantined,
    Kind.RELEASED: _released,
    Kind.DELIST_OVERDUE: _overdue,
    Kind.DIGEST: _digest,
    Kind.TEST: _test,
}


def _level(one: Notice) -> str:
    return str(one.facts["severity"]).upper()


def _what(facts: Mapping[str, Fact]) -> str:
    said = f" The list says: {facts['text']}" if facts["text"] else ""
    meaning = f": {facts['meaning']}." if facts["meaning"] else "."
    return f"{facts['name']} answers {facts['code'] or 'a listing'}{meaning}{said}"


def _times(value: Fact) -> str:
    return "once" if value == 1 else f"{value} times"


def _time(value: Fact) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
