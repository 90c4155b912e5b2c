"""The life of a listing: the event that it is, what changed about it, and the request to take us off.

Times are Unix seconds. Severities are those of `core.listing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.core.listing import Severity


class Close(StrEnum):
    """Why an event is over."""

    DELISTED = "delisted"  # we had asked the list
    EXPIRED = "expired"  # the list dropped it by itself
    LIST_FAILURE = "list_failure"  # the list failed its own probes: what it said does not count
    MANUAL = "manual"  # a person closed it


@dataclass(frozen=True, slots=True)
class ListingEvent:
    """One sublist that lists one target.

    `seen` is what the newest reliable answers say (None: not listed) and `seen_since` the first of them that said so.
    Once that differs from what the event shows, the same answer at `ask_at` or later makes the change.
    """

    target: str
    list: str
    sublist: str
    severity: Severity
    first_seen: float
    last_seen: float
    seen: Severity | None
    seen_since: float
    ask_at: float | None = None
    id: int = 0  # 0: not stored yet
    confirmed_at: float | None = None  # of the first opening; None: seen once, and not yet confirmed
    opened_at: float | None = None  # of the newest opening
    closed_at: float | None = None
    close_reason: Close | None = None
    flaps: int = 0  # how often it was open again soon after it had closed
    code: str = ""
    meaning: str = ""
    text: tuple[str, ...] = ()  # TXT records
    expected_expiry: float | None = None  # last_seen and the list's usual expiry; None: the list never forgets
    asked: bool = False  # the list was asked to take us off

    @property
    def is_open(self) -> bool:
        """Confirmed, and not over."""
        return self.confirmed_at is not None and self.closed_at is None

    @property
    def shown(self) -> Severity | None:
        """What the event says today: its severity while it is open."""
        return self.severity if self.is_open else None

    @property
    def name(self) -> str:
        """List and sublist as people say them: `zen/sbl`."""
        return self.list if self.sublist == self.list else f"{self.list}/{self.sublist}"


class Change(StrEnum):
    """What happened to an event."""

    OPENED = "opened"
    REOPENED = "reopened"
    SEVERITY = "severity"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Transition:
    """A confirmed change: the event after it, and the severity before where that is what changed."""

    change: Change
    event: ListingEvent
    at: float
    before: Severity | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What an observation makes of the events of one target at one list."""

    changed: tuple[ListingEvent, ...] = ()  # to be kept as they stand here; id 0 is new
    dropped: tuple[ListingEvent, ...] = ()  # never confirmed: to be forgotten
    transitions: tuple[Transition, ...] = ()
    ask_at: float | None = None  # when to ask this list about this target again; None: at its usual time


class Method(StrEnum):
    """How a list takes an address off."""

    FORM = "form"
    EMAIL = "email"
    AUTO = "auto"  # by itself, some time after the last sighting
    ISP = "isp"  # only whoever owns the network can ask


class Progress(StrEnum):
    """How a request to be taken off stands."""

    NEEDED = "needed"
    SUBMITTED = "submitted"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Note:
    """A line in the history of a request."""

    at: float
    by: str
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be done, and was done, to get one event's target off its list. No form is ever sent by the engine."""

    event: int
    method: Method
    url: str
    procedure: str  # what the list asks for, in words
    status: Progress
    opened_at: float
    moved_at: float  # of the newest change of status
    cooldown_s: float = 0.0  # the list wants no second request within this
    expiry_s: float | None = None  # how long after the last sighting the list forgets by itself
    requested_at: float | None = None
    cooldown_until: float | None = None
    actor: str = ""  # who moved it last
    notes: tuple[Note, ...] = ()
    id: int = 0  # 0: not stored yet
