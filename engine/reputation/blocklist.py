"""What is known of one block list: what it lists, what its answers mean, how it is asked and how one gets off it.

1. Nothing here is code for one list: a list is data out of `lists.yaml` or a file of the operator's.
2. `zone` is what may be shown. A key takes its place in `asked_zone` only, which goes to the name server and nowhere
   else: it is in no repr, no report and no error.
3. A list with no positive test point is never believed: its silence would prove nothing (RFC 5782 section 5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address

from engine.core.grammar import Rate
from engine.core.listing import Severity

DEFAULT_RATE = Rate(5, 1.0)  # the tightest that any list states; nobody is asked faster without leave
_LAST_OCTET = IPv4Address("127.0.0.0")


class Kind(StrEnum):
    """What a list is asked about."""

    IP = "ip"  # addresses
    DOMAIN = "domain"
    WHITE = "white"  # addresses, and an entry is good news


class Family(StrEnum):
    """What a target is, and what a list knows."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    DOMAIN = "domain"


class Effect(StrEnum):
    """What a documented answer means for the target."""

    LISTING = "listing"
    NEUTRAL = "neutral"  # known to the list, and not to blame
    GOOD = "good"
    REFUSED = "refused"  # not about the target at all: the list does not answer us


class Needs(StrEnum):
    """What a list's terms ask of the operator before it may be asked."""

    NOTHING = "nothing"
    KEY = "key"
    REGISTRATION = "registration"
    NONCOMMERCIAL = "noncommercial"
    SUBSCRIPTION = "subscription"


@dataclass(frozen=True, slots=True)
class Code:
    """One row of a list's answers: addresses from `first` to `last`, or a bit of the last octet of 127.0.0.N."""

    sublist: str
    means: str
    severity: Severity
    effect: Effect = Effect.LISTING
    first: int = 0
    last: int = 0
    bit: int = 0
    expires_s: float | None = None  # how long an entry usually stays after its last cause
    delist: str = ""  # how one gets off this sublist, where it differs from the list's own way

    def matches(self, address: IPv4Address) -> bool:
        """Whether an answer (within 127.0.0.0/8) is this row's."""
        number = int(address)
        if self.bit:
            return number & ~0xFF == int(_LAST_OCTET) and bool(number & self.bit)
        return self.first <= number <= self.last


@dataclass(frozen=True, slots=True)
class TestPoints:
    """The names that a list must know and must not know; None where it has none."""

    __test__ = False  # pytest would take it for a test

    listed: str | None  # an address, or the labels before the zone
    unlisted: str | None
    code: str = ""  # what the listed one has to answer; any documented answer, where empty


@dataclass(frozen=True, slots=True)
class Delist:
    """How one gets off a list. No form is ever sent by itself: this is what a person is told."""

    url: str = ""
    method: str = "none"  # one of METHODS
    how: str = ""
    cooldown_s: float | None = None  # between two requests for one target
    expires_s: float | None = None  # how long an entry usually stays after its last cause


METHODS = ("form", "email", "auto", "isp", "none")


@dataclass(frozen=True, slots=True)
class BlockList:
    """One list of the registry."""

    name: str
    zone: str  # as it may be shown; `{key}` stands for the key, and it is empty where only subscribers are told it
    kind: Kind
    severity: Severity  # of its worst sublist, and so of its not being checked
    codes: tuple[Code, ...]
    tests: tuple[tuple[Family, TestPoints], ...]  # one a family that the list knows
    interval_s: float
    lists: str = ""  # what gets listed, in a few words
    needs: Needs = Needs.NOTHING
    access: str = ""  # the section of the settings that opens it
    rate: Rate = DEFAULT_RATE
    delist: Delist = Delist()
    verified_on: str = ""  # when these facts were read; not that the zone was alive then
    source: str = ""
    keyed_zone: str = ""  # the zone for those who have a key, where it is another
    key: str = field(default="", repr=False)

    @property
    def asked_zone(self) -> str:
        """The zone as it is asked, with the key in it. For the name server's eyes only."""
        return self.zone.replace("{key}", self.key)

    @property
    def families(self) -> tuple[Family, ...]:
        """What it can be asked about."""
        return tuple(family for family, _ in self.tests)

    def takes(self, family: Family) -> bool:
        """Whether a target of this family may be asked here; an address never goes to a domain list."""
        return family in self.families

    def expires_s(self, sublist: str) -> float | None:
        """How long an entry of a sublist usually stays after its last cause; None where nobody says."""
        own = next((code.expires_s for code in self.codes if code.sublist == sublist), None)
        return own if own is not None else self.delist.expires_s

    def how_to_delist(self, sublist: str) -> str:
        """The way off a sublist, in words."""
        return next((code.delist for code in self.codes if code.sublist == sublist and code.delist), self.delist.how)

    def hide_key(self, text: str) -> str:
        """A text that came from outside, without the key."""
        return re.sub(re.escape(self.key), "{key}", text, flags=re.IGNORECASE) if self.key else text
