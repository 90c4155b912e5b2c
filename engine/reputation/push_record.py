"""What is pushed of a check, an event's change and a list's failure: names and forms of the contract (docs/push.md).

Times are RFC 3339 in UTC with milliseconds; what is not known is null. A field is never renamed, and others may join.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from engine.core.listing import Check
from engine.core.listing_event import Transition

VERSION = 1
CHECK, EVENT, LIST = "check", "event", "list"


def of_check(check: Check) -> dict[str, Any]:
    """An answer of a list about a target."""
    return {
        "ip": check.target, "rbl": check.list, "status": check.status.value, "checked_at": moment(check.at),
        "reliable": check.reliable,
        "listings": [
            {"sublist": one.sublist, "code": one.code, "severity": one.severity.label, "meaning": one.meaning}
            for one in check.listings
        ],
        "txt": list(check.text), "detail": check.detail, "latency_ms": check.latency_ms, "ttl_s": check.ttl_s,
    }  # fmt: skip


def of_transition(transition: Transition) -> dict[str, Any]:
    """An event as it stands after a change, whole: the newest record of an event is the event."""
    event, before = transition.event, transition.before
    return {
        "change": transition.change.value, "at": moment(transition.at), "event": event.id, "ip": event.target,
        "rbl": event.list, "sublist": event.sublist, "severity": event.severity.label,
        "severity_before": before.label if before is not None else None, "first_seen": moment(event.first_seen),
        "last_seen": moment(event.last_seen), "opened_at": moment(event.opened_at),
        "closed_at": moment(event.closed_at),
        "close_reason": event.close_reason.value if event.close_reason is not None else None, "flaps": event.flaps,
        "code": event.code, "meaning": event.meaning, "txt": list(event.text),
        "expected_expiry": moment(event.expected_expiry),
    }  # fmt: skip


def of_list(name: str, *, usable: bool, at: float, why: str = "", doubted: str = "", since: float | None = None) -> Any:
    """A list that failed its probes, or passes them again; checks of status `doubted` since then are not reliable."""
    return {
        "rbl": name, "usable": usable, "at": moment(at), "why": why, "doubted": doubted or None,
        "doubted_since": moment(since) if doubted else None,
    }  # fmt: skip


def moment(at: float | None) -> str | None:
    """A time as the contract writes it."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
