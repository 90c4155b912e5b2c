"""The lab's block lists: healthy, broken, and changed while it runs."""

from __future__ import annotations

import pytest

from engine.core.listing import Status
from engine.lab.persona import LabError
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED, load
from engine.reputation.checker import Checker
from engine.reputation.health import Finding
from engine.reputation.registry import Registry, load_registry

LISTS: Registry = load_registry(shipped=SHIPPED.with_name("lists.yaml"))
FINDINGS = {
    "bl-lab": Finding.GOOD,
    "zen-lab": Finding.GOOD,
    "uri-lab": Finding.GOOD,
    "white-lab": Finding.GOOD,
    "wildcard-lab": Finding.WILDCARD,
    "dead-lab": Finding.SILENT,
    "refuser-lab": Finding.REFUSED,
    "parked-lab": Finding.PARKED,
    "emptied-lab": Finding.EMPTY,
}


@pytest.fixture
def asked(lab: LabProcess):
    """A new checker, since a health remembers."""
    lab.reset()
    yield lambda: Checker(LISTS, [lab.dns])
    lab.reset()


@pytest.mark.parametrize(("name", "finding"), FINDINGS.items())
def test_each_list_has_its_manner(asked, name: str, finding: Finding) -> None:
    """As lab.yaml says it, and every enabled one is in the table."""
    assert set(FINDINGS) == {each.name for each in LISTS.enabled}
    assert asked().probe(name).finding is finding


def test_what_is_listed_is_listed(asked) -> None:
    """IPv4, IPv6, sublists, bits, a code that the list doesn't document, a white list."""
    checker = asked()
    assert checker.check("203.0.113.66", "bl-lab").text == ("203.0.113.66 is listed, see https://bl.lab/203.0.113.66",)
    assert checker.check("2001:db8:bad::66", "bl-lab").status is Status.LISTED
    assert [each.sublist for each in checker.check("203.0.113.67", "zen-lab").listings] == ["xbl", "pbl"]
    assert checker.check("203.0.113.69", "zen-lab").status is Status.SUSPECT
    assert [each.sublist for each in checker.check("bad.example", "uri-lab").listings] == ["phish", "abuse"]
    assert checker.check("203.0.113.70", "white-lab").detail == "on the white list (127.0.5.2)"


def test_a_listing_comes_and_goes_under_a_running_checker(asked, lab: LabProcess) -> None:
    """From the next answer on; `reset` takes it back."""
    checker = asked()
    assert checker.check("192.0.2.200", "bl-lab").status is Status.CLEAN
    lab.set("bl.lab", listed=["192.0.2.200"])
    assert checker.check("192.0.2.200", "bl-lab").status is Status.LISTED
    lab.set("bl.lab", listed={"192.0.2.200": ["127.0.0.2"], "203.0.113.1": ["127.0.0.2"]})
    assert checker.check("203.0.113.1", "bl-lab").status is Status.LISTED
    lab.reset()
    assert checker.check("192.0.2.200", "bl-lab").status is Status.CLEAN


def test_a_list_fails_and_heals(asked, lab: LabProcess) -> None:
    """Any manner for any list."""
    checker = asked()
    for values, finding in (
        ({"always": ["127.0.0.2"]}, Finding.WILDCARD),
        ({"always": [], "fault": "refused"}, Finding.SILENT),
        ({"fault": "", "test": []}, Finding.EMPTY),
        ({"test": ["127.0.0.2"]}, Finding.GOOD),
    ):
        lab.set("bl.lab", **values)
        assert checker.probe("bl-lab").finding is finding


def test_a_silent_list_says_nothing(asked, lab: LabProcess) -> None:
    """Nor does it over TCP."""
    lab.set("bl.lab", fault="silent")
    assert Checker(LISTS, [lab.dns], timeout_s=0.05).probe("bl-lab").detail.endswith("timed out")


def test_a_wrong_change_is_an_error_and_changes_nothing(asked, lab: LabProcess) -> None:
    """The message names the field."""
    for values, says in (
        ({"mood": "bad"}, "'mood' is no field"),
        ({"fault": "tired"}, "servfail, refused or silent"),
        ({"always": ["soon"]}, "IPv4 address"),
    ):
        with pytest.raises(LabError, match=says):
            lab.set("bl.lab", **values)
    with pytest.raises(LabError, match="no block list"):
        lab.set("nobody.lab", listed=[])
    assert asked().probe("bl-lab").usable


def test_a_spec_adds_lists_to_the_shipped_ones() -> None:
    """Every lab has those, as it has the personas."""
    found = load({"blocklists": {"mine.lab": {"listed": ["192.0.2.1"]}, "bl.lab": {"fault": "silent"}}})
    assert {"mine.lab", "zen.lab"} <= set(found.blocklists)
    assert found.blocklists["bl.lab"].fault == "silent"
    with pytest.raises(LabError, match=r"blocklists\.mine\.lab: 'colour' is no field"):
        load({"blocklists": {"mine.lab": {"colour": "red"}}})
