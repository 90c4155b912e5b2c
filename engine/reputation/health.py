"""Whether a block list can be believed; pure: what to ask, what the answers say, and what follows from them.

1. A list is usable while its probes are good: the name that it must know is known, the one that it must not know and
   a random one are not. Nothing else makes it usable.
2. Silence (SERVFAIL, time-outs) is a list's bad day: two probes in a row suspend it, and what it said before stands.
   Anything else suspends at once, and of what the list said since its last good probe, one half is doubtful, for it may
   have begun any moment after that: its listings, where it lists what isn't listed; that it knew nobody, where it has
   lost its entries or refuses us. A true listing is not doubted because the list fell silent later.
3. A list that was never good is unknown, and not usable. One good probe makes it so; a suspended list needs two.
4. Good probes are ever rarer (5 min to 1 h), failed ones too (1 min to 1 h): nobody hammers a dead list.
5. A refusal seen while a target is checked suspends at once: asking on is what gets a resolver blocked for good.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

from engine.core.listing import Check, Status
from engine.reputation.blocklist import BlockList, Effect, Family
from engine.reputation.question import asked_name
from engine.reputation.verdict import LOOPBACK, Answer, judge, meanings
from engine.store.list_health import Kept

FIRST_S, LAST_S = 300.0, 3600.0  # between probes that are good
RETRY_S = 60.0  # after the first that is not; doubles up to LAST_S
SILENCES = 2  # probes in a row without an answer that suspend a list which worked
RECOVERIES = 2  # good probes in a row that a suspended list owes
_NAME = 16  # letters of a random label: nobody registers it by chance
_LETTERS = "abcdefghijklmnopqrstuvwxyz"  # authoritative servers of some lists fail at odd labels


class Finding(StrEnum):
    """What a probe found; the `reason` of an unusable list."""

    GOOD = "good"
    SILENT = "silent"  # errors and time-outs
    REFUSED = "refused"  # it does not answer us
    PARKED = "parked"  # addresses outside of 127.0.0.0/8
    WILDCARD = "wildcard"  # lists what cannot be listed
    EMPTY = "empty"  # its test entry is gone: it lists nothing any more
    CODE = "code"  # its test entry has another code than documented

    @property
    def doubted(self) -> Status | None:
        """Which of its earlier verdicts it throws doubt on."""
        if self in (Finding.PARKED, Finding.WILDCARD, Finding.CODE):
            return Status.LISTED
        return Status.CLEAN if self in (Finding.EMPTY, Finding.REFUSED) else None


class Role(StrEnum):
    """Why a probe asks a name."""

    LISTED = "listed"
    UNLISTED = "unlisted"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Question:
    """One name of a probe. `shown` stands in reports in its place: the name may hold a key."""

    role: Role
    family: Family
    name: str
    shown: str


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe of a list, judged."""

    finding: Finding
    detail: str = ""  # what was seen, where it is not good
    latency_ms: float = 0.0  # of its slowest question


@dataclass(frozen=True, slots=True)
class Move:
    """A list became usable, or ceased to be; or its first probe told which."""

    list: str
    usable: bool
    at: float
    finding: Finding
    detail: str
    doubtful_since: float | None = None  # its last good probe; None where there was none, or what it said stands

    def doubts(self, check: Check) -> bool:
        """Whether a check made earlier is not to be relied on."""
        since, doubted = self.doubtful_since, self.finding.doubted
        return since is not None and check.list == self.list and check.status is doubted and since < check.at <= self.at


