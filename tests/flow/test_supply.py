"""How lanes are filled: what is read from the journal page by page is all asked, whatever sessions do meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.core.grammar import Range, Rate
from engine.core.identity import Limits, Mode
from engine.flow import supply
from engine.identity_file import load_identity
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

DOMAINS, EACH = 12, 15
SPEC = {
    "generate": {"domains": 120, "per_domain": 1, "prefix": "many"},
    "personas": {"put-off": {"greylist": "1s", "starttls": False}},
    "hosts": {"aspmx.google.lab": "normal"},
    "domains": {
        "shop-{01..12}.lab": {"mx": ["aspmx.google.lab"], "mailboxes": ["u01", "u02"]},
        "put-off-{01..20}.lab": {"persona": "put-off", "mailboxes": ["ada"]},
        "engaged-{01..12}.lab": {"persona": "busy-always"},
        "large-{1..4}.lab": {"mailboxes": [f"u{number:02}" for number in range(1, 17)]},
        "tenant-{01..24}.lab": {
            "mx": ["{domain}.microsoft.lab"],
            "hosts": {"{domain}.microsoft.lab": "normal"},
            "mailboxes": ["office"],
        },
    },
}


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(lab):
    """No test meets what a greylist remembers of another."""
    lab.reset()


def test_a_domain_whose_next_page_is_being_read_is_not_forgotten(lab, verify, monkeypatch):
    """Its last session may end between the reading of its addresses and their coming into the lane."""
    monkeypatch.setattr(supply, "SITE_SHARE", 8)
    rows = [f"u{number:02}@shop-{domain:02}.lab" for number in range(1, EACH + 1) for domain in range(1, DOMAINS + 1)]
    for attempt in range(3):
        run = verify(lab, rows, state=lab_state(attempt, verify), concurrency=8)
        assert run.done
        assert set(run.reasons.values()) == {"rcpt_ok", "mailbox_not_found"}
        assert len(run.having("reason", "rcpt_ok")) == 2 * DOMAINS


@pytest.fixture
def alive():
    """How many lanes were in memory, each time that `watch` looked."""
    return []


@pytest.fixture
def watch(alive):
    """Given as `stop_when`, it stops no run."""
    return lambda verification: alive.append(len(verification.lanes()))


def lab_state(number, verify):
    return verify.folder / f"state-{number}" / "state.db"


def test_no_more_lanes_are_alive_than_memory_has_room_for(lab, verify, monkeypatch, alive, watch):
    """However many sites wait in the journal: those of one look beyond the number at most; and all are asked."""
    monkeypatch.setattr(supply, "LANES", 20)
    monkeypatch.setattr(supply, "SITES_AT_ONCE", 10)
    monkeypatch.setattr(supply, "EVERY_S", 0.01)
    rows = [f"user1@many{number:05}.lab" for number in range(1, 121)]
    run = verify(lab, rows, concurrency=8, stop_when=watch)
    assert set(run.reasons.values()) == {"rcpt_ok"}
    assert 10 < max(alive) <= 20 + 10


@pytest.fixture
def near(monkeypatch):
    """Five lanes are read ahead."""
    for name, value in {"AHEAD": 5, "SITES_AT_ONCE": 5, "EVERY_S": 0.01}.items():
        monkeypatch.setattr(supply, name, value)


def test_lanes_are_read_ahead_of_the_sessions_by_a_few(lab, verify, near, alive, watch):
    """While those in memory can start, there are no more than may be open and these few."""
    rows = [f"user1@many{number:05}.lab" for number in range(1, 121)]
    run = verify(lab, rows, concurrency=8, stop_when=watch)
    assert set(run.reasons.values()) == {"rcpt_ok"}
    assert 8 < max(alive) <= 8 + 5


def test_nobody_further_down_the_list_waits_for_lanes_that_wait(lab, verify, near):
    """Twenty sites put us off, more than are read ahead: those behind them are asked before these are asked again."""
    rows = [f"ada@put-off-{number:02}.lab" for number in range(1, 21)]
    rows += [f"user1@many{number:05}.lab" for number in range(1, 31)]
    run = verify(lab, rows, concurrency=8, policies={"default": {"retry": {"greylist": ["1.5s"]}}})
    assert set(run.reasons.values()) == {"rcpt_ok"}
    asked = [(one.t, one.recipient) for one in run.log.asked]
    again = min(t for place, (t, who) in enumerate(asked) if who in {each for _, each in asked[:place]})
    assert max(t for t, who in asked if "@many" in who) < again


def test_who_waits_for_the_identitys_own_limits_waits_in_the_journal(lab, verify, near, alive, watch):
    """Nobody further down the list could start either: nothing is read on."""
    four = Rate(4, 3600.0)
    narrow = replace(load_identity(SHIPPED.parent / "identity.yaml")[0], limits=Limits(sessions=Range(four, four)))
    rows = [f"user1@many{number:05}.lab" for number in range(1, 121)]
    run = verify(lab, rows, concurrency=8, identity=narrow, deadline_s=1.5, stop_when=watch)
    assert len(run.log.sessions()) == 4
    assert 5 <= max(alive) <= 8 + 5


def test_sites_with_many_addresses_hold_up_nobody_behind_them(lab, verify, near, monkeypatch):
    """Memory is full of addresses of four sites, whose limits let few be asked: the small sites behind come in."""
    for name, value in {"IN_MEMORY": 8, "SITE_SHARE": 8, "FEW": 2}.items():
        monkeypatch.setattr(supply, name, value)
    slow = {
        "sessions": {"concurrency": 1, "rate": "2/s", "burst": 1},
        "recipients": {"per_session": 2, "per_transaction": 2},
    }
    rows = [f"u{number:02}@large-{site}.lab" for site in range(1, 5) for number in range(1, 17)]
    rows += [f"user1@many{number:05}.lab" for number in range(1, 31)]
    run = verify(lab, rows, concurrency=8, policies={"default": slow})
    assert set(run.reasons.values()) == {"rcpt_ok"}
    large = [one.t for one in run.log.asked if one.recipient in rows and "@large" in one.recipient]
    assert len(large) == 4 * 16
    assert max(one.t for one in run.log.asked if "@many" in one.recipient) < large[len(large) // 2]


@pytest.fixture
def cramped(monkeypatch):
    """Memory has room for ten lanes."""
    small = {"LANES": 10, "SITES_AT_ONCE": 5, "EVERY_S": 0.01, "PARKED_S": 0.5, "ROOM_EVERY_S": 0.05}
    for name, value in small.items():
        monkeypatch.setattr(supply, name, value)


def test_sites_that_wait_for_another_attempt_make_room_for_those_that_were_never_asked(lab, verify, cramped):
    """Twenty greylist for a while: nobody behind them in the list waits for that, and all are asked again once."""
    rows = [f"ada@put-off-{number:02}.lab" for number in range(1, 21)]
    rows += [f"user1@many{number:05}.lab" for number in range(1, 31)]
    run = verify(lab, rows, concurrency=8, policies={"default": {"retry": {"greylist": ["1.5s"]}}})
    assert set(run.reasons.values()) == {"rcpt_ok"}
    asked = [(one.t, one.recipient) for one in run.log.asked]
    again = min(t for place, (t, who) in enumerate(asked) if who in {each for _, each in asked[:place]})
    assert max(t for t, who in asked if "@many" in who) < again
    assert all(sum(who == address for _, who in asked) == 2 for address in rows[:20])


def test_sites_that_wait_for_one_limit_make_room_for_those_behind_them(lab, verify, cramped):
    """Twenty-four sites of a provider at the head of the list, whose edge takes four sessions a second from us."""
    rows = [f"office@tenant-{number:02}.lab" for number in range(1, 25)]
    rows += [f"user1@many{number:05}.lab" for number in range(1, 31)]
    edge = {"concurrency": 2, "rate": "4/s", "burst": 1}
    sessions = {"concurrency": 2, "rate": "50/s", "burst": 5}
    run = verify(lab, rows, concurrency=8, policies={"microsoft-like": {"across_sites": edge, "sessions": sessions}})
    assert set(run.reasons.values()) == {"rcpt_ok"}
    tenants = [one.t for one in run.log.asked if one.recipient in rows and "@tenant" in one.recipient]
    assert len(tenants) == 24
    assert max(one.t for one in run.log.asked if "@many" in one.recipient) < tenants[12]


def test_sites_that_are_knocked_at_again_make_room_too(lab, verify, cramped):
    """Standard mode: the ladder of a busy host is remembered while it is not in memory."""
    rows = [f"ada@engaged-{number:02}.lab" for number in range(1, 13)]
    rows += [f"user1@many{number:05}.lab" for number in range(1, 31)]
    ladder = {"default": {"retry": {"tempfail": ["2s"]}}}
    run = verify(lab, rows, mode=Mode.STANDARD, concurrency=8, policies=ladder)
    assert {run.row(address)["reason"] for address in rows[12:]} == {"mailbox_unchecked"}
    assert {run.row(address)["reason"] for address in rows[:12]} == {"server_busy"}
    dialled = [(row["t"], row["host"]) for row in run.log.rows if row["event"] == "connect"]
    again = min(t for place, (t, host) in enumerate(dialled) if host in {each for _, each in dialled[:place]})
    assert max(t for t, host in dialled if "many" in host) < again
    assert all(len(run.log.sessions(f"engaged-{number:02}.lab")) == 2 for number in range(1, 13))


def test_who_is_asked_first_is_asked_once(lab, verify, cramped):
    """An order names an address whose site is not in memory yet: when that comes, the address does not come again."""
    rows = [f"user1@many{number:05}.lab" for number in range(1, 41)] + ["ada@put-off-01.lab"]
    first = []

    def ask(verification):
        if verification.lanes() and not first:
            first.append(verification._run.probers[0].ask_first(rows[-1]))
        return False

    run = verify(lab, rows, concurrency=4, stop_when=ask, policies={"default": {"retry": {"greylist": ["3s"]}}})
    assert first
    assert set(run.reasons.values()) == {"rcpt_ok"}
    assert [run.log.recipients().count(address) for address in rows] == [1] * 40 + [2]


def test_looking_anew_brings_nothing_twice(lab, verify):
    """Another identity left sites to this one: what it has in memory is read with them, and does not come again."""
    rows = [f"user1@many{number:05}.lab" for number in range(1, 41)] + ["ada@put-off-01.lab"]
    looks = []

    def look(verification):
        if len(looks) < 20 and verification.lanes():
            looks.append(verification._run.probers[0].take_over())
        return False

    run = verify(lab, rows, concurrency=4, stop_when=look)
    assert looks
    assert set(run.reasons.values()) == {"rcpt_ok"}
    assert [run.log.recipients().count(address) for address in rows] == [1] * 40 + [2]
