"""The breaker above all lanes of one identity: so many who refuse it refuse the identity, and not by chance.

1. It counts sites by their last answer, the 25 that answered last. Every address is refused by one site in a hundred:
   only shares prove anything, three in a row or five in all, or three who name the same block list.
2. Refusals count once an organisation. Two sites are of different ones when the registrable domains of their mail hosts
   and their networks both differ. The last two labels stand for the registrable domain: under `co.uk` this takes
   many for one, and so stops later, never sooner.
3. That port 25 is closed on our way out is suspected after 20 connects in a row to 5 or more sites that time out, and
   believed when the sites that answered last can't be reached either: the tail of a list consists of dead hosts.
4. Half-open asks one address, at the site that answered last. That may be one which never refused us: so an identity
   that is refused again before it was let in for as long as it would stay away stays away for twice as long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from typing import Any

from engine.core.breaker import Breaker, BreakerState
from engine.core.bucket import NEVER

OPEN_S = 15 * 60.0
MAX_OPEN_S = 6 * 3600.0
OF_LAST = 25  # sites
IN_A_ROW = 3  # of them, of different organisations
IN_ALL = 5
SAME_LIST = 3
TIMEOUTS = 20  # connects in a row
TIMEOUT_SITES = 5
WITNESSES = 3  # sites that answered last: whether they can be reached tells dead hosts from a closed port
EGRESS = "egress_port25_blocked"


@dataclass(frozen=True, slots=True)
class Organisation:
    """Whom a mail host belongs to, as far as its name and address tell."""

    domain: str
    network: str

    def same(self, other: Organisation) -> bool:
        """Whether both may be one; different ones share neither domain nor network."""
        return self.domain == other.domain or self.network == other.network


@lru_cache(maxsize=1024)
def organisation(host: str, ip: str) -> Organisation:
    """The last two labels of a mail host's name, and its /24 (IPv6: /48)."""
    network = str(ip_network(f"{ip}/48", strict=False)) if ":" in ip else f"{ip.rpartition('.')[0]}.0/24"
    return Organisation(".".join(host.lower().split(".")[-2:]), network)


def operator(named: str) -> str:
    """Who runs the block list that a reply names: `zen.spamhaus.org`, `www.spamhaus.org` and `spamhaus` are one."""
    labels = named.lower().split(".")
    owner = labels[-2:][0]
    return owner if len(owner) > 3 or len(labels) < 3 else labels[-3]  # co.uk, com.br


@dataclass(frozen=True, slots=True)
class _Answer:
    site: str
    who: Organisation
    refused: bool
    named: str = ""


