"""How lanes are filled: what is read from the journal page by page is all asked, whatever sessions do meanwhile."""

from __future__ import annotations

import pytest

from engine.flow import supply
from engine.lab.process import LabProcess

DOMAINS, EACH = 12, 15
SPEC = {
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
