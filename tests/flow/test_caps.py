"""Caps above lanes, as the mail servers of the lab saw them: what lanes share is limited once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from engine.core.grammar import Range, Rate
from engine.core.identity import Limits, Warmup
from engine.identity_file import load_identity
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.scrape import page

IDENTITY = load_identity(SHIPPED.parent / "identity.yaml")[0]
HOUR = Rate(4, 3600.0)

SPEC = {
    "personas": {"unhurried": {"delay": {"rcpt": "15ms", "ehlo": "15ms"}}},
    "hosts": {
        "mx.hosting.lab": "unhurried", "aspmx.google.lab": "unhurried", "mta.yahoo.lab": "yahoo-like",
        "mx.forbidden.lab": "normal", "mx.pool.lab": "normal",
    },
    "domains": {
        "shared-{01..12}.lab": {
            "mx": ["10 mx.hosting.lab", "20 own.{domain}"], "hosts": {"own.{domain}": "normal"},
            "mailboxes": ["office"],
        },
        "half-{01..08}.lab": {
            "mx": ["10 aspmx.google.lab", "20 own.{domain}"], "hosts": {"own.{domain}": "normal"},
            "mailboxes": ["office"],
        },
        "late-{01..08}.lab": {
            "mx": ["10 own.{domain}", "20 aspmx.google.lab"], "hosts": {"own.{domain}": "refusing"},
            "mailboxes": ["office"],
        },
        "workspace-{1..4}.lab": {"mx": ["aspmx.google.lab"], "mailboxes": ["office"]},
        "tenant-{1..8}.lab": {
            "mx": ["{domain}.microsoft.lab"], "hosts": {"{domain}.microsoft.lab": "unhurried"}, "mailboxes": ["office"],
        },
        "plain.lab": {"mailboxes": [f"u{n:04}" for n in range(1, 21)]},
        "gone.lab": {"mailboxes": ["ada"]},
        "yahoo-like.lab": {"mx": ["mta.yahoo.lab"]},
        "forbidden.lab": {"mx": ["mx.forbidden.lab"]},
        "pool.lab": {"mx": ["mx.pool.lab"]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


def test_sites_that_lead_to_one_address_share_its_limits(lab, verify):
    """Twelve sites of twelve domains, whose first host is one: it sees the sessions of one site."""
    rows = [f"office@shared-{number:02}.lab" for number in range(1, 13)]
    run = verify(lab, rows, policies={"default": {"sessions": {"concurrency": 1}}})
    assert set(run.reasons.values()) == {"rcpt_ok"}
    assert len(run.log.sessions("mx.hosting.lab")) >= 12
    assert run.log.peak("mx.hosting.lab") == 1


@pytest.mark.parametrize("first", ["half", "late"])
def test_the_policy_of_the_host_that_is_dialled_holds_whatever_policy_the_domain_has(lab, verify, first):
    """Domains with one host of the provider and one of their own: it sees one limit, first or second as it may be."""
    rows = [f"office@{first}-{number:02}.lab" for number in range(1, 9)]
    rows += [f"office@workspace-{number}.lab" for number in range(1, 5)]
    once = {"google-like": {"sessions": {"concurrency": 1}}, "default": {"retry": {"tempfail": ["0.2s"] * 20}}}
    run = verify(lab, rows, policies=once)
    assert set(run.reasons.values()) == {"rcpt_ok"}
    assert run.log.peak("google.lab") == 1


def test_a_provider_that_is_met_under_another_policy_is_told_when_it_closes(lab, verify):
    """Its breaker counts under its own name, and who waits for it is shown as closed, not as idle."""
    closes = {"sessions": {"concurrency": 1}, "breaker": {"open": "20s"}}
    seen = []

    def look(verification):
        waiting = 'engine_lanes{identity="lab",provider="default",state="open"} 2.0'
        if waiting in page(verification.metrics).decode():
            seen.append(set(verification.watch().paused.values()))
        return bool(seen)

    lab.set("unhurried", replies={"rcpt": "554 5.7.1 Service unavailable; Client host blocked"})
    try:
        run = verify(lab, [f"office@half-{n:02}.lab" for n in (1, 2)], policies={"google-like": closes}, stop_when=look)
    finally:
        lab.reset()
    assert seen == [{"ip_blocked"}]
    assert len(run.log.sessions("aspmx.google.lab")) == 1
    moves = 'engine_breaker_transitions_total{identity="lab",provider="google-like",to="open"} 1.0'
    assert moves in page(run.verification.metrics).decode()


def test_across_sites_caps_the_sum_over_all_sites_of_a_provider(lab, verify):
    """Each tenant has a host and a lane of its own, and the provider's edge counts them together."""
    rows = [f"office@tenant-{number}.lab" for number in range(1, 9)]
    two = {"concurrency": 2, "rate": "100/s", "burst": 5}
    sessions = {"concurrency": 2, "rate": "50/s", "burst": 5}
    run = verify(lab, rows, policies={"microsoft-like": {"across_sites": two, "sessions": sessions}})
    assert set(run.reasons.values()) == {"rcpt_ok"}
    assert run.log.peak("microsoft.lab") == 2


def test_warm_up_counts_recipients_over_all_lanes_and_runs(lab, verify, addresses_of):
    """Six RCPTs today, controls included, whoever is asked; the next run finds them spent."""
    young = replace(IDENTITY, warmup=Warmup(datetime.now(UTC).date(), (6, 6, 6)))
    rows = [*addresses_of("plain.lab", 10), "office@tenant-1.lab"]
    first = verify(lab, rows, identity=young, deadline_s=1.5)
    assert len(first.log.asked) == 6
    again = verify(lab, addresses_of("gone.lab", 5), identity=young, deadline_s=0.5, state=first.state)
    assert again.log.asked == []
    assert set(again.reasons.values()) == {"deadline_exceeded"}


def test_the_identitys_refusals_bind_all_lanes_and_the_next_run(lab, verify, addresses_of):
    """Four refusals an hour over all lanes; each is charged to its lane and to the identity, and both are kept."""
    careful = replace(IDENTITY, limits=Limits(None, Range(HOUR, HOUR)))
    first = verify(lab, addresses_of("gone.lab", 9, prefix="x"), identity=careful, deadline_s=1.5)
    assert len(first.log.asked) == 4
    with closing(sqlite3.connect(f"file:{first.state}?mode=ro", uri=True)) as state:
        spent = dict(state.execute("SELECT key, SUM(tokens) FROM windows GROUP BY key"))
    assert spent.pop(f"{IDENTITY.key} identity") == 4
    assert list(spent.values()) == [4]
    again = verify(lab, ["office@tenant-2.lab"], identity=careful, deadline_s=0.5, state=first.state)
    assert again.log.asked == []
