"""The checker against a real server on loopback."""

from __future__ import annotations

import subprocess
import sys
import time

import dns.rcode
import pytest

from engine.core.grammar import Rate
from engine.core.listing import Status
from engine.reputation.blocklist import Family, Kind
from engine.reputation.checker import Checker, NotAskedError
from engine.reputation.health import Finding
from engine.settings import SettingsError


def checker(server, registry, *lists, **options) -> Checker:
    return Checker(registry(*lists, off=options.pop("off", None)), [server.address], timeout_s=0.3, **options)


class Clock:
    """Unix time as data."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_listing_comes_with_its_text(server, registry, healthy) -> None:
    """The TXT of the same name is asked after the listing; the check holds all of it."""
    bl = healthy("bl.example", {"198.51.100.9": ["127.0.0.2"]})
    server.texts["9.100.51.198.bl.example"] = ["seen at our traps"]
    found = checker(server, registry, bl).check("198.51.100.9", "bl")
    assert (found.status, found.text, found.ttl_s, found.reliable) == (Status.LISTED, ("seen at our traps",), 300, True)
    assert [each for each in server.asked if "198.bl" in each[1]] == [
        ("udp", "9.100.51.198.bl.example", "A"), ("udp", "9.100.51.198.bl.example", "TXT")]  # fmt: skip


def test_who_is_not_listed_is_asked_no_text(server, registry, healthy) -> None:
    """One question, no more; and the probe before it."""
    found = checker(server, registry, healthy("bl.example")).check("198.51.100.9", "bl")
    assert found.status is Status.CLEAN
    assert (server.count("bl.example"), server.count("bl.example", "TXT")) == (4, 0)


def test_a_list_is_probed_once_for_many_checks(server, registry, healthy) -> None:
    """Until the next probe is due."""
    clock = Clock()
    found = checker(server, registry, healthy("bl.example"), clock=clock)
    for _ in range(5):
        found.check("198.51.100.9", "bl")
    assert server.count("bl.example") == 3 + 5
    clock.now += 301
    found.check("198.51.100.9", "bl")
    assert server.count("bl.example") == 3 + 5 + 4


@pytest.mark.parametrize(
    ("records", "rcode", "finding", "status"),
    [
        (("127.0.0.2",), dns.rcode.NOERROR, Finding.WILDCARD, Status.SUSPECT),
        (("127.0.0.1",), dns.rcode.NOERROR, Finding.WILDCARD, Status.SUSPECT),
        (("203.0.113.5",), dns.rcode.NOERROR, Finding.PARKED, Status.SUSPECT),
        (("127.255.255.254",), dns.rcode.NOERROR, Finding.REFUSED, Status.REFUSED),
        ((), dns.rcode.NXDOMAIN, Finding.EMPTY, Status.SUSPECT),
        ((), dns.rcode.SERVFAIL, Finding.SILENT, Status.ERROR),
        ((), dns.rcode.REFUSED, Finding.SILENT, Status.ERROR),
    ],
)
def test_a_broken_list_is_not_asked_about_targets(
    server, registry, blocklist, answer, records, rcode, finding, status
) -> None:
    """Its checks are neither listed nor clean, say why, and cost no question."""

    def script(query, *_):
        reply = answer(query, *records)
        reply.set_rcode(rcode)
        return reply

    server.scripts["bl.example"] = script
    moves = []
    found = checker(server, registry, blocklist("bl.example"), moved=moves.append)
    check = found.check("198.51.100.9", "bl")
    assert (check.status, check.reliable, found.health("bl").finding) == (status, False, finding)
    assert check.detail
    assert not [each for each in server.asked if "100.51.198" in each[1]]
    assert [(move.list, move.usable, move.finding) for move in moves] == [("bl", False, finding)]


def test_a_list_that_turns_wildcard_is_found_out(server, registry, healthy, answer) -> None:
    """The next probe suspends it, and its listings since the last good one are doubted."""
    bl, clock, moves = healthy("bl.example"), Clock(), []
    found = checker(server, registry, bl, clock=clock, moved=moves.append)
    assert found.check("198.51.100.9", bl).status is Status.CLEAN
    server.scripts["bl.example"] = lambda query, *_: answer(query, "127.0.0.2")
    clock.now += 10
    lie = found.check("198.51.100.9", bl)
    assert lie.status is Status.LISTED
    clock.now += 300
    assert found.check("198.51.100.9", bl).status is Status.SUSPECT
    assert moves[-1].doubts(lie)


def test_a_refused_check_suspends_the_list(server, registry, healthy, answer) -> None:
    """Over its limit: nobody is asked on."""
    bl = healthy("bl.example")
    found = checker(server, registry, bl)
    found.check("198.51.100.1", bl)
    server.scripts["bl.example"] = lambda query, *_: answer(query, "127.255.255.255")
    assert found.check("198.51.100.2", bl).status is Status.REFUSED
    before = len(server.asked)
    check = found.check("198.51.100.3", bl)
    assert (check.status, check.reliable, len(server.asked)) == (Status.REFUSED, False, before)


def test_a_suspended_list_recovers(server, registry, healthy, answer) -> None:
    """By two good probes, in its own time."""
    bl, clock = healthy("bl.example"), Clock()
    found = checker(server, registry, bl, clock=clock)
    found.check("198.51.100.9", bl)
    server.scripts["bl.example"] = lambda query, *_: answer(query, "203.0.113.5")
    found.probe(bl)
    del server.scripts["bl.example"]
    statuses = []
    for _ in range(3):
        clock.now = found.health("bl").due
        statuses.append(found.check("198.51.100.9", bl).status)
    assert statuses == [Status.SUSPECT, Status.CLEAN, Status.CLEAN]


def test_an_ipv6_address_is_asked_where_it_is_known(server, registry, healthy) -> None:
    """By its nibbles, after both families' test points."""
    both = healthy("bl.example", {"2001:db8:9::9": ["127.0.0.2"]}, families=(Family.IPV4, Family.IPV6))
    assert checker(server, registry, both).check("2001:db8:9::9", "bl").status is Status.LISTED


