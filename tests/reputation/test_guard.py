"""The mass-listing guard."""

from __future__ import annotations

from engine.core.listing import Check, Status
from engine.reputation.guard import mass_listed


def checks(listed: int, clean: int, errors: int = 0, name: str = "bl") -> list[Check]:
    statuses = [Status.LISTED] * listed + [Status.CLEAN] * clean + [Status.ERROR] * errors
    return [Check(f"192.0.2.{number}", name, status, 0.0) for number, status in enumerate(statuses)]


def test_more_than_a_third_of_a_fleet_is_too_much() -> None:
    """30 % of them is the last that is believed at once."""
    assert mass_listed(checks(31, 69)) == {"bl"}
    assert mass_listed(checks(30, 70)) == frozenset()


def test_two_targets_are_no_mass() -> None:
    """However few there are in all."""
    assert mass_listed(checks(2, 0)) == frozenset()
    assert mass_listed(checks(3, 0)) == {"bl"}


def test_only_answers_count_and_each_list_for_itself() -> None:
    """A list that answered for ten and listed four is suspect, though a hundred were asked."""
    assert mass_listed([*checks(4, 6, errors=90), *checks(4, 60, name="other")]) == {"bl"}
