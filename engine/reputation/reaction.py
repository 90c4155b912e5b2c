"""What open listings of our own addresses mean for the identities behind them; pure, time is data (Unix seconds).

1. A confirmed critical listing of an address quarantines its identity. After the end of the last one a dwell time
   passes before it may ask again; one that was never true (its list failed) is waited for by nobody.
2. Medium and high listings slow it down, where the settings name a rate.
3. Only what the monitor ordered is lifted by it. What an operator ordered stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.identity import Identity
from engine.core.listing import Severity
from engine.core.listing_event import Close, ListingEvent

BY = "monitor"  # who orders what is ordered here
_ENDED = (Close.DELISTED, Close.EXPIRED)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an identity has to stand. `why` is empty where nothing holds it; `again_at`: when to look at it again."""

    quarantine: str = ""
    slow: str = ""
    again_at: float | None = None


def wanted(identity: Identity, events: Sequence[ListingEvent], dwell_s: float, now: float) -> Wanted:
    """What these events, open ones and those that ended lately, ask of an identity."""
    own = [event for event in events if event.target in identity.addresses and event.confirmed_at is not None]
    critical = [event for event in own if event.severity is Severity.CRITICAL]
    is_open = [event for event in critical if event.is_open]
    slowing = [event for event in own if event.is_open and Severity.MEDIUM <= event.severity < Severity.CRITICAL]
    slow = ", ".join(map(_said, slowing))
    if is_open:
        return Wanted(", ".join(map(_said, is_open)), slow)
    ends = [event.closed_at + dwell_s for event in critical if event.close_reason in _ENDED and event.closed_at]
    last = max(ends, default=0.0)
    if last > now:
        latest = max((event for event in critical if event.closed_at), key=lambda event: event.closed_at or 0.0)
        return Wanted(f"{_said(latest)} until lately", slow, last)
    return Wanted("", slow)


def _said(event: ListingEvent) -> str:
    return f"{event.target} is listed on {event.name}" + (f" ({event.meaning})" if event.meaning else "")
