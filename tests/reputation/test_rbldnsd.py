"""The same against rbldnsd, which serves most block lists of the world."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core.listing import Status
from engine.reputation.checker import Checker
from engine.reputation.registry import Registry, load_registry
from engine.reputation.standing import State, standing

ROOT = Path(__file__).parents[2]
DATA = {
    "ip4": ":127.0.0.2:Listed, see https://bl.test/?$\n127.0.0.2\n198.51.100.9\n198.51.100.32/28\n!198.51.100.40\n",
    "ip6": ":127.0.0.2:Listed, see https://bl.test/?$\n::ffff:7f00:2/128\n2001:db8:9::/48\n",
    "names": ":127.0.0.72:Listed: $\ntest\nspam.example\n.wild.example\n",
    "xbl": ":127.0.0.4:Infected\n127.0.0.2\n198.51.100.9\n",
}
LISTS = """
lists:
  bl:
    {zone: bl.test, kind: ip, families: [ipv4, ipv6], severity: critical, rate: 1000/s,
     codes: [{code: 127.0.0.2, means: listed}, {code: 127.0.0.4, sublist: xbl, means: infected}]}
  uri:
    {zone: uri.test, kind: domain, severity: high, rate: 1000/s,
     codes: [{code: bit 8, sublist: ph, means: phishing}, {code: bit 64, sublist: abuse, means: spam}]}
  gone: {zone: gone.test, kind: ip, severity: low, codes: [{code: 127.0.0.2, means: listed}]}
"""


@pytest.fixture(scope="module")
def rbldnsd() -> Iterator[tuple[str, int]]:
    """rbldnsd on loopback, ended with the module."""
    places = f"{os.environ.get('PATH', '')}:/usr/sbin:{ROOT}/.cache/mtas/rbldnsd/usr/sbin"
    binary = shutil.which("rbldnsd", path=places)
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("rbldnsd is missing (.ci/fetch-mtas fetches it); in CI it is not optional")
        pytest.skip("rbldnsd is not here (apt-get install rbldnsd, or .ci/fetch-mtas)")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # it gives up root before it reads
        for name, text in DATA.items():
            (Path(folder) / name).write_text(text)
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        sock.close()
        user = ["-u", "nobody:nogroup"] if os.geteuid() == 0 else ["-u", pwd.getpwuid(os.geteuid()).pw_name]
        zones = ["bl.test:ip4set:ip4", "bl.test:ip4set:xbl", "bl.test:ip6trie:ip6", "uri.test:dnset:names"]
        command = [binary, "-n", *user, "-b", f"127.0.0.1/{port}", "-w", folder, *zones]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout
            said = ""
            for line in process.stdout:
                said += line
                if " started (" in line:
                    break
            else:
                pytest.fail(f"rbldnsd did not start: {said}")
            yield "127.0.0.1", port
            process.terminate()


@pytest.fixture
def known(file) -> Registry:
    """The registry of its zones."""
    return load_registry(shipped=file(LISTS))


@pytest.mark.parametrize(
    ("target", "name", "listings"),
    [
        ("198.51.100.9", "bl", ["bl", "xbl"]),
        ("198.51.100.33", "bl", ["bl"]),
        ("198.51.100.40", "bl", []),
        ("198.51.100.10", "bl", []),
        ("2001:db8:9:1::77", "bl", ["bl"]),
        ("2001:db8:a::1", "bl", []),
        ("spam.example", "uri", ["abuse", "ph"]),
        ("a.b.wild.example", "uri", ["abuse", "ph"]),
        ("ham.example", "uri", []),
    ],
)
def test_what_rbldnsd_lists_is_listed(rbldnsd, known, target: str, name: str, listings: list[str]) -> None:
    """Addresses, networks, exclusions, IPv6, domains and wildcards; several data sets of one zone."""
    found = Checker(known, [rbldnsd]).check(target, name)
    assert [each.sublist for each in found.listings] == listings
    assert found.status is (Status.LISTED if listings else Status.CLEAN)
    assert bool(found.text) is bool(listings)


def test_a_zone_that_it_does_not_serve_is_a_gap(rbldnsd, known) -> None:
    """It says REFUSED, and nobody takes that for clean."""
    found = Checker(known, [rbldnsd]).check("198.51.100.10", "gone")
    assert (found.status, found.reliable) == (Status.ERROR, False)
    assert "REFUSED" in found.detail


def test_a_target_stands_as_its_lists_say(rbldnsd, known) -> None:
    """Clean on the critical list, with the dead one named."""
    from engine.reputation.question import target

    us = target("198.51.100.10")
    found = standing(known, us, Checker(known, [rbldnsd]).sweep([us]))
    assert (found.state, [each.name for each in found.unchecked]) == (State.CLEAN, ["gone"])
