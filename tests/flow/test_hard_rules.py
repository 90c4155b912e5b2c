"""The hard rules of the design, end to end: whole runs against servers that try to make the engine break them.

Hosts that refuse us are all of one organisation, `blocked.lab`: several would stop the identity altogether.
"""

from __future__ import annotations

import pytest

from engine.core.brake import Brake
from engine.lab.process import LabProcess

BLOCKS_AT_RCPT = (
    "554 5.7.1 Service unavailable; Client host [{client}] blocked using zen.spamhaus.org",
    "550 5.1.1 Client host [{client}] blocked using bl.spamcop.net",  # the words outweigh the code
    "550 5.3.2 Service currently unavailable",  # postscreen to a client that it doesn't want
    "550 5.3.2 <{rcpt}>: Recipient address rejected: Service currently unavailable",
    "521 5.7.1 Service unavailable",
    "550 Your IP address has a poor reputation",
    "550 5.7.606 Access denied, banned sending IP [{client}]",
    "550 5.7.25 Client host rejected: cannot find your reverse hostname, [{client}]",
    "550 5.7.1 Administrative prohibition",
    "550 5.7.999 mailbox unavailable",  # X.7.x is never about the mailbox,
    "550 5.3.0 mailbox unavailable",  # nor is X.3.x
    "554 5.7.1 <{rcpt}>: Relay access denied",
    "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)",
    "530 5.7.0 Authentication required",
    "550 5.7.1 SPF check failed for {sender}",
    "550 Sender verify failed",
    "550 Message rejected as spam",
    "550 Too many messages from your address, try again later",
    "550 <{helo}>: Helo command rejected: Host not found",
)
BLOCKS_AT_MAIL = (
    "550 5.7.1 Unfortunately, messages from [{client}] weren't sent. Part of their network is on our block list.",
    "550 5.1.8 <{sender}>: Sender address rejected: Domain not found",
    "550 5.1.1 User unknown",  # nobody was named yet: it speaks of our sender
    "550 Rejected",
)
BLOCKS_AT_EHLO = ("550 5.7.1 <{helo}>: Helo command rejected: Access denied", "550 5.1.1 User unknown")
BLOCKS_AT_GREETING = (
    "554 {host} Your access to this mail system has been rejected due to the sending MTA's poor reputation",
    "521 5.3.2 Service currently unavailable",  # postscreen drops
    "550 5.1.1 User unknown",
    "554 5.7.1 rejected",
)

NOT_FINAL = (
    "450 4.1.1 <{rcpt}>: Recipient address rejected: User unknown in virtual mailbox table",
    "450 5.1.1 <{rcpt}>: User unknown",  # the code decides what is final
    "451 4.3.0 Temporary lookup failure",
    "451 <{rcpt}>: no such user here",
    "452 4.2.2 Mailbox full",
    "421 4.1.1 No such user",
    "450 4.2.1 Account disabled",
    "455 Rejected",
)
TROUBLE = {
    "silent": {"hangup": "connect", "manner": "silence"},
    "silent-ehlo": {"hangup": "ehlo", "manner": "silence"},
    "silent-mail": {"hangup": "mail", "manner": "silence"},
    "silent-rcpt": {"hangup": "rcpt", "manner": "silence"},
    "drop-connect": {"hangup": "connect"},
    "drop-ehlo": {"hangup": "ehlo"},
    "drop-mail": {"hangup": "mail"},
    "drop-rcpt": {"hangup": "rcpt"},
    "reset-rcpt": {"hangup": "rcpt", "manner": "reset"},
    "flood-rcpt": {"hangup": "rcpt", "manner": "flood"},
    "garbage": {"replies": {"greeting": "SSH-2.0-OpenSSH_9.2"}},
    "garbage-rcpt": {"replies": {"rcpt": "<html>550 5.1.1 User unknown</html>"}},
    "number-rcpt": {"replies": {"rcpt": "55O 5.1.1 User unknown"}},
    "extra-rcpt": {"replies": {"rcpt": "199 5.1.1 User unknown"}},
}

