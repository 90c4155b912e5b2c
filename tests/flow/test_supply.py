"""How lanes are filled: what is read from the journal page by page is all asked, whatever sessions do meanwhile."""

from __future__ import annotations

import pytest

from engine.flow import supply
from engine.lab.process import LabProcess

DOMAINS, EACH = 12, 15
SPEC = {
    "generate": {"domains": 120, "per_domain": 1, "prefix": "many"},
    "hosts": {"aspmx.google.lab": "normal"},
    "domains": {"shop-{01..12}.lab": {"mx": ["aspmx.google.lab"], "mailboxes": ["u01", "u02"]}},
}


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


def test_a_domain_whose_next_page_is_being_read_is_not_forgotten(lab, verify, monkeypatch):
    """Its last session may end between the reading of its addresses and their coming into the lane."""
    monkeypatch.setattr(supply, "SITE_SHARE", 8)
    rows = [f"u{number:02}@shop-{domain:02}.lab" for number in range(1, EACH + 1) for domain in range(1, DOMAINS + 1)]
    for attempt in range(3):
        run = verify(lab, rows, state=lab_state(attempt, verify), concurrency=8)
        assert run.done
        assert set(run.reasons.values()) == {"rcpt_ok", "mailbox_not_found"}
        assert len(run.having("reason", "rcpt_ok")) == 2 * DOMAINS


def lab_state(number, verify):
    return verify.folder / f"state-{number}" / "state.db"


def test_no_more_lanes_are_alive_than_memory_has_room_for(lab, verify, monkeypatch):
    """However many sites wait in the journal: those of one look beyond the number at most; and all are asked."""
    monkeypatch.setattr(supply, "LANES", 20)
    monkeypatch.setattr(supply, "SITES_AT_ONCE", 10)
    monkeypatch.setattr(supply, "EVERY_S", 0.01)
    alive = []

    def look(verification):
        alive.append(len(verification.lanes()))
        return False

    rows = [f"user1@many{number:05}.lab" for number in range(1, 121)]
    run = verify(lab, rows, concurrency=8, stop_when=look)
    assert set(run.reasons.values()) == {"rcpt_ok"}
    assert 10 < max(alive) <= 20 + 10