def test_an_address_never_goes_to_a_domain_list(server, registry, healthy) -> None:
    """And a domain never to a list of addresses."""
    uri = healthy("uri.example", {"spam.example": ["127.0.0.2"]}, kind=Kind.DOMAIN)
    found = checker(server, registry, uri, healthy("bl.example"))
    assert found.check("spam.example", "uri").status is Status.LISTED
    for target, name in (("192.0.2.1", "uri"), ("spam.example", "bl"), ("2001:db8::1", "bl")):
        with pytest.raises(NotAskedError, match="is not asked about"):
            found.check(target, name)
    assert {(each.target, each.list) for each in found.sweep(["198.51.100.1", "ham.example"])} == {
        ("198.51.100.1", "bl"), ("ham.example", "uri")}  # fmt: skip


def test_a_list_that_is_off_is_not_asked(server, registry, healthy) -> None:
    """Neither about a target nor its test points."""
    found = checker(server, registry, healthy("bl.example"), off={"bl": "needs a key; set rbl.x.key"})
    with pytest.raises(NotAskedError, match="needs a key"):
        found.check("198.51.100.9", "bl")
    with pytest.raises(NotAskedError):
        found.probe("bl")
    assert (list(found.sweep(["198.51.100.9"])), server.asked) == ([], [])


def test_an_unknown_list_is_an_error(server, registry, healthy) -> None:
    """With the near name."""
    with pytest.raises(SettingsError, match="no block list 'blx'"):
        checker(server, registry, healthy("bl.example")).check("198.51.100.9", "blx")


def test_a_sweep_asks_every_list_about_every_target_once(server, registry, healthy) -> None:
    """Whatever the order of the answers."""
    lists = [healthy(f"bl{number}.example") for number in range(3)]
    targets = [f"198.51.100.{number}" for number in range(1, 11)]
    checks = list(checker(server, registry, *lists).sweep(targets))
    assert len(checks) == 30
    assert len({(each.target, each.list) for each in checks}) == 30
    assert {each.status for each in checks} == {Status.CLEAN}


def test_a_sweep_may_be_left(server, registry, healthy) -> None:
    """Who stops reading stops the asking."""
    sweep = checker(server, registry, healthy("bl.example")).sweep([f"198.51.100.{n}" for n in range(1, 200)])
    next(sweep)
    sweep.close()
    assert server.count("bl.example") < 150


def test_a_key_goes_to_the_name_server_alone(server, registry, healthy, blocklist) -> None:
    """Asked under the key, told without it, even where the text quotes it."""
    bl = blocklist("{key}.bl.example", key="s3cret")
    healthy("s3cret.bl.example", {"198.51.100.9": ["127.0.0.2"]})
    server.texts["9.100.51.198.s3cret.bl.example"] = ["see http://s3cret.bl.example/"]
    check = checker(server, registry, bl).check("198.51.100.9", bl)
    assert check.status is Status.LISTED
    assert check.text == ("see http://{key}.bl.example/",)
    assert "s3cret" not in repr(check)


def test_a_list_is_asked_no_faster_than_its_rate(server, registry, healthy) -> None:
    """Probes, checks and texts all count: 7 questions at 50 a second take 6 gaps of 20 ms."""
    bl = healthy("bl.example", rate=Rate(50, 1.0))
    started = time.monotonic()
    list(checker(server, registry, bl).sweep([f"198.51.100.{number}" for number in range(1, 5)]))
    assert server.count("bl.example") == 7
    assert time.monotonic() - started >= 6 * 0.02


PATCHED = """
from gevent import monkey; monkey.patch_all()
import sys, time
from itertools import pairwise
from pathlib import Path
import gevent
from engine.reputation.checker import Checker
from engine.reputation.registry import load_registry

ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.01)

gevent.spawn(tick)
found = load_registry(shipped=Path(sys.argv[1]))
checker = Checker(found, [("127.0.0.1", int(sys.argv[2]))], timeout_s=0.3)
print(*(f"{each.list}:{each.status}" for each in checker.sweep(["198.51.100.1", "198.51.100.2"])))
print(max(later - sooner for sooner, later in pairwise(ticks)) < 0.25)
"""


def test_in_a_patched_process_nobody_waits_for_a_slow_list(server, file) -> None:
    """A sweep over a silent list and a good one: the good one's answers come first, and other greenlets run on."""
    server.scripts["slow.example"] = lambda *_: None
    server.lists["good.example"] = {"2.0.0.127": ["127.0.0.2"]}
    codes = "codes: [{code: 127.0.0.2, means: listed}]"
    rows = [f"  {name}: {{zone: {name}.example, kind: ip, severity: low, {codes}}}" for name in ("slow", "good")]
    path = file("\n".join(["lists:", *rows]))
    command = [sys.executable, "-W", "error", "-c", PATCHED, str(path), str(server.address[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = ["good:clean", "good:clean", "slow:error", "slow:error", "True"]
    assert done.stdout.split() == said, done.stderr
