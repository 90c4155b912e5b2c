"""Laws of the forecast: simulated where that is quick, else by the ceilings, and it says which."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core.ceiling import ceilings
from engine.core.identity import Mode
from engine.flow import forecast
from engine.flow.forecast import outlook
from engine.flow.policies import load_policies
from engine.store.job_tables import NewRow, Routed
from engine.store.journal import Journal
from engine.store.state import Fact, State
from engine.store.writer import Writer

SITES = {"gmail.com": ("gmail", 300), **{f"w{n}.example": ("default", 2) for n in range(40)}}


@pytest.fixture
def surveyed(tmp_path: Path) -> Iterator[tuple[Journal, State]]:
    """A journal after its survey: a large provider, and 40 domains on one host."""
    with Writer() as writer:
        journal = Journal(tmp_path / "journal", writer)
        journal.begin("job")
        rows = [(f"u{n}", domain) for domain, (_, size) in SITES.items() for n in range(size)]
        journal.add_rows([NewRow(n, "[]", f"{u}@{d}", f"{u}@{d}", u, d) for n, (u, d) in enumerate(rows, 1)])
        found = []
        for domain_id, name in journal.unrouted(0, 1000):
            policy = SITES[name][0]
            key = "aspmx.l.google.com" if policy == "gmail" else "[192.0.2.1]"
            lane = policy if policy == "gmail" else key
            found.append(Routed(domain_id, key, "", lane, policy, "[]"))
        journal.route(found)
        yield journal, State(writer, tmp_path / "state.db")


def test_a_short_list_is_simulated(surveyed: tuple[Journal, State]) -> None:
    """Addresses and sites by provider, the slowest first; controls are in the hours, unless facts answer them."""
    journal, state = surveyed
    told = outlook(journal, state, load_policies(), Mode.ENHANCED, 500)
    assert told.assumed is not None
    rows = {row.provider: row for row in told.rows}
    assert [(r.provider, r.addresses, r.sites) for r in (rows["gmail"], rows["default"])] == [
        ("gmail", 300, 1), ("default", 80, 1),
    ]  # fmt: skip
    assert told.hours == told.rows[0].hours == max(row.hours for row in told.rows)
    assert rows["default"].binding == "refusals.rate"
    facts = [Fact(f"w{n}.example", "[192.0.2.1]", "refuses", "control", 0.0, 4e9) for n in range(40)]
    state.put_facts(facts).wait()
    known = {row.provider: row for row in outlook(journal, state, load_policies(), Mode.ENHANCED, 500).rows}
    assert known["default"].hours < rows["default"].hours


def test_standard_mode_takes_one_session_a_site(surveyed: tuple[Journal, State]) -> None:
    """Nobody is asked about, so that no budget is spent."""
    journal, state = surveyed
    told = outlook(journal, state, load_policies(), Mode.STANDARD, 500)
    assert told.hours < 0.01
    assert {row.provider: row.addresses for row in told.rows} == {"gmail": 300, "default": 80}


@pytest.mark.parametrize(("limit", "value"), [("CPU_S", -1.0), ("MAX_DOMAINS", 3)])
def test_a_list_that_would_take_too_long_to_simulate_goes_by_the_ceilings(
    surveyed: tuple[Journal, State], monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    """Too many domains, or too much processor time: the tightest limit alone says the hours."""
    monkeypatch.setattr(forecast, limit, value)
    policies = load_policies()
    told = outlook(*surveyed, policies, Mode.ENHANCED, 500)
    assert told.assumed is None
    gmail = policies.named("gmail")
    assert gmail is not None
    (row,) = (row for row in told.rows if row.provider == "gmail")
    assert (row.hours, row.binding) == (ceilings(gmail)[0].hours(300), ceilings(gmail)[0].binding)


def test_nothing_to_ask_takes_no_time(tmp_path: Path) -> None:
    """A list that ends at its domains has an empty outlook."""
    with Writer() as writer:
        journal = Journal(tmp_path / "journal", writer)
        journal.begin("job")
        told = outlook(journal, State(writer, tmp_path / "state.db"), load_policies(), Mode.ENHANCED, 500)
    assert (told.rows, told.hours) == ([], 0.0)
