"""Asking little, as the mail servers of the lab saw it: their log is the judge."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from engine.core.identity import Mode
from engine.flow.job import Suppression
from engine.identity_file import load_identity
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

PER_TRANSACTION, PER_SESSION, REFUSALS = 4, 10, 5
CAREFUL = {  # the shipped default's counts, at a pace for loopback
    "default": {
        "sessions": {"concurrency": 2},
        "recipients": {"per_transaction": PER_TRANSACTION, "per_session": PER_SESSION},
        "refusals": {"per_session": REFUSALS},
        "retry": {"greylist": ["0.3s"], "tempfail": ["0.3s"], "give_up": "2s"},
        "breaker": {"open": "0.2s"},
    }
}

SPEC = {
    "personas": {
        "quick-greylist": {"greylist": "200ms"},
        "sluggish": {"delay": {"rcpt": "20ms"}, "pipelining": False},
        "shutting": {"block": "no"},
        "patient-limit": {"limits": {"per_session": 5}},
        "learning": {"limits": {"per_mail": 1}, "replies": {"per_mail": "452 4.5.3 Error: too many recipients"}},
    },
    "hosts": {
        "mx.hosting.lab": "normal", "aspmx.google.lab": "google-like", "mta.yahoo.lab": "yahoo-like",
        "mx.forbidden.lab": "normal", "mx.pool.lab": "normal",
    },
    "domains": {
        "mixed.lab": {"mailboxes": ["ada", "grace"]},
        "kind.lab": {"mailboxes": ["ada", "grace", "linus"]},
        "grey.lab": {"persona": "quick-greylist", "mailboxes": ["ada", "grace"]},
        "all.lab": {"persona": "catch-all"},
        "hosted-{01..20}.lab": {"mx": ["mx.hosting.lab"], "mailboxes": ["office"]},
        "gone.lab": {"mailboxes": ["ada"]},
        "slow.lab": {"persona": "sluggish", "mailboxes": [f"u{n:04}" for n in range(1, 41)]},
        "limited.lab": {"persona": "patient-limit", "mailboxes": [f"u{n:04}" for n in range(1, 41)]},
        "single.lab": {"persona": "learning", "mailboxes": [f"u{n:04}" for n in range(1, 13)]},
        "bare.lab": {"persona": "bare-refusals", "mailboxes": ["ada"]},
        "no-codes.lab": {"persona": "no-codes", "mailboxes": ["ada"]},
        "workspace-{1..2}.lab": {"mx": ["aspmx.google.lab"], "mailboxes": ["ceo"]},
        "yahoo-like.lab": {"mx": ["mta.yahoo.lab"]},
        "forbidden.lab": {"mx": ["mx.forbidden.lab"]},
        "pool.lab": {"mx": ["mx.pool.lab"]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(lab):
    """No test meets what a server remembers of another."""
    lab.reset()


@pytest.fixture(scope="module")
def everybody(addresses_of):
    """A list that meets every kind of server here."""
    rows = [
        f"{who}@{domain}" for domain in ("mixed.lab", "grey.lab", "bare.lab", "no-codes.lab") for who in ("ada", "nix")
    ]
    rows += ["ada@kind.lab", "grace@kind.lab", "linus@kind.lab"]
    rows += [f"{who}@hosted-{n:02}.lab" for n in range(1, 21) for who in ("office", "old")]
    rows += [f"{who}@workspace-{n}.lab" for n in (1, 2) for who in ("ceo", "cfo")]
    for domain, count in (("all.lab", 30), ("slow.lab", 40), ("single.lab", 12), ("gone.lab", 25)):
        rows += addresses_of(domain, count)
    return rows


@pytest.fixture
def whole(lab, verify, everybody):
    """One careful run over all of them."""
    return verify(lab, everybody, policies=CAREFUL)


def test_a_run_keeps_to_its_counts_and_its_manners(whole, everybody):
    """RCPTs a transaction and a session, refusals a session, sessions at once; QUIT, a sender, never DATA."""
    log = whole.log
    assert {row["address"] for row in whole.rows} == set(everybody)
    asked = [one for one in log.asked if one.host.endswith(".lab")]
    default = [one for one in asked if not one.host.endswith("google.lab")]
    assert max(Counter((one.session, one.transaction) for one in default).values()) <= PER_TRANSACTION
    assert max(Counter(one.session for one in default).values()) <= PER_SESSION
    refused = Counter(one.session for one in default if one.reply.startswith("5"))
    assert max(refused.values()) <= REFUSALS
    assert all(log.peak(host) <= 2 for host in {row["host"] for row in log.rows} if "google" not in host)
    assert log.senders == {"probe@probe.lab"}
    assert not [text for text in log.commands if text.upper().startswith(("DATA", "BDAT", "VRFY", "EXPN"))]
    assert not [row for row in log.rows if row["event"] in ("message", "pregreet")]
    silent = set(log.sessions()) - {row["session"] for row in log.rows if row["text"] == "QUIT"}
    assert not silent, f"sessions without QUIT: {[row for row in log.rows if row['session'] in silent]}"


def test_a_transaction_asks_one_domain(whole):
    """Google refuses several in one."""
    together = {}
    for one in whole.log.asked:
        together.setdefault((one.session, one.transaction), set()).add(one.recipient.rpartition("@")[2])
    assert {len(domains) for domains in together.values()} == {1}


def test_a_domain_gets_one_control_and_none_where_a_listed_refusal_came(whole):
    """Recipient evidence for somebody on the list spares the control; without it, one made-up recipient is enough."""
    assert {
        domain: len(whole.controls(domain)) for domain in ("kind.lab", "all.lab", "slow.lab", "single.lab")
    } == dict.fromkeys(("kind.lab", "all.lab", "slow.lab", "single.lab"), 1)
    assert [whole.controls(domain) for domain in ("mixed.lab", "no-codes.lab", "gone.lab")] == [[], [], []]
    for domain in (f"hosted-{n:02}.lab" for n in range(1, 21)):  # where the first transaction held `office` alone
        controls = whole.controls(domain)
        order = [one for one in whole.log.asked if one.recipient.endswith(f"@{domain}")]
        first_refused = next(place for place, one in enumerate(order) if one.reply.startswith("5"))
        assert len(controls) <= 1
        assert not {one.recipient for one in order[first_refused + 1 :]} & set(controls)


def test_no_address_is_asked_twice_unless_it_was_told_to_come_back(whole):
    """Who has an answer is left alone."""
    final = Counter(one.recipient for one in whole.log.asked if one.reply[:1] in "25")
    assert not {who: n for who, n in final.items() if n > 1}


def test_first_contact_is_one_session(whole):
    """Until a domain's control question is settled only one session asks it, in one transaction."""
    for domain in ("slow.lab", "kind.lab", "all.lab"):
        asked = [one for one in whole.log.asked if one.recipient.endswith(f"@{domain}")]
        control = next(one for one in asked if one.recipient in whole.controls(domain))
        before = {(one.session, one.transaction) for one in asked if one.t < control.t}
        assert len(before) == 1
        assert before == {(control.session, control.transaction - 1)}


