"""What a block list says of an address or a domain: the values that checks, events and alerts share.

1. Only LISTED may open an event, and only CLEAN may close one.
2. REFUSED, ERROR and SUSPECT say nothing of the target: the list was not checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Status(StrEnum):
    """The five answer states."""

    LISTED = "listed"  # an A record that the list documents as a listing
    CLEAN = "clean"  # NXDOMAIN or no data, from a list that is healthy
    REFUSED = "refused"  # the list does not answer us: public resolver, over its limit, not registered, wrong query
    ERROR = "error"  # SERVFAIL, time-out, FORMERR and the like
    SUSPECT = "suspect"  # an answer outside of what the list documents: rewriting, parking, an unknown code


class Severity(IntEnum):
    """How much a listing matters for mail; a higher one outweighs a lower one."""

    INFO = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4

    @property
    def label(self) -> str:
        """Its name in files, reports and metrics."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Listing:
    """One sublist that lists the target; a combined list may give several at once (RFC 5782, 2.3)."""

    sublist: str  # its name in the registry: sbl, css, xbl; the list's own name where it has no sublists
    code: str  # the A record: 127.0.0.4
    severity: Severity
    meaning: str


@dataclass(frozen=True, slots=True)
class Check:
    """One target asked at one list, once."""

    target: str  # an address as `ipaddress` writes it, or a domain in lower-case A-labels
    list: str  # the list's name in the registry
    status: Status
    at: float  # Unix seconds
    listings: tuple[Listing, ...] = ()
    text: tuple[str, ...] = ()  # the TXT records of the same name, asked only after a listing
    detail: str = ""  # what was seen, where it was no plain answer: an rcode, raw addresses, whom the list refuses
    latency_ms: float = 0.0
    ttl_s: int | None = None
    reliable: bool = True  # False: the list failed its own health probes since its last good one

    @property
    def tells(self) -> bool:
        """Whether it says anything of the target: listed or clean, by a list that can be believed."""
        return self.reliable and self.status in (Status.LISTED, Status.CLEAN)
