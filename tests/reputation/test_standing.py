"""What the checks of a target come to."""

from __future__ import annotations

from engine.core.listing import Check, Listing, Severity, Status
from engine.reputation.blocklist import Kind
from engine.reputation.question import target
from engine.reputation.standing import State, standing, worst

US = target("192.0.2.1")


def check(name: str, status: Status = Status.CLEAN, severity: Severity = Severity.HIGH, **values) -> Check:
    listings = (Listing(name, "127.0.0.2", severity, "listed"),) if status is Status.LISTED else ()
    return Check("192.0.2.1", name, status, 0.0, listings, **values)


def lists(blocklist, registry, off=None, **severities: Severity):
    return registry(*(blocklist(f"{name}.example", severity=each) for name, each in severities.items()), off=off)


def test_clean_takes_every_critical_list(blocklist, registry) -> None:
    """One that is off, one that failed, one that can't be relied on: none of them leaves a target clean."""
    known = lists(blocklist, registry, zen=Severity.CRITICAL, bl=Severity.LOW)
    assert standing(known, US, [check("zen"), check("bl")]).state is State.CLEAN
    for gap in (check("zen", Status.ERROR), check("zen", Status.REFUSED), check("zen", reliable=False)):
        found = standing(known, US, [gap, check("bl")])
        assert (found.state, found.unchecked[0].name) == (State.UNCHECKED, "zen")
    off = lists(blocklist, registry, zen=Severity.CRITICAL, bl=Severity.LOW, off={"zen": "needs a key"})
    found = standing(off, US, [check("bl")])
    assert (found.state, found.unchecked[0].why) == (State.UNCHECKED, "needs a key")


def test_a_lesser_gap_is_named_and_leaves_a_target_clean(blocklist, registry) -> None:
    """Somebody's regional list is down every day."""
    known = lists(blocklist, registry, zen=Severity.CRITICAL, bl=Severity.LOW)
    found = standing(known, US, [check("zen"), check("bl", Status.ERROR, detail="SERVFAIL")])
    assert (found.state, [(each.name, each.why) for each in found.unchecked]) == (State.CLEAN, [("bl", "SERVFAIL")])


def test_nothing_checked_is_not_clean(blocklist, registry) -> None:
    """Even where no list is critical."""
    assert standing(lists(blocklist, registry, bl=Severity.LOW), US, []).state is State.UNCHECKED


def test_a_listing_outweighs_a_gap(blocklist, registry) -> None:
    """What is known to be bad is said first."""
    known = lists(blocklist, registry, zen=Severity.CRITICAL, bl=Severity.LOW, off={"zen": "needs a key"})
    found = standing(known, US, [check("bl", Status.LISTED)])
    assert (found.state, worst([found])) == (State.LISTED, State.LISTED)


def test_a_listing_for_information_counts_for_nothing(blocklist, registry) -> None:
    """A whole provider is listed by some."""
    found = standing(lists(blocklist, registry, bl=Severity.INFO), US, [check("bl", Status.LISTED, Severity.INFO)])
    assert (found.state, len(found.listings)) == (State.CLEAN, 1)


def test_a_listing_that_is_doubted_is_not_said(blocklist, registry) -> None:
    """It is a gap."""
    known = lists(blocklist, registry, bl=Severity.HIGH)
    found = standing(known, US, [check("bl", Status.LISTED, reliable=False, detail="a wildcard")])
    assert (found.listings, found.state) == ([], State.UNCHECKED)


def test_a_white_list_is_praise_and_no_list_that_one_is_clean_on(blocklist, registry) -> None:
    """Nor a gap when it fails."""
    known = registry(blocklist("wl.example", kind=Kind.WHITE, severity=Severity.CRITICAL), blocklist("bl.example"))
    found = standing(known, US, [check("bl"), check("wl", detail="trusted (127.0.5.2)")])
    assert ([each.list for each in found.checks], [each.list for each in found.praise]) == (["bl"], ["wl"])
    assert standing(known, US, [check("bl"), check("wl", Status.ERROR)]).unchecked == ()


def test_the_worst_of_many_counts(blocklist, registry) -> None:
    """Listed, then unchecked, then clean."""
    known = lists(blocklist, registry, bl=Severity.CRITICAL)
    clean, gap = standing(known, US, [check("bl")]), standing(known, US, [check("bl", Status.ERROR)])
    assert (worst([clean]), worst([clean, gap])) == (State.CLEAN, State.UNCHECKED)