def test_the_control_is_the_same_on_a_greylist_retry(lab, verify):
    """Greylisting lets pass who comes back with the same recipient, the made-up one included."""
    run = verify(lab, ["ada@grey.lab", "grace@grey.lab"], policies=CAREFUL)
    assert set(run.reasons.values()) == {"rcpt_ok"}
    controls = run.controls("grey.lab")
    assert len(controls) == 2
    assert len(set(controls)) == 1


def test_a_catch_all_domain_of_a_thousand_is_asked_a_handful_of_times(lab, verify, addresses_of):
    """What the control settles for all of them is not asked of each."""
    run = verify(lab, addresses_of("all.lab", 1000), policies=CAREFUL)
    assert run.having("reason", "catch_all") == set(addresses_of("all.lab", 1000))
    assert len(run.log.recipients()) <= PER_TRANSACTION + 1
    assert len(run.having("probed", False)) >= 1000 - PER_TRANSACTION


def test_many_domains_on_one_host_share_sessions(lab, verify):
    """Twenty domains with two addresses each are no twenty connections."""
    run = verify(lab, [f"{who}@hosted-{n:02}.lab" for n in range(1, 21) for who in ("office", "old")])
    assert len(run.log.sessions("mx.hosting.lab")) <= 4
    assert run.having("reason", "rcpt_ok") == {f"office@hosted-{n:02}.lab" for n in range(1, 21)}


def test_a_second_run_asks_no_control_and_dials_nobody_it_need_not(lab, verify, everybody):
    """What the first run settled of domains holds for the second, which has another output."""
    first = verify(lab, everybody, policies=CAREFUL)
    second = verify(lab, everybody, policies=CAREFUL, state=first.state)
    assert second.reasons == first.reasons
    listed = {row["normalized"] for row in second.rows}
    assert [each for each in second.log.recipients() if each not in listed] == []
    assert second.log.recipients("all.lab") == []
    assert second.log.sessions("mx.all.lab") == []


def test_limits_that_a_site_taught_hold_for_the_next_run(lab, verify, addresses_of):
    """Who takes one recipient a transaction says 452 4.5.3 once, and not again to every run."""
    rows = list(addresses_of("single.lab", 12))
    first = verify(lab, rows)
    second = verify(lab, rows, state=first.state)
    assert set(first.reasons.values()) == set(second.reasons.values()) == {"rcpt_ok"}
    assert [one.recipient for one in second.log.asked if one.reply.startswith("452")] == []


def test_a_server_with_a_small_session_answers_a_long_list(lab, verify, addresses_of):
    """421 after five recipients is no failure of those behind it: they come again, in smaller sessions."""
    rows = list(addresses_of("limited.lab", 40))
    assert set(verify(lab, rows).reasons.values()) == {"rcpt_ok"}


