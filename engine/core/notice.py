"""What operators are told: a notice is a fact, a message is the text that goes out for one or several of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from engine.core.listing import Severity

Fact = str | int | float | bool | None


class Kind(StrEnum):
    """What a notice tells."""

    OPENED = "opened"
    REOPENED = "reopened"
    SEVERITY = "severity"
    CLOSED = "closed"
    LIST_BROKEN = "list_broken"
    LIST_USABLE = "list_usable"
    QUARANTINED = "quarantined"
    RELEASED = "released"
    DELIST_OVERDUE = "delist_overdue"
    DIGEST = "digest"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Notice:
    """A fact that is told once: a second notice with the same `key` is dropped by the store."""

    key: str
    kind: Kind
    at: float  # Unix seconds
    severity: Severity
    subject: str = ""  # what its end refers to: the close of an event to its opening
    list: str = ""
    target: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One glance: a title, then labelled paragraphs, and where to go. Nothing in it has mark-up."""

    id: str  # the same notices give the same id
    at: float
    severity: Severity
    title: str
    parts: tuple[tuple[str, str], ...]  # (label, text)
    link: str = ""
    thread: str = ""  # messages of one story share it
