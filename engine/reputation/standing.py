"""What the checks of one target come to; pure.

1. A target is clean only when every critical list that takes such targets was checked and none lists it. Until then it
   is "not listed where it was checked", and what was not checked is named with its reason.
2. A listing of severity `info` is told, and counts for nothing: whole providers are listed so.
3. What a list said that is not to be relied on is not said.
4. White lists are no lists that a target is clean on: what they know is praise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.core.listing import Check, Listing, Severity, Status
from engine.reputation.blocklist import Kind
from engine.reputation.question import Target
from engine.reputation.registry import Registry, Unchecked


class State(StrEnum):
    """How a target stands."""

    CLEAN = "clean"
    LISTED = "listed"
    UNCHECKED = "not_checked"  # not listed where it was checked, which was not everywhere that counts


@dataclass(frozen=True, slots=True)
class Standing:
    """One target at all lists."""

    target: str
    checks: tuple[Check, ...]  # that can be relied on, of block lists
    unchecked: tuple[Unchecked, ...]  # the gravest first
    praise: tuple[Check, ...] = ()  # of white lists that know it

    @property
    def listings(self) -> list[tuple[Check, Listing]]:
        """Every listing, the gravest first."""
        found = [(check, each) for check in self.checks for each in check.listings]
        return sorted(found, key=lambda each: (-each[1].severity, each[0].list, each[1].sublist))

    @property
    def state(self) -> State:
        """The state in a word."""
        if any(listing.severity > Severity.INFO for _, listing in self.listings):
            return State.LISTED
        missing = any(each.severity is Severity.CRITICAL for each in self.unchecked)
        return State.UNCHECKED if missing or not self.checks else State.CLEAN


def standing(registry: Registry, target: Target, checks: Iterable[Check]) -> Standing:
    """How a target stands by its checks, and by the lists that are off."""
    told: list[Check] = []
    praise: list[Check] = []
    unchecked = list(registry.unchecked_for(target))
    for check in checks:
        if check.target != target.text:
            continue
        blocklist = registry.named(check.list)
        sure = check.reliable and check.status in (Status.LISTED, Status.CLEAN)
        if blocklist.kind is Kind.WHITE:
            praise += [check] if sure and check.detail else []
        elif sure:
            told.append(check)
        else:
            unchecked.append(Unchecked(check.list, blocklist.severity, check.detail or check.status.value))
    unchecked.sort(key=lambda each: (-each.severity, each.name))
    told.sort(key=lambda each: each.list)
    return Standing(target.text, tuple(told), tuple(unchecked), tuple(praise))


def worst(standings: Sequence[Standing]) -> State:
    """The state of a whole report: one listing outweighs all, and one gap outweighs what is clean."""
    states = {each.state for each in standings}
    return next((state for state in (State.LISTED, State.UNCHECKED) if state in states), State.CLEAN)