# What a control gets, and whether the accepted address may be called valid then
CONTROLS = {
    "refused": ("550 5.1.1 <{rcpt}>: User unknown", "rcpt_ok"),
    "refused-554": ("554 No such user here", "rcpt_ok"),
    "accepted": ("250 2.1.5 Ok", "catch_all"),
    "accepted-251": ("251 2.1.5 User not local; will forward", "catch_all"),
    "later": ("450 4.3.0 Try again later", "accepted_unconfirmed"),
    "greylisted": ("450 4.2.0 <{rcpt}>: Recipient address rejected: Greylisted", "accepted_unconfirmed"),
    "policy": ("550 5.7.1 Administrative prohibition", "accepted_unconfirmed"),
    "relaying": ("554 5.7.1 <{rcpt}>: Relay access denied", "accepted_unconfirmed"),
    "spam": ("550 5.7.1 Message rejected as spam", "accepted_unconfirmed"),
    "full": ("552 5.2.2 <{rcpt}>: Over quota", "accepted_unconfirmed"),
    "postscreen": ("550 5.3.2 Service currently unavailable", "accepted_unconfirmed"),
    "strange": ("550 5.9.9 Florbs are not grombled on Tuesdays", "accepted_unconfirmed"),
    "garbled": ("<html>It works!</html>", "accepted_unconfirmed"),
}

BARE = (
    "550",
    "550 Rejected",
    "550 Requested action not taken: mailbox unavailable",
    "551 not accepted",
    "553 Rejected",
)
RECIPIENT = (
    "550 5.1.1 User unknown",
    "554 5.1.1 User unknown",
    "550 No such user here",
    "504 5.1.1 No such user",
    "553 5.1.1 No such user",
)
NEVER_A_USER = (
    "521 5.1.1 User unknown", "530 5.1.1 User unknown", "535 5.1.1 User unknown", "552 5.1.1 User unknown",
    "552 5.2.2 Over quota", "550 5.2.2 Mailbox full", "550 relay not permitted", "550 5.7.1 Message rejected as spam",
    "552 5.3.4 Message size exceeds fixed limit", "550 5.7.2 <{rcpt}> only accepts mail from members",
    "550 Administrative prohibition",
)  # fmt: skip

# Ladders and breakers of parts of a second: what is tried again is tried again, and ends soon.
HASTE = {
    "default": {
        "timeouts": {"connect": "0.6s", "greeting": "0.6s", "command": "0.6s", "session": "5s"},
        "retry": {"greylist": ["0.1s"], "tempfail": ["0.1s"], "give_up": "1s"},
        "breaker": {"open": "0.2s"},
    }
}


ONE_BY_ONE = {
    "default": {"sessions": {"concurrency": 1}, "recipients": {"per_transaction": 5}, "refusals": {"per_session": 5}}
}


def answering(texts, stage):
    """{persona: fields} and {domain: fields}: one host of blocked.lab for each text, said at a stage."""
    personas = {f"{stage}-{n}": {"replies": {stage: text}, "starttls": False} for n, text in enumerate(texts, 1)}
    domains = {
        f"{name}.lab": {"mx": [f"{name}.blocked.lab"], "hosts": {f"{name}.blocked.lab": name}, "mailboxes": ["ada"]}
        for name in personas
    }
    return personas, domains


