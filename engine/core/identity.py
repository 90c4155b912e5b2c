"""Who asks, and with whose leave: Identity, Consent, Job."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from enum import StrEnum

from engine.core.grammar import Range, Rate


class Mode(StrEnum):
    """How far a run goes: `standard` ends at SG4, once a site; `enhanced` asks RCPT and needs consent."""

    STANDARD = "standard"
    ENHANCED = "enhanced"


class Status(StrEnum):
    """What an identity may do."""

    ENABLED = "enabled"
    DRAINING = "draining"
    DISABLED = "disabled"
    QUARANTINED = "quarantined"


_SESSIONS = Range(Rate(60, 60.0), Rate(1200, 60.0))
_REFUSALS = Range(Rate(200, 3600.0), Rate(2000, 3600.0))


@dataclass(frozen=True, slots=True)
class Limits:
    """What an identity may spend over all its lanes; None is no limit. Our guess: no source names such numbers."""

    sessions: Range | None = _SESSIONS
    refusals: Range | None = _REFUSALS


@dataclass(frozen=True, slots=True)
class Warmup:
    """A young identity's recipients a day, counted from `since`; after the last step it is warm."""

    since: date
    per_day: tuple[int, ...]

    @property
    def began_at(self) -> float:
        """The first moment of its first day (UTC), in seconds since the epoch."""
        return datetime.combine(self.since, time(), UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Identity:
    """The one honest name under which a node asks.

    `mail_from` is an existing address of its own, never empty. `public_v4`/`public_v6` are what the world sees
    (checked, shown, audited); `bind_v4`/`bind_v6` the local source addresses, empty for the system's choice.
    """

    name: str
    helo_name: str
    mail_from: str
    public_v4: str = ""
    public_v6: str = ""
    bind_v4: str = ""
    bind_v6: str = ""
    identity_domain: str = ""
    pool_tags: frozenset[str] = field(default_factory=frozenset)
    status: Status = Status.ENABLED
    limits: Limits = Limits()
    warmup: Warmup | None = None
    dkim_selectors: tuple[str, ...] = ()  # of the domain of `mail_from`; to look at, since nothing is ever signed

    @property
    def addresses(self) -> tuple[str, ...]:
        """What the world sees: one address or two."""
        return tuple(filter(None, (self.public_v4, self.public_v6)))

    @property
    def key(self) -> str:
        """What locks, budgets and lanes are kept under: the public address."""
        return self.public_v4 or self.public_v6


@dataclass(frozen=True, slots=True)
class Consent:
    """The record that allows asking about mailboxes. Times are aware UTC datetimes."""

    reference: str
    granted_by: str
    granted_at: datetime
    purpose: str = ""
    expires: datetime | None = None

    def expired(self, now: datetime) -> bool:
        """Whether it no longer allows anything; an expired consent is none."""
        return self.expires is not None and now >= self.expires


@dataclass(frozen=True, slots=True)
class Job:
    """One list to verify. `input_sha256`, `column`, `mode` and `mail_settings` must be the same on a resume."""

    id: str
    mode: Mode
    input_name: str
    input_sha256: str
    column: str
    consent: Consent | None = None
    mail_settings: dict[str, str] = field(default_factory=dict)
