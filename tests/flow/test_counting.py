"""What a run counts is what its journal and the lab's log hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.core.reasons import REASONS
from engine.lab.process import LabProcess
from engine.log import log
from engine.scrape import page

HASTE = {
    "default": {
        "timeouts": {"connect": "0.6s", "greeting": "0.6s", "command": "0.6s", "session": "5s"},
        "retry": {"greylist": ["0.1s"], "tempfail": ["0.1s"], "give_up": "1s"},
        "breaker": {"open": "0.2s"},
    }
}
DOMAINS = ("normal.lab", "rejects-all.lab", "blocking-rcpt.lab", "gmail-like.lab", "null-mx.lab", "no-codes.lab")


@pytest.fixture(scope="module")
def lab() -> Iterator[LabProcess]:
    """The shipped lab."""
    with LabProcess() as running:
        yield running


def samples(verification: Any) -> Counter[tuple[str, ...]]:
    """Every sample of the run's page: (name, label values in the order of their names)."""
    families = text_string_to_metric_families(page(verification.metrics).decode())
    return Counter(
        {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }
    )


@pytest.fixture
def outcome(lab: LabProcess, verify: Callable[..., Any]) -> Any:
    """A run over servers that accept, refuse, block, and over rows that never leave SG1."""
    addresses = [f"{local}@{domain}" for domain in DOMAINS for local in ("ada", "no.such.user", "info")]
    return verify(lab, [*addresses, "not an address", "ada@normal.lab"], policies=HASTE)


def test_each_settled_address_counts_once(outcome: Any) -> None:
    """By provider, category and reason as the journal has them: a duplicate adds nothing, an ending is no verdict."""
    settled = outcome.query("SELECT provider, reason, COUNT(*) FROM addresses WHERE state = 3 GROUP BY 1, 2")
    counted = {
        key[1:]: value for key, value in samples(outcome.verification).items() if key[0] == "engine_probes_total"
    }
    assert counted == {
        (REASONS[reason].category.value, provider or "default", reason): count for provider, reason, count in settled
    }
    assert ("invalid", "default", "syntax_invalid") in counted


def test_replies_are_those_of_the_audit(outcome: Any) -> None:
    """Each judged reply is in the audit and in the counter: once, under its stage and class."""
    query = "SELECT stage, code / 100, COUNT(*) FROM attempts WHERE code > 0 AND stage = 'rcpt' GROUP BY 1, 2"
    audited = {(stage, f"{code_class}xx"): count for stage, code_class, count in outcome.query(query)}
    counted: Counter[tuple[str, str]] = Counter()
    for key, value in samples(outcome.verification).items():
        if key[0] == "engine_smtp_replies_total" and key[3] == "rcpt":
            counted[key[3], key[1]] += value
    assert counted == audited


def test_sessions_lookups_and_breakers_are_counted(outcome: Any) -> None:
    """A session that opened is in both histograms, each question to DNS in its own, and so is a breaker."""
    found = samples(outcome.verification)
    sessions = sum(value for key, value in found.items() if key[0] == "engine_session_seconds_count")
    asked = sum(value for key, value in found.items() if key[0] == "engine_session_recipients_sum")
    assert 0 < sessions <= sum(row["event"] == "connect" for row in outcome.log.rows)
    ((audited,),) = outcome.query("SELECT COUNT(*) FROM attempts WHERE kind IN ('rcpt', 'control', 'positive_control')")
    assert asked == audited
    assert sum(value for key, value in found.items() if key[0] == "engine_dns_seconds_count") > len(DOMAINS)
    assert found["engine_breaker_transitions_total", "lab", "default", "open"] >= 1
    waited = sum(value for key, value in found.items() if key[0] == "engine_lane_wait_seconds_count")
    assert waited >= sessions
    assert not [key for key in found if key[0] == "engine_lanes"]  # the run is over: it has no state


def test_a_lane_says_what_keeps_it(lab: LabProcess, verify: Callable[..., Any]) -> None:
    """While the budget is spent the lane waits for it, and the page says so; a run at work is ready."""
    seen: list[tuple[Counter[tuple[str, ...]], str]] = []

    def look(verification: Any) -> bool:
        page = samples(verification)
        if page["engine_lanes", "lab", "default", "waiting_budget"]:
            seen.append((page, verification.complaint()))
        return bool(seen)

    tight = {"default": {"refusals": {"per_session": 2, "rate": "2/h..2/h"}}}
    outcome = verify(lab, [f"u{n:02}@rejects-all.lab" for n in range(9)], policies=tight, stop_when=look)
    ((page, complaint),) = seen
    assert page["engine_refusal_budget_used_ratio", "lab", "default"] == 1
    assert page["engine_lane_queue", "lab", "default"] > 0
    assert page["engine_identity_state", "lab", "enabled"] == 1
    assert complaint == ""
    assert outcome.verification.complaint() == "the run was stopped"


@pytest.fixture
def logged() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The events that were logged."""
    stream = StringIO()
    log.open(stream, as_json=True)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    log.close()


def test_what_closes_to_us_and_what_is_given_up_is_logged(
    lab: LabProcess, verify: Callable[..., Any], logged: Callable[[], list[dict[str, Any]]]
) -> None:
    """A lane that opened and its end, with lane and cause; a run without trouble logs nothing."""
    verify(lab, ["ada@normal.lab", "no.such.user@normal.lab"], policies=HASTE)
    assert logged() == []
    verify(lab, [f"ada{n}@blocked-first.lab" for n in range(9)], policies=HASTE)
    told = logged()
    assert [event["named"] for event in told if event["event"] == "list_named"] == ["zen.spamhaus.org"]
    opened, *again, ended = [event for event in told if event["event"] != "list_named"]
    assert (opened["event"], opened["to"], opened["level"]) == ("breaker_moved", "open", "warning")
    assert opened["lane"] == ended["lane"]
    assert opened["cause"] == "ip_blocklisted"
    assert {event["to"] for event in again} <= {"open"}
    assert (ended["event"], ended["ending"]) == ("given_up", "provider_paused")


def test_each_move_of_a_breaker_is_in_log_counter_and_audit(
    verify: Callable[..., Any], logged: Callable[[], list[dict[str, Any]]]
) -> None:
    """Of three organisations that refuse us, and of the identity that they close."""
    names = [f"refuses-{n}.lab" for n in range(1, 6)]
    replies = {"rcpt": "554 5.7.1 Service unavailable; Client host [{client}] blocked using zen.spamhaus.org"}
    with LabProcess(
        {"personas": {"wall": {"replies": replies}}, "domains": {name: {"persona": "wall"} for name in names}}
    ) as lab:
        run = verify(lab, [f"ada@{name}" for name in names], policies=HASTE, concurrency=1)
    moves = [event for event in logged() if event["event"].endswith("breaker_moved")]
    (identity,) = [event for event in moves if event["event"] == "identity_breaker_moved"]
    assert (identity["to"], identity["cause"], identity["identity"]) == ("open", "ip_blocklisted", "lab")
    notes = [note for (note,) in run.query("SELECT note FROM attempts WHERE kind = 'breaker' ORDER BY seq")]
    assert len([note for note in notes if note.endswith(" s")]) == len([each for each in moves if each["to"] == "open"])
    assert any(note.startswith("breaker of identity lab: open for ") for note in notes)
    counted = samples(run.verification)["engine_breaker_transitions_total", "lab", "default", "open"]
    assert counted == len(moves) - 1 >= 3