class IdentityBreaker:
    """Tell it what was `answered`, who `connected` and what `timed_out`; ask `stops` before anything starts."""

    def __init__(self, open_s: float = OPEN_S, max_open_s: float = MAX_OPEN_S) -> None:
        self.breaker = Breaker(open_s, max_open_s)
        self.last: OrderedDict[str, str] = (
            OrderedDict()
        )  # site -> its lane, of those that answered last; the newest last
        self._answers: OrderedDict[str, _Answer] = OrderedDict()  # by site, the newest last
        self._timeouts = 0
        self._silent: set[str] = set()
        self._closed_at = NEVER

    @property
    def stops(self) -> bool:
        """Whether nothing may be started or asked, the half-open session excepted."""
        return self.breaker.state is not BreakerState.CLOSED

    def answered(
        self, site: str, who: Organisation, now: float, jitter: float, *, cause: str = "", named: str = ""
    ) -> bool:
        """A site's last answer; `cause` is the reason by which it refuses the source, empty when it does not.

        `named` is the block list that its reply names. True when this opened the breaker.
        """
        known = self._answers.get(site)
        if known is not None and not cause and not known.refused:
            self._answers.move_to_end(site)
            return False
        self._note(_Answer(site, who, bool(cause), operator(named) if cause and named else ""))
        if not cause or self.stops or not self._convinced():
            return False
        self._answers.clear()
        return self._open(now, cause, jitter)

    def tried(self, now: float, jitter: float, *, cause: str) -> None:
        """What the half-open session heard: nothing against us (`cause` empty) closes, anything else opens again."""
        if self.breaker.state is not BreakerState.HALF_OPEN:
            return
        if cause:
            self.breaker.open(now, cause, jitter)
        else:
            self._answers.clear()
            self._hope()
            self.breaker.close(forget=False)
            self._closed_at = now

    def connected(self, site: str, lane: str) -> None:
        """A TCP connection came about: the way out is open, and the site is a witness for that."""
        self._hope()
        self.last[site] = lane
        self.last.move_to_end(site)
        if len(self.last) > OF_LAST:
            self.last.popitem(last=False)

    def refused(self) -> None:
        """A connect failed in another way than by silence: somebody out there spoke."""
        self._hope()

    def timed_out(self, site: str) -> bool:
        """A connect got no answer; True when the witnesses are to be asked whether the way out is closed."""
        self._timeouts += 1
        self._silent.add(site)
        if self.stops or self._timeouts < TIMEOUTS or len(self._silent) < TIMEOUT_SITES:
            return False
        self._hope()  # asked once, and again after as many more
        return True

    def egress_closed(self, now: float, jitter: float) -> bool:
        """The witnesses could not be reached either."""
        return self._open(now, EGRESS, jitter)

    @property
    def witnesses(self) -> list[tuple[str, str]]:
        """(site, lane) of the up to WITNESSES sites that answered last, the newest first."""
        return list(reversed(self.last.items()))[:WITNESSES]

    def memory(self, now: float) -> dict[str, Any]:
        """What the next run has to know; nothing while nobody refuses."""
        kept: dict[str, Any] = {}
        answers = self._answers.values()
        if any(answer.refused for answer in answers):
            kept["answers"] = [
                [answer.site, answer.who.domain, answer.who.network, answer.refused, answer.named] for answer in answers
            ]
        if self.stops:
            kept["breaker"] = self.breaker.memory(now)
            kept["last"] = list(self.last.items())
        return kept

    def recall(self, kept: Mapping[str, Any], now: float, away_s: float) -> None:
        """Go on where `memory` stood, `away_s` seconds later."""
        for site, domain, network, refused, named in kept.get("answers", ()):
            self._note(_Answer(site, Organisation(domain, network), refused, named))
        self.breaker.recall(kept.get("breaker", {}), now, away_s)
        self.last.update((site, lane) for site, lane in kept.get("last", ()))

    def _open(self, now: float, cause: str, jitter: float) -> bool:
        if now - self._closed_at >= self.breaker.next_s:
            self.breaker.forget()
        return self.breaker.open(now, cause, jitter)

    def _note(self, answer: _Answer) -> None:
        self._answers[answer.site] = answer
        self._answers.move_to_end(answer.site)
        if len(self._answers) > OF_LAST:
            self._answers.popitem(last=False)

    def _hope(self) -> None:
        self._timeouts = 0
        self._silent.clear()

    def _convinced(self) -> bool:
        row: list[_Answer] = []
        for answer in reversed(self._answers.values()):
            if not answer.refused:
                break
            row.append(answer)
        refusing = [answer for answer in self._answers.values() if answer.refused]
        newest = refusing[-1].named
        alike = [answer for answer in refusing if answer.named == newest] if newest else []
        return _different(row) >= IN_A_ROW or _different(refusing) >= IN_ALL or _different(alike) >= SAME_LIST

    def __repr__(self) -> str:
        refusing = sum(answer.refused for answer in self._answers.values())
        return f"<IdentityBreaker {self.breaker.state}, {refusing} of {len(self._answers)} sites refuse>"


def _different(answers: list[_Answer]) -> int:
    """How many different organisations there are among them."""
    found: list[Organisation] = []
    for answer in answers:
        if not any(answer.who.same(known) for known in found):
            found.append(answer.who)
    return len(found)