def lab_of_rules():
    personas, domains = {}, {}
    for stage, texts in (
        ("rcpt", BLOCKS_AT_RCPT), ("mail", BLOCKS_AT_MAIL), ("helo", BLOCKS_AT_EHLO), ("greeting", BLOCKS_AT_GREETING),
    ):  # fmt: skip
        more = answering(texts, stage)
        personas |= more[0]
        domains |= more[1]
    for kind, texts in (("later", NOT_FINAL), ("bare", BARE), ("gone", RECIPIENT), ("excused", NEVER_A_USER)):
        for n, text in enumerate(texts, 1):
            personas[f"{kind}-{n}"] = {"replies": {"unknown": text}, "starttls": False}
            domains[f"{kind}-{n}.lab"] = {"persona": f"{kind}-{n}", "mailboxes": ["ada"]}
    for name, fields in TROUBLE.items():
        personas[f"trouble-{name}"] = fields
        domains[f"{name}.lab"] = {"persona": f"trouble-{name}", "mailboxes": ["ada"]}
    for name, (text, _) in CONTROLS.items():
        personas[f"control-{name}"] = {"replies": {"unknown": text}, "starttls": False}
        domains[f"control-{name}.lab"] = {"persona": f"control-{name}", "mailboxes": ["ada"]}
    personas |= {
        "fickle": {"replies": {"unknown": BLOCKS_AT_RCPT[0]}, "starttls": False},
        "slow-control": {"replies": {"unknown": CONTROLS["greylisted"][0]}, "starttls": False},
        "strange": {"replies": {"rcpt": "550 5.9.9 Florbs are not grombled on Tuesdays"}, "starttls": False},
        "vague": {"replies": {"unknown": "550 Rejected", "unclear": "451 4.3.0 Try again later"}, "starttls": False},
        "rejecting": {"replies": {"rcpt": "550 Rejected"}, "starttls": False},
        "late": {"replies": {"unknown": "550 Rejected"}, "greylist": "1h", "starttls": False},
    }  # fmt: skip
    domains |= {
        "fickle.lab": {"mx": ["fickle.blocked.lab"], "hosts": {"fickle.blocked.lab": "fickle"}, "mailboxes": ["ada"]},
        "unsure.lab": {"mailboxes": {"ada": "unverified"}},
        "slow-control.lab": {"persona": "slow-control", "mailboxes": ["ada"]},
        "strange.lab": {"persona": "strange"},
        "gmail-like.lab": {"mx": ["aspmx.google.lab"], "mailboxes": ["ada"]},
        "workspace.lab": {"mx": ["aspmx.google.lab"], "mailboxes": ["ada"]},
        "listed.lab": {"mailboxes": ["ada"]},
        "listed-bare.lab": {"persona": "vague", "mailboxes": ["ada"]},
        # the sanity brake
        "one-domain.lab": {"persona": "rejecting"},
        "shared-{1..6}.lab": {"mx": ["mx.shared.lab"]},
        "known.lab": {"persona": "vague", "mailboxes": ["ada"]},
        "postmaster.lab": {"persona": "vague", "mailboxes": ["postmaster"]},
        "unclear.lab": {"persona": "vague", "mailboxes": {"postmaster": "unclear"}},
        "dead.lab": {"persona": "refuse-all"},
        "split-{1..3}.lab": {"mx": ["mx.{domain}.split.lab"], "hosts": {"mx.{domain}.split.lab": "rejecting"}},
        "site-{01..50}.lab": {"persona": "rejecting"},
        "late-{1..4}.lab": {"persona": "late"},
        "fair-{01..25}.lab": {"persona": "vague", "mailboxes": ["postmaster"]},
    }
    return {
        "personas": personas,
        "hosts": {"aspmx.google.lab": "google-like", "mx.shared.lab": "rejecting"},
        "domains": domains,
    }


@pytest.fixture(scope="module")
def lab():
    with LabProcess(lab_of_rules()) as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(lab):
    """No test meets what a server remembers of another."""
    lab.reset()


@pytest.fixture
def soon(monkeypatch, plain_python):
    """A positive control may be asked again after parts of a second instead of 15 minutes."""
    monkeypatch.setattr(Brake.__init__, "__defaults__", (0.3,))


def names(kind, texts):
    return [f"{kind}-{n}.lab" for n in range(1, len(texts) + 1)]


# --- 1 ------------------------------------------------------------------------------------------------------------


def test_rule_1_a_block_is_never_an_invalid(lab, verify):
    """Whatever is said of us, at whatever stage and under whatever code: no address is invalid or valid by it."""
    domains = [
        *names("rcpt", BLOCKS_AT_RCPT), *names("mail", BLOCKS_AT_MAIL), *names("helo", BLOCKS_AT_EHLO),
        *names("greeting", BLOCKS_AT_GREETING),
    ]  # fmt: skip
    run = verify(lab, [f"{local}@{domain}" for domain in domains for local in ("ada", "nobody")], policies=HASTE)
    assert {row["address"]: (row["reason"], row["smtp_text"]) for row in run.rows if row["category"] != "risky"} == {}
    assert run.having("answered", True) == set()


def test_rule_1_a_postscreen_that_refuses_or_drops_us_gives_no_invalid(lab, verify):
    """550 5.3.2 at RCPT and 521 5.3.2 at the greeting are postscreen's words to a client that it doesn't want."""
    refused, dropped = "rcpt-3.lab", "greeting-2.lab"
    run = verify(lab, [f"u{n}@{domain}" for domain in (refused, dropped) for n in range(40)], policies=HASTE)
    assert {row["category"] for row in run.rows} == {"risky"}
    assert not any(row["answered"] for row in run.rows)