def test_duplicates_are_asked_once_and_every_row_is_answered(lab, verify):
    """An address is probed once a job, however often and however written the list holds it."""
    rows = ["ada@mixed.lab", " ada@mixed.lab", "ada@MIXED.lab", "nix@mixed.lab", "ada@mixed.lab", "nix@Mixed.Lab"]
    run = verify(lab, rows)
    assert [row["reason"] for row in run.rows] == ["rcpt_ok"] * 3 + [
        "mailbox_not_found",
        "rcpt_ok",
        "mailbox_not_found",
    ]
    assert sorted(run.log.recipients()) == ["ada@mixed.lab", "nix@mixed.lab"]


def test_who_is_suppressed_is_never_asked(lab, verify):
    """Neither a suppressed address nor anybody of a suppressed domain; their neighbours are."""
    never = Suppression(frozenset({"ada@mixed.lab"}), frozenset({"kind.lab"}))
    run = verify(lab, ["ada@mixed.lab", "nix@mixed.lab", "ada@kind.lab"], suppression=never)
    assert run.having("reason", "suppressed_local") == {"ada@mixed.lab", "ada@kind.lab"}
    assert run.log.recipients() == ["nix@mixed.lab"]


def test_nobody_is_dialled_whose_answer_means_nothing_or_who_forbids_it(lab, verify):
    """Uninformative providers, those whose terms forbid it, and pools that the identity has no tag of."""
    run = verify(lab, ["ada@yahoo-like.lab", "ada@forbidden.lab", "ada@pool.lab"])
    assert run.reasons == {
        "ada@yahoo-like.lab": "provider_unverifiable",
        "ada@forbidden.lab": "provider_not_probed",
        "ada@pool.lab": "provider_not_probed",
    }
    assert run.log.sessions() == []


def test_the_refusal_budget_is_never_overdrawn(lab, verify, addresses_of):
    """Five refusals an hour are five, over all sessions and runs; what finds no token waits."""
    tight = {"default": CAREFUL["default"] | {"refusals": {"per_session": 3, "rate": "5/h..5/h"}}}
    first = verify(lab, addresses_of("gone.lab", 25), policies=tight, deadline_s=1.0)
    refused = [one for one in first.log.asked if one.reply.startswith("5")]
    assert len(refused) == 5
    assert len(first.having("reason", "mailbox_not_found")) == 5
    assert len(first.having("reason", "deadline_exceeded")) == 20
    second = verify(lab, addresses_of("gone.lab", 25, prefix="v"), policies=tight, deadline_s=0.3, state=first.state)
    assert second.log.recipients() == []
    other = replace(load_identity(SHIPPED.with_name("identity.yaml"))[0], public_v4="127.0.0.2")
    third = verify(
        lab, addresses_of("gone.lab", 5, prefix="w"), policies=tight, deadline_s=1.0, state=first.state,
        identity=other, accepted_risk="its names are not in the lab's zones",
    )  # fmt: skip
    assert third.log.recipients() != []  # the budget is that of one identity


def test_accepted_addresses_cost_no_refusal_budget(lab, verify, addresses_of):
    """A token is given back where the answer is no refusal: forty existing mailboxes pass on five tokens."""
    tight = {"default": CAREFUL["default"] | {"refusals": {"per_session": 3, "rate": "5/h..5/h"}}}
    run = verify(lab, addresses_of("slow.lab", 40), policies=tight)
    assert set(run.reasons.values()) == {"rcpt_ok"}


def test_standard_mode_connects_once_a_site_and_names_nobody(lab, verify):
    """No MAIL, no RCPT; twenty domains on one host are one connection, and a provider's host none."""
    rows = [f"{who}@hosted-{n:02}.lab" for n in range(1, 21) for who in ("office", "old")]
    rows += ["ada@mixed.lab", "nix@mixed.lab", "ceo@workspace-1.lab"]
    run = verify(lab, rows, mode=Mode.STANDARD, consent=None)
    assert set(run.reasons.values()) == {"mailbox_unchecked"}
    assert sorted(row["host"] for row in run.log.rows if row["event"] == "connect") == [
        "mx.hosting.lab",
        "mx.mixed.lab",
    ]
    assert not [text for text in run.log.commands if text.upper().startswith(("MAIL", "RCPT"))]


def test_standard_mode_holds_a_site_s_answer_for_a_day(lab, verify):
    """A second run within 24 hours dials no site that the first one reached."""
    first = verify(lab, ["ada@mixed.lab"], mode=Mode.STANDARD, consent=None)
    second = verify(lab, ["ada@mixed.lab", "nix@mixed.lab"], mode=Mode.STANDARD, consent=None, state=first.state)
    assert set(second.reasons.values()) == {"mailbox_unchecked"}
    assert second.log.sessions() == []
