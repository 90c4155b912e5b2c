"""Block lists served by NSD: a healthy one, one too large for a datagram, and the ways in which lists die."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs.daemon import free_port, or_skip
from rigs.dns import NsdRig

from engine.core.listing import Status
from engine.reputation.checker import Checker
from engine.reputation.health import Finding
from engine.reputation.registry import Registry, load_registry

pytestmark = pytest.mark.slow

ENTRIES = '2.0.0.127 IN A 127.0.0.2\n2.0.0.127 IN TXT "test entry"\n'
ZONES = {
    "good.test": ENTRIES
    + '9.100.51.198 IN A 127.0.0.2\n9.100.51.198 IN A 127.0.0.10\n9.100.51.198 IN TXT "see here"\n',
    "large.test": ENTRIES
    + "".join(f"9.100.51.198 IN A 127.0.{number // 200}.{number % 200 + 2}\n" for number in range(400)),
    "wildcard.test": "* IN A 127.0.0.2\n",
    "parked.test": "@ IN A 203.0.113.5\n* IN A 203.0.113.5\n",
    "emptied.test": "",
    "alias.test": f"{ENTRIES}9.100.51.198 IN CNAME 9.100.51.198.good.test.\n",
}
LISTS = "lists:\n" + "".join(
    f"  {zone.partition('.')[0]}: {{zone: {zone}, kind: ip, severity: high, rate: 1000/s,\n"
    "    codes: [{code: 127.0.0.2..127.0.1.255, means: listed}]}\n"
    for zone in (*ZONES, "gone.test")
)
LISTED, OTHER = "198.51.100.9", "198.51.100.10"


@pytest.fixture(scope="module")
def nsd() -> Iterator[NsdRig]:
    with contextlib.closing(or_skip(lambda: NsdRig(ZONES, free_port(), "127.30.4.3"))) as rig:
        yield rig


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    path = tmp_path / "lists.yaml"
    path.write_text(LISTS)
    return load_registry(shipped=path)


@pytest.mark.parametrize(
    ("name", "target", "status"),
    [
        ("good", LISTED, Status.LISTED),
        ("good", OTHER, Status.CLEAN),
        ("large", LISTED, Status.LISTED),  # truncated over UDP, whole over TCP
        ("alias", LISTED, Status.LISTED),
        ("wildcard", OTHER, Status.SUSPECT),
        ("parked", OTHER, Status.SUSPECT),
        ("emptied", OTHER, Status.SUSPECT),
        ("gone", OTHER, Status.ERROR),  # REFUSED: not its zone
    ],
)
def test_a_real_server_is_judged_by_its_answers(
    nsd: NsdRig, registry: Registry, name: str, target: str, status: Status
) -> None:
    """Only a list that passes its probes says anything."""
    check = Checker(registry, [(nsd.address, nsd.port)]).check(target, name)
    assert check.status is status
    assert check.reliable is (status in (Status.LISTED, Status.CLEAN))


def test_the_text_comes_with_the_listing(nsd: NsdRig, registry: Registry) -> None:
    """And never without."""
    checker = Checker(registry, [(nsd.address, nsd.port)])
    assert checker.check(LISTED, "good").text == ("see here",)
    assert checker.check(OTHER, "good").text == ()


def test_a_list_that_is_sold_is_found_out(registry: Registry) -> None:
    """Healthy, then parked, then healthy again: two good probes bring it back."""
    with contextlib.closing(or_skip(lambda: NsdRig(ZONES, free_port(), "127.30.4.4"))) as rig:
        checker = Checker(registry, [(rig.address, rig.port)])
        assert checker.probe("good").usable
        rig.replace({"good.test": ZONES["parked.test"]})
        assert checker.probe("good").finding is Finding.PARKED
        rig.replace(ZONES)
        assert [checker.probe("good").usable for _ in range(2)] == [False, True]
