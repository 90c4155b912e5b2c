"""What DNS said, for as long as it holds: a bounded memory of answers.

1. Time comes in as an argument; nothing here asks a server.
2. At most `limit` entries; when full, the one longest unused goes, so a list of any length costs the same memory.
3. An answer is kept for its TTL, at most a day. Negatives carry no SOA here, so they get fixed times:
   15 min for what a server said (no such name, no data), 30 s for what it failed to say.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

MAX_NAMES = 50_000
MAX_TTL_S = 86_400.0
NEGATIVE_TTL_S = 900.0
FAILURE_TTL_S = 30.0


class Outcome(StrEnum):
    """What became of one question."""

    FOUND = "found"
    ALIAS = "alias"  # only CNAMEs: `target` is where they lead
    NODATA = "nodata"
    NXDOMAIN = "nxdomain"
    CNAME_LOOP = "cname_loop"  # or a chain too long to be meant
    SERVFAIL = "servfail"
    REFUSED = "refused"
    MALFORMED = "malformed"
    UNREACHABLE = "unreachable"  # no name server listens
    TIMEOUT = "timeout"

    @property
    def failed(self) -> bool:
        """Whether nothing was learnt: another time may bring an answer."""
        return self in _FAILED


_FAILED = frozenset({Outcome.SERVFAIL, Outcome.REFUSED, Outcome.MALFORMED, Outcome.UNREACHABLE, Outcome.TIMEOUT})


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question, read as far as we need it.

    `values` are addresses (A, AAAA) or host names (PTR), `exchanges` MX records (preference, name; "" is the root), and
    `extra` the additional section's addresses of those names. `hops` counts the CNAMEs that led here, `target` is their
    end. All that holds `until` this time of the resolver's clock.
    """

    outcome: Outcome
    values: tuple[str, ...] = ()
    exchanges: tuple[tuple[int, str], ...] = ()
    extra: tuple[tuple[str, str], ...] = ()
    target: str = ""
    hops: int = 0
    until: float = 0.0
    unconfirmed: bool = False  # a first NXDOMAIN that the second question could not confirm


class Cache:
    """Answers by (name, record type)."""

    def __init__(self, limit: int = MAX_NAMES) -> None:
        self._limit = limit
        self._entries: OrderedDict[tuple[str, int], Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[str, int], now: float) -> Answer | None:
        """The answer while it holds."""
        answer = self._entries.get(key)
        if answer is None:
            return None
        if now >= answer.until:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return answer

    def put(self, key: tuple[str, int], answer: Answer, now: float) -> None:
        """Keep an answer until it ends; a TTL of 0 is not kept (RFC 1035 section 3.2.1)."""
        self._entries.pop(key, None)
        if answer.until <= now:
            return
        self._entries[key] = answer
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)