# --- 2 ------------------------------------------------------------------------------------------------------------


def test_rule_2_a_temporary_failure_gives_neither_valid_nor_invalid(lab, verify):
    """4yz is no answer, even where its words or its enhanced code say that nobody is there."""
    domains = names("later", NOT_FINAL)
    run = verify(lab, [f"nobody@{domain}" for domain in domains], policies=HASTE)
    assert {row["address"]: row["reason"] for row in run.rows if row["category"] != "risky"} == {}
    assert all(row["smtp_code"] // 100 == 4 for row in run.rows)


def test_rule_2_silence_a_dropped_line_and_garbage_give_neither_valid_nor_invalid(lab, verify):
    """Who says nothing, hangs up or speaks no SMTP has told nothing, at whatever stage."""
    run = verify(lab, [f"{local}@{name}.lab" for name in TROUBLE for local in ("ada", "bob")], policies=HASTE)
    assert {row["address"]: row["reason"] for row in run.rows if row["category"] != "risky"} == {}
    assert run.having("answered", True) == set()
    assert {row["fault"] for row in run.rows} <= {"network", "protocol", "domain", "policy"}
    assert {run.row(f"{local}@garbage-rcpt.lab")["detail"] for local in ("ada", "bob")} == {"not_a_reply"}


# --- 3 ------------------------------------------------------------------------------------------------------------


def test_rule_3_valid_needs_a_refused_control(lab, verify):
    """An accepted address is as good as what a made-up one gets: nothing but a recipient's refusal makes it valid."""
    run = verify(lab, [f"ada@control-{name}.lab" for name in CONTROLS], policies=HASTE)
    right = {f"ada@control-{name}.lab": reason for name, (_, reason) in CONTROLS.items()}
    assert run.reasons == right
    for name in CONTROLS:
        assert run.controls(f"control-{name}.lab"), f"{name}: no control was asked"


def test_rule_3_a_bare_refusal_of_the_control_is_a_refusal(lab, verify):
    """A control that gets 550 without a word about us was refused as a recipient."""
    run = verify(lab, [f"ada@{domain}" for domain in names("bare", BARE)], policies=HASTE)
    assert set(run.reasons.values()) <= {"rcpt_ok", "accepted_unconfirmed"}


def test_rule_3_a_control_that_brings_a_block_makes_nobody_valid(lab, verify):
    """The site accepts, then blocks us for good before the control is answered: the acceptance proves nothing."""
    run = verify(lab, ["ada@fickle.lab"], policies=HASTE)
    assert run.row("ada@fickle.lab")["category"] == "risky"


def test_rule_3_a_deadline_before_the_control_makes_nobody_valid(lab, verify):
    """What waits for its control when the time is up is no valid address, and `--resume` takes it up again."""
    patient = {"default": HASTE["default"] | {"retry": {"greylist": ["1h"], "tempfail": ["1h"], "give_up": "6h"}}}
    run = verify(lab, ["ada@slow-control.lab"], policies=patient, deadline_s=0.5)
    assert run.done
    assert run.row("ada@slow-control.lab")["category"] == "risky"


def test_rule_3_an_acceptance_that_says_that_it_knows_nothing_is_not_valid(lab, verify):
    """252 accepts without having looked (RFC 5321 section 3.5.3)."""
    assert verify(lab, ["ada@unsure.lab"]).reasons == {"ada@unsure.lab": "accepted_unconfirmed"}


def test_rule_3_a_policy_vouches_for_a_domain_never_for_a_provider(lab, verify):
    """The domain that the policy names needs no control; its neighbour on the same servers does."""
    run = verify(lab, ["ada@gmail-like.lab", "ada@workspace.lab"])
    assert run.having("category", "valid") == {"ada@gmail-like.lab", "ada@workspace.lab"}
    assert run.controls("gmail-like.lab") == []
    assert len(run.controls("workspace.lab")) == 1


def test_rule_3_a_listed_refusal_is_a_control_only_where_it_names_the_recipient(lab, verify):
    """5.1.1 for somebody on the list spares the made-up recipient; a bare 550 does not."""
    run = verify(lab, [f"{local}@{domain}" for domain in ("listed.lab", "listed-bare.lab") for local in ("ada", "nix")])
    assert run.having("category", "valid") == {"ada@listed.lab", "ada@listed-bare.lab"}
    assert run.controls("listed.lab") == []
    assert len(run.controls("listed-bare.lab")) == 1


def test_rule_3_what_is_known_of_a_domain_holds_for_its_time_only(lab, verify):
    """A control older than its TTL is asked again, under a name that was never used before."""
    brief = {"default": {"control_rcpt": {"ttl": "0.01s", "inconclusive_ttl": "0.01s"}}}
    first = verify(lab, ["ada@control-refused.lab"], policies=brief)
    second = verify(lab, ["ada@control-refused.lab"], policies=brief)
    asked = first.controls("control-refused.lab") + second.controls("control-refused.lab")
    assert len(asked) == len(set(asked)) == 2


# --- 4 ------------------------------------------------------------------------------------------------------------


def test_rule_4_a_bare_refusal_is_rcpt_rejected(lab, verify):
    """550, 551 and 553 at RCPT that name no cause are invalid, and say how little they rest on."""
    run = verify(lab, [f"{local}@{domain}" for domain in names("bare", BARE) for local in ("ada", "nobody")])
    assert {run.reasons[f"nobody@{domain}"] for domain in names("bare", BARE)} == {"rcpt_rejected"}


def test_rule_4_words_about_the_recipient_are_mailbox_not_found(lab, verify):
    """Recipient evidence counts under any 5yz that does not speak of something else."""
    run = verify(lab, [f"nobody@{domain}" for domain in names("gone", RECIPIENT)])
    assert set(run.reasons.values()) == {"mailbox_not_found"}


def test_rule_4_what_speaks_of_something_else_is_never_invalid(lab, verify):
    """Full, relaying, spam, size, restricted and administrative texts, and codes that never speak of a user."""
    run = verify(lab, [f"nobody@{domain}" for domain in names("excused", NEVER_A_USER)], policies=HASTE)
    assert {row["address"]: row["reason"] for row in run.rows if row["category"] != "risky"} == {}


# --- 5 ------------------------------------------------------------------------------------------------------------


def test_rule_5_thirty_refusals_at_one_domain_prove_nothing(lab, verify, addresses_of):
    """A domain that says "550 Rejected" to everybody, postmaster included, makes nobody invalid, and is left alone."""
    run = verify(lab, addresses_of("one-domain.lab", 60))
    assert set(run.reasons.values()) == {"refusals_suspect"}
    assert run.controls("one-domain.lab") == ["postmaster@one-domain.lab"]
    assert len(run.log.recipients("one-domain.lab")) < 60


@pytest.mark.parametrize("each", [4, 6, 10])
def test_rule_5_twenty_refusals_over_three_domains_of_a_host_prove_nothing(lab, verify, addresses_of, each, soon):
    """Nobody at a host that refuses all of its domains is invalid, whether asked before the brake or after it."""
    slowly = {"default": HASTE["default"] | ONE_BY_ONE["default"]}
    run = verify(
        lab, [address for n in range(1, 7) for address in addresses_of(f"shared-{n}.lab", each)], policies=slowly
    )
    assert set(run.reasons.values()) <= {"refusals_suspect", "provider_paused"}


def test_rule_5_a_provider_that_refuses_at_all_its_sites_proves_nothing(lab, verify, addresses_of):
    """The doubt about a lane is about all of its sites, not only about the one whose postmaster was asked."""
    provider = {"split-like": {"match": {"mx": ["*.split.lab"]}, "scope": "provider", **HASTE["default"]}}
    rows = [address for n in (1, 2, 3) for address in addresses_of(f"split-{n}.lab", 7)]
    run = verify(lab, rows, policies=provider)
    assert set(run.reasons.values()) <= {"refusals_suspect", "provider_paused"}


def test_rule_5_refusals_stand_when_an_accepted_address_is_accepted_again(lab, verify, addresses_of):
    """The positive control is an address of this job that the site accepted; accepted again, the refusals stand."""
    run = verify(lab, ["ada@known.lab", *addresses_of("known.lab", 40)])
    assert run.row("ada@known.lab")["reason"] == "rcpt_ok"
    assert len(run.having("reason", "rcpt_rejected")) == 40
    assert run.log.recipients("known.lab").count("ada@known.lab") == 2


def test_rule_5_refusals_stand_when_postmaster_is_accepted(lab, verify, addresses_of):
    """Where nobody of the list was accepted, postmaster is the positive control."""
    run = verify(lab, addresses_of("postmaster.lab", 35))
    assert set(run.reasons.values()) == {"rcpt_rejected"}
    assert run.controls("postmaster.lab") == ["postmaster@postmaster.lab"]


def test_rule_5_no_clear_answer_twice_is_no_acceptance(lab, verify, addresses_of, soon):
    """A positive control that gets 4yz is asked a second time later, and then the refusals prove nothing."""
    run = verify(lab, addresses_of("unclear.lab", 35))
    assert set(run.reasons.values()) == {"refusals_suspect"}
    assert run.controls("unclear.lab") == ["postmaster@unclear.lab"] * 2


def test_rule_5_backed_refusals_stand(lab, verify, addresses_of):
    """A domain that refuses everybody with "user unknown" is dead, and no brake is concerned."""
    run = verify(lab, addresses_of("dead.lab", 40))
    assert set(run.reasons.values()) == {"mailbox_not_found"}
    assert run.controls("dead.lab") == []


@pytest.mark.parametrize("sites", [20, 25, 50])
def test_rule_5_twenty_sites_that_refuse_prove_nothing(lab, verify, sites):
    """One refused address at each of many sites: the identity is refused, not the addresses."""
    run = verify(lab, [f"u@site-{n:02}.lab" for n in range(1, sites + 1)])
    assert set(run.reasons.values()) == {"refusals_suspect"}
    assert len([each for each in run.log.recipients() if each.startswith("postmaster@")]) >= 1


@pytest.mark.parametrize(("sites", "each"), [(2, 25), (5, 10), (10, 5), (17, 3)])
def test_rule_5_an_unbacked_block_of_a_first_small_run_gives_no_invalid(lab, verify, addresses_of, sites, each):
    """Fifty rows, and every site refuses everybody in words that name no cause: too few for each lane, not for us."""
    rows = [address for n in range(1, sites + 1) for address in addresses_of(f"site-{n:02}.lab", each)]
    run = verify(lab, rows, policies=HASTE)
    assert {row["category"] for row in run.rows} == {"risky"}
    assert set(run.reasons.values()) == {"refusals_suspect"}


def test_rule_5_refusals_of_many_sites_stand_when_one_accepts(lab, verify):
    """The identity's positive control is accepted: the sites refuse the addresses, not us."""
    run = verify(lab, [f"u@fair-{n:02}.lab" for n in range(1, 26)])
    assert set(run.reasons.values()) == {"rcpt_rejected"}
    assert [each.partition("@")[0] for each in run.log.recipients() if each.startswith("postmaster@")] == ["postmaster"]


@pytest.mark.parametrize("stop_at", ["provisional", "suspect"])
def test_rule_5_a_stop_does_not_make_the_engine_forget_its_doubt_about_itself(lab, verify, states, stop_at):
    """28 sites that refuse us are 28 sites also when the run was stopped in between: nobody becomes invalid."""
    rows = [f"u@site-{n:02}.lab" for n in range(1, 25)] + [f"u@late-{n}.lab" for n in range(1, 5)]
    of_interest, enough = (2, 15) if stop_at == "provisional" else (3, 20)

    def reached(verification):
        return sum(state == of_interest for state, _ in states(verification.request.journal).values()) >= enough

    lab.set("rejecting", delay={"rcpt": "30ms"})
    first = verify(lab, rows, output="out.jsonl", stop_when=reached, concurrency=1)
    assert not first.done
    lab.set("late", greylist=None)
    run = verify(lab, rows, output="out.jsonl", resume=True, concurrency=1)
    assert set(run.reasons.values()) == {"refusals_suspect"}


def test_rule_5_a_stop_does_not_make_the_engine_forget_its_doubt_about_a_site(lab, verify, states, addresses_of):
    """Refusals of before the stop and of after it count together: 35 at one domain prove nothing."""
    rows = list(addresses_of("one-domain.lab", 35))

    def enough(verification):
        return sum(state == 2 for state, _ in states(verification.request.journal).values()) >= 15

    first = verify(lab, rows, output="out.jsonl", policies=ONE_BY_ONE, stop_when=enough)
    assert not first.done
    assert first.rows == []
    run = verify(lab, rows, output="out.jsonl", policies=ONE_BY_ONE, resume=True)
    assert set(run.reasons.values()) == {"refusals_suspect"}
    assert run.controls("one-domain.lab") == ["postmaster@one-domain.lab"]


def test_rule_5_a_stop_while_the_brake_asks_is_taken_up(lab, verify, states, addresses_of):
    """Stopped between the refusals and a clear answer of the positive control, with nobody left to ask: asked anew."""
    rows = list(addresses_of("unclear.lab", 30))

    before = lab.stats()["command"]

    def asking(verification):
        found = states(verification.request.journal)
        if sum(state == 2 for state, _ in found.values()) < len(rows):
            return False
        said = [row["text"] for row in lab.log() if row["event"] == "command"]
        return "RCPT TO:<postmaster@unclear.lab>" in said[before:]

    first = verify(lab, rows, output="out.jsonl", policies=ONE_BY_ONE, stop_when=asking)
    assert not first.done
    assert first.rows == []
    lab.set("vague", replies={"unclear": "550 Rejected"})
    run = verify(lab, rows, output="out.jsonl", policies=ONE_BY_ONE, resume=True)
    assert set(run.reasons.values()) == {"refusals_suspect"}
    assert run.log.recipients() == ["postmaster@unclear.lab"]


# --- 6 ------------------------------------------------------------------------------------------------------------


def test_rule_6_rows_show_settled_verdicts_only(lab, verify, states):
    """An acceptance without its control and a bare refusal are in the journal, and in no row yet."""
    patient = {"default": {"retry": {"greylist": ["1h"], "tempfail": ["1h"], "give_up": "6h"}}}
    rows = ["ada@slow-control.lab", "nobody@bare-2.lab", "ada@listed.lab", "nix@listed.lab"]

    def answered(verification):
        return sum(state >= 2 for state, _ in states(verification.request.journal).values()) == len(rows)

    run = verify(lab, rows, policies=patient, stop_when=answered)
    assert not run.done
    assert run.reasons == {"ada@listed.lab": "rcpt_ok", "nix@listed.lab": "mailbox_not_found"}
    assert states(run.journal)["ada@slow-control.lab"] == (2, "rcpt_ok")
    assert states(run.journal)["nobody@bare-2.lab"] == (2, "rcpt_rejected")


def test_rule_6_a_settled_verdict_never_changes_within_a_job(lab, verify, states):
    """What a stopped run had settled is the same at the end, though the servers have turned round since."""
    rows = [f"{local}@{domain}" for domain in ("listed.lab", "workspace.lab") for local in ("ada", "nix")]
    rows += ["ada@slow-control.lab"]
    patient = {"default": {"retry": {"greylist": ["1h"], "tempfail": ["1h"], "give_up": "6h"}}}

    def some(verification):
        return sum(state == 3 for state, _ in states(verification.request.journal).values()) >= 4

    first = verify(lab, rows, policies=patient, output="out.jsonl", stop_when=some)
    before = {row["address"]: row for row in first.rows}
    lab.set("normal", replies={"known": "550 5.1.1 gone", "unknown": "250 ok"})
    lab.set("google-like", replies={"known": "550 5.1.1 gone", "unknown": "250 ok"})
    run = verify(lab, rows, policies=patient, output="out.jsonl", resume=True, deadline_s=0.5)
    assert {address: run.row(address) for address in before} == before
    assert set(before) & set(run.log.recipients()) == set()


# --- 7 ------------------------------------------------------------------------------------------------------------


def test_rule_7_a_reply_that_no_rule_knows_is_unclassified(lab, verify):
    """A sentence that nobody has met is risky, shown as it was said, and waits for a rule."""
    row = verify(lab, ["nobody@strange.lab"], policies=HASTE).row("nobody@strange.lab")
    assert (row["category"], row["reason"], row["answered"]) == ("risky", "unclassified_reply", False)
    assert "grombled" in row["smtp_text"]
