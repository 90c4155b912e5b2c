"""Several identities in one run, as the mail servers of the lab saw them: each has lanes and limits of its own."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from hashlib import sha256

import pytest

from engine.core.grammar import Range, Rate
from engine.core.identity import Limits, Status
from engine.flow.verification import Held, WrongUse
from engine.identity_file import load_identity
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.store.lock import IdentityLock
from engine.store.standing_order import place_status
from engine.store.state import State
from engine.store.writer import Writer

ONE = replace(load_identity(SHIPPED.parent / "identity.yaml")[0], name="one", bind_v4="127.0.0.1")
TWO = replace(ONE, name="two", public_v4="127.0.0.2", bind_v4="127.0.0.2", pool_tags=frozenset({"extra"}))
RISK = "its names are not in the lab's zones"
SITES = [f"site-{n:02}.lab" for n in range(1, 13)]
LISTED = "554 5.7.1 Service unavailable; Client host [{client}] blocked using zen.spamhaus.org"
SPEC = {
    "personas": {
        "plain": {"starttls": False, "delay": {"rcpt": "20ms"}},
        "grey": {"starttls": False, "greylist": 3600.0},
        "blocks": {"starttls": False, "replies": {"rcpt": LISTED}},
    },
    "hosts": {
        "mx.pooled.lab": "plain",
        "mx.grey.lab": {"persona": "grey", "address": "127.40.0.1"},
        "mx.blocks.lab": {"persona": "blocks", "address": "127.41.0.1"},
    },
    "domains": {
        "grey.lab": {"mx": ["mx.grey.lab"]},
        "blocks.lab": {"mx": ["mx.blocks.lab"]},
        "site-{01..12}.lab": {"persona": "plain", "mailboxes": ["ada"]},
        "pooled.lab": {"mx": ["mx.pooled.lab"], "mailboxes": ["ada"]},
    },
}


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture
def both(verify):
    def run(lab, rows, **changes):
        return verify(lab, rows, **({"identities": (ONE, TWO), "accepted_risk": RISK} | changes))

    return run


def clients(log):
    """Who connected to which host."""
    return {(row["host"], row["client"]) for row in log.rows if row["event"] == "connect"}


def test_each_site_is_asked_by_one_identity(lab, both):
    """Both work, no site sees both, and the next job asks each site from where the first did."""
    rows = [f"{who}@{site}" for site in SITES for who in ("ada", "bob")]
    first = both(lab, rows)
    assert set(first.reasons.values()) == {"rcpt_ok", "mailbox_not_found"}
    seen = Counter(host for host, _ in clients(first.log))
    assert set(seen.values()) == {1}
    assert {client for _, client in clients(first.log)} == {"127.0.0.1", "127.0.0.2"}
    again = both(lab, [f"cem@{site}" for site in SITES])
    assert clients(again.log) == clients(first.log)


def test_an_identity_s_limits_hold_for_its_own_sites_only(lab, both):
    """Two refusals an hour for one of them leave the other as free as it was."""
    careful = replace(ONE, limits=Limits(None, Range(Rate(2, 3600.0), Rate(2, 3600.0))))
    rows = [f"nobody@{site}" for site in SITES]
    run = both(lab, rows, identities=(careful, TWO), deadline_s=2.0)
    asked = Counter(row["client"] for row in run.log.rows if row["event"] == "command" and "RCPT" in row["text"])
    mine = Counter(client for _, client in clients(run.log))
    assert asked["127.0.0.1"] == 2 < len(SITES) - mine["127.0.0.2"]
    assert asked["127.0.0.2"] == mine["127.0.0.2"]
    assert Counter(run.reasons.values())["deadline_exceeded"] == len(SITES) - 2 - mine["127.0.0.2"]
    with closing(sqlite3.connect(f"file:{run.state}?mode=ro", uri=True)) as state:
        keys = {key.split(" ")[0] for (key,) in state.execute("SELECT DISTINCT key FROM windows")}
    assert keys == {"127.0.0.1", "127.0.0.2"}


def test_pools_decide_who_may_ask(lab, both):
    """A policy that asks for a tag is probed by the identity that carries it, and by nobody without."""
    policies = {"pooled": {"provider": "pooled", "match": {"mx": ["mx.pooled.lab"]}, "pools": ["extra"]}}
    run = both(lab, ["ada@pooled.lab"], policies=policies)
    assert run.reasons == {"ada@pooled.lab": "rcpt_ok"}
    assert clients(run.log) == {("mx.pooled.lab", "127.0.0.2")}
    alone = both(lab, ["bob@pooled.lab"], policies=policies, identities=(ONE,))
    assert alone.reasons == {"bob@pooled.lab": "provider_not_probed"}


def test_all_identities_are_held_or_none(lab, both, tmp_path):
    """A run whose second identity is at work elsewhere does not keep the first one."""
    folder = tmp_path / "state"
    folder.mkdir()
    with IdentityLock(folder, TWO.key, job="another", since=0.0), pytest.raises(Held) as refused:
        both(lab, ["ada@site-01.lab"], state=folder / "state.db")
    assert refused.value.identity is TWO
    with IdentityLock(folder, ONE.key, job="free", since=0.0):
        pass


def test_a_job_goes_on_under_the_identities_that_began_it(lab, both, tmp_path):
    """Greylisting and budgets are bound to them."""
    journal = tmp_path / "journal"
    both(lab, ["ada@site-01.lab"], journal=journal, stop_when=lambda verification: True)
    with pytest.raises(WrongUse, match="identity"):
        both(lab, ["ada@site-01.lab"], journal=journal, identities=(ONE,), resume=True)


# --- an identity that may ask no more


HASTY = {
    "sessions": {"concurrency": 1, "rate": "10/s"},
    "recipients": {"rate": "5/s", "per_transaction": 1, "per_session": 10},
    "retry": {"greylist": ["1h"], "give_up": "3s"},
}


def both_asked(verification):
    """So many addresses have their reason: both identities are at work."""
    if verification._journal is None:
        return False
    return sum(number for reason, number in verification.counts().items() if reason) >= 40


def test_what_was_never_asked_may_be_asked_by_another_identity(lab, both, tmp_path):
    """A quarantine leaves the rest of its sites to the other; what it asked before is asked by nobody else."""
    rows = [f"u{n:02}@{site}" for n in range(1, 31) for site in (*SITES, "grey.lab")]
    mine = max((ONE, TWO), key=lambda each: sha256(f"{each.key} [127.40.0.1]".encode()).digest())
    held = []

    with Writer() as writer:
        state = State(writer, tmp_path / "state" / "state.db")

        def watch(verification):
            if not held and both_asked(verification):
                at = time.time()
                held.append(time.monotonic())
                place_status(state, mine.key, Status.QUARANTINED, by="Ann", why="listed", at=at)
            return False

        run = both(lab, rows, policies={"default": HASTY}, stop_when=watch, state=state.path)
    other = {ONE.key: TWO.key, TWO.key: ONE.key}[mine.key]
    asked = [
        (row["host"], row["client"], row["text"]) for row in run.log.rows
        if row["event"] == "command" and row["text"].startswith("RCPT")
    ]  # fmt: skip
    by = Counter((text, client) for _, client, text in asked)
    assert max(Counter(text for text, _ in by).values()) == 1, "nobody is asked from two addresses"
    both_seen = {host for host, client in clients(run.log) if client == mine.key} & {
        host for host, client in clients(run.log) if client == other
    }
    assert both_seen, "the other took over"
    assert set(run.reasons.values()) <= {"mailbox_not_found", "identity_paused", "greylisted"}
    (note,) = (note for (note,) in run.query("SELECT note FROM attempts WHERE kind = 'order'") if "never asked" in note)
    assert mine.name in note


def test_a_site_that_refused_an_identity_is_left_alone_by_all(lab, both, tmp_path):
    """Another source would be a way around a block."""
    rows = [f"u{n:02}@{site}" for n in range(1, 31) for site in (*SITES, "blocks.lab")]
    mine = max((ONE, TWO), key=lambda each: sha256(f"{each.key} [127.41.0.1]".encode()).digest())
    held = []

    with Writer() as writer:
        state = State(writer, tmp_path / "state" / "state.db")

        def watch(verification):
            if not held and both_asked(verification):
                held.append(True)
                place_status(state, mine.key, Status.QUARANTINED, by="Ann", why="listed", at=time.time())
            return False

        run = both(lab, rows, policies={"default": HASTY}, stop_when=watch, state=state.path)
    assert {client for host, client in clients(run.log) if host == "mx.blocks.lab"} <= {mine.key}
    refused = {reason for address, reason in run.reasons.items() if address.endswith("@blocks.lab")}
    assert "mailbox_not_found" not in refused
    assert refused & {"ip_blocklisted", "identity_paused", "provider_paused"}