class Health:
    """Whether one list is to be believed, by its probes. Times are those of the caller's clock."""

    def __init__(self, name: str, last_good: float | None = None) -> None:
        self.name = name
        self.finding: Finding | None = None  # of the latest probe; None: never probed
        self.detail = ""
        self.usable = False
        self.last_good = last_good  # a restart brings back what an earlier run saw
        self.due = float("-inf")  # when the next probe is
        self._probed = 0
        self._in_a_row = 0  # latest probes that were alike: good, or not
        self._suspended = False

    @classmethod
    def of(cls, kept: Kept) -> Health:
        """As an earlier process left it; a probe is due at once."""
        found = cls(kept.name, kept.last_good)
        found.finding = next((each for each in Finding if each.value == kept.finding), None)
        found.detail, found.usable = kept.detail, kept.usable
        found._in_a_row, found._suspended, found._probed = kept.in_a_row, kept.suspended, 1
        return found

    def kept(self, failed_since: float | None = None) -> Kept:
        """What the next process has to know."""
        finding = self.finding.value if self.finding is not None else ""
        return Kept(
            self.name, self.usable, self._suspended, finding, self.detail, self._in_a_row, self.last_good, failed_since
        )

    @property
    def why(self) -> str:
        """Why it is not usable, in words; empty where it is."""
        if self.usable:
            return ""
        if self.finding is None:
            return "not probed yet"
        if self.finding is Finding.GOOD:
            return f"answers rightly again; one more good probe is needed after: {self.detail}"
        return self.detail or self.finding.value

    @property
    def status(self) -> Status:
        """What a check of an unusable list is, which is not asked at all."""
        if self.finding in (None, Finding.SILENT):
            return Status.ERROR
        return Status.REFUSED if self.finding is Finding.REFUSED else Status.SUSPECT

    def observe(self, probe: Probe, now: float) -> Move | None:
        """Take in a probe; the move, if this was one."""
        good = probe.finding is Finding.GOOD
        alike = self.finding is not None and (self.finding is Finding.GOOD) == good
        self._in_a_row = self._in_a_row + 1 if alike else 1
        self._probed += 1
        self.finding = probe.finding
        base = FIRST_S if good else RETRY_S
        self.due = now + min(LAST_S, base * 2.0 ** min(self._in_a_row - 1, 16))
        if good:
            return self._good(now)
        self.detail = probe.detail
        return self._bad(probe, now)

    def refuse(self, detail: str, now: float) -> Move | None:
        """A check was refused: no probe is needed to know that the list does not answer us."""
        return self.observe(Probe(Finding.REFUSED, detail), now) if self.usable else None

    def hasten(self, now: float) -> None:
        """A check went wrong, or listed half of the world: the next probe is not to wait its whole turn."""
        self.due = min(self.due, now + RETRY_S)

    def _good(self, now: float) -> Move | None:
        if self._suspended and self._in_a_row < RECOVERIES:
            self.due = now + RETRY_S
            return None
        self.last_good, self.detail, self._suspended = now, "", False
        if self.usable:
            return None
        self.usable = True
        return Move(self.name, True, now, Finding.GOOD, "")

    def _bad(self, probe: Probe, now: float) -> Move | None:
        if self.usable and probe.finding is Finding.SILENT and self._in_a_row < SILENCES:
            return None
        was, self.usable, self._suspended = self.usable, False, self._suspended or self.usable
        if not was and self._probed > 1:
            return None
        doubtful = self.last_good if probe.finding.doubted else None
        return Move(self.name, False, now, probe.finding, probe.detail, doubtful)

    def __repr__(self) -> str:
        state = "usable" if self.usable else self.finding.value if self.finding else "unknown"
        return f"<Health {self.name} {state}>"


def questions(blocklist: BlockList, rng: random.Random) -> list[Question]:
    """What a probe of this list asks: for each family its two test points and a random name."""
    found = []
    for family, points in blocklist.tests:
        if points.listed is not None:
            name = asked_name(blocklist, points.listed)
            found.append(Question(Role.LISTED, family, name, f"its test entry {points.listed}"))
        if points.unlisted is not None:
            found.append(Question(Role.UNLISTED, family, asked_name(blocklist, points.unlisted), points.unlisted))
        made_up = _random(family, rng)
        found.append(Question(Role.RANDOM, family, asked_name(blocklist, made_up), made_up))
    return found


def assess(blocklist: BlockList, asked: Sequence[tuple[Question, Answer]]) -> Probe:
    """What the answers to a probe's questions say; the gravest finding counts."""
    latency = max((answer.latency_ms for _, answer in asked), default=0.0)
    found = [_one(blocklist, question, answer) for question, answer in asked]
    order = (Finding.REFUSED, Finding.PARKED, Finding.WILDCARD, Finding.SILENT, Finding.EMPTY, Finding.CODE)
    for finding in order:
        for each, detail in found:
            if each is finding:
                return Probe(finding, detail, latency)
    return Probe(Finding.GOOD, "", latency)


def _one(blocklist: BlockList, question: Question, answer: Answer) -> tuple[Finding, str]:
    verdict = judge(blocklist, answer)
    if verdict.status is Status.ERROR:
        return Finding.SILENT, f"no answer for {question.shown}: {verdict.detail}"
    if verdict.status is Status.REFUSED:
        return Finding.REFUSED, verdict.detail
    if any(IPv4Address(record) not in LOOPBACK for record in answer.records):
        return Finding.PARKED, verdict.detail
    if question.role is Role.LISTED:
        return _test_entry(blocklist, question, answer.records)
    if answer.records:
        return Finding.WILDCARD, f"answers {', '.join(answer.records)} for {question.shown}, which cannot be listed"
    return Finding.GOOD, ""


def _test_entry(blocklist: BlockList, question: Question, records: Sequence[str]) -> tuple[Finding, str]:
    if not records:
        return Finding.EMPTY, f"does not know {question.shown}: emptied or dead"
    code = dict(blocklist.tests)[question.family].code
    if code in records or (not code and _documented(blocklist, records)):
        return Finding.GOOD, ""
    instead = f"instead of {code}" if code else "which it does not document"
    return Finding.CODE, f"answers {', '.join(records)} for {question.shown}, {instead}"


def _documented(blocklist: BlockList, records: Iterable[str]) -> bool:
    rows = [row for record in records for row in meanings(blocklist, IPv4Address(record))]
    return any(row.effect in (Effect.LISTING, Effect.GOOD) for row in rows)


def _random(family: Family, rng: random.Random) -> str:
    """A name that nobody can have listed: of TEST-NET-1 (RFC 5737), of 2001:db8::/32 (RFC 3849), or made up."""
    if family is Family.IPV4:
        return f"192.0.2.{rng.randint(1, 254)}"
    if family is Family.IPV6:
        return f"2001:db8:{rng.getrandbits(16):x}:{rng.getrandbits(16):x}::{rng.randint(1, 0xFFFF):x}"
    return "".join(rng.choices(_LETTERS, k=_NAME))
