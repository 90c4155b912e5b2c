"""What stops a run by itself, end to end: the breaker above the lanes, the way out, memory over restarts, the tripwire.

The lab gives each registrable domain a /24 of its own: `mx.turn-01.lab` and `mx.turn-02.lab` are two organisations.
"""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
import time
from collections import Counter
from contextlib import closing

import pytest

from engine.core.identity_breaker import IdentityBreaker
from engine.flow.guard import PortClosed
from engine.lab.process import LabProcess
from engine.scrape import page

LISTED = "554 5.7.1 Service unavailable; Client host [{client}] blocked using zen.spamhaus.org"
HASTE = {
    "default": {
        "timeouts": {"connect": "0.3s", "greeting": "1s", "command": "1s", "session": "5s"},
        "retry": {"greylist": ["0.1s"], "tempfail": ["0.1s"], "give_up": "1s"},
        "breaker": {"open": "0.2s"},
    }
}
SLOW_BREAKER = {"default": HASTE["default"] | {"breaker": {"open": "10m"}}}


def spec():
    return {
        "personas": {
            "turning": {"replies": {"rcpt": LISTED}, "starttls": False},
            "one-more": {"replies": {"rcpt": LISTED}, "starttls": False},
            "slowed": {"replies": {"rcpt": "450 4.7.1 Too many messages from you, try again in 300 seconds"}},
            "calm": {"starttls": False},
            "crowded": {"starttls": False, "delay": {"rcpt": "50ms"}},
            "fickle": {"starttls": False},
            "deaf": {"listen": "full"},
        },
        "hosts": {
            **{f"mx.far-{n}.lab": {"persona": "deaf", "address": f"127.{30 + n}.0.1"} for n in range(1, 8)},
            **{f"mx.tail-{n:02}.lab": {"persona": "deaf", "address": f"127.21.{n}.1"} for n in range(1, 27)},
        },
        "domains": {
            "turn-{01..32}.lab": {"persona": "turning", "mailboxes": ["ada"]},
            "calm-{01..48}.lab": {"persona": "calm", "mailboxes": ["ada"]},
            "crowded.lab": {"mx": ["mx.crowded.lab"], "mailboxes": [f"u{n:04}" for n in range(1, 21)]},
            "crowded-too.lab": {"mx": ["mx.crowded.lab"], "mailboxes": [f"u{n:04}" for n in range(1, 21)]},
            "mx.crowded.lab": {"persona": "crowded", "a": True},
            "alone.lab": {"persona": "one-more", "mailboxes": ["ada"]},
            "slowed.lab": {"persona": "slowed", "mailboxes": ["ada"]},
            "fickle.lab": {"mx": ["mx.fickle.lab"], "mailboxes": [f"u{n:04}" for n in range(1, 161)]},
            "beside.lab": {"mx": ["mx.fickle.lab"], "mailboxes": ["ada"]},
            "mx.fickle.lab": {"persona": "fickle", "a": True},
            "mute.lab": {"mx": ["mx.tail-01.lab"]},
            "forgotten.lab": {"persona": "refuse-all"},
            "patient.lab": {"persona": "greylisting", "mailboxes": [f"u{n:04}" for n in range(1, 1001)]},
            **{f"far-{n}.lab": {"mx": [f"mx.far-{n}.lab"]} for n in range(1, 8)},
            **{f"tail-{n:02}.lab": {"mx": [f"mx.tail-{n:02}.lab"]} for n in range(1, 27)},
        },
    }


@pytest.fixture(scope="module")
def lab():
    with LabProcess(spec()) as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(lab):
    """No test meets what a server remembers of another."""
    lab.reset()


@pytest.fixture
def quick(monkeypatch, plain_python):
    """The identity is tried again after parts of a second instead of 15 minutes."""
    monkeypatch.setattr(IdentityBreaker.__init__, "__defaults__", (0.3, 5.0))


def mixed():
    rows = [f"{who}@turn-{n:02}.lab" for n in range(1, 33) for who in ("ada", "nobody")]
    rows += [f"{who}@calm-{n:02}.lab" for n in range(1, 49) for who in ("ada", "nobody")]
    random.Random(3).shuffle(rows)
    return rows


def after_the_third(log):
    """How many sessions started after the third reply that names the list."""
    moments = [row["t"] for row in log.rows if row["event"] == "reply" and "zen.spamhaus.org" in row["text"]]
    return sum(row["event"] == "connect" and row["t"] > moments[2] for row in log.rows)


def saved(path):
    with closing(sqlite3.connect(path)) as connection:
        return {key: json.loads(text) for key, text in connection.execute("SELECT key, state FROM breakers")}


def test_sites_that_name_one_list_stop_the_identity(lab, verify):
    """40 of 100 sites do: 10 sessions at most start after the third such reply (it is not tried again in this run)."""
    run = verify(lab, mixed(), policies=HASTE, concurrency=4)
    assert run.done
    assert after_the_third(run.log) <= 10
    assert "identity_paused" in run.reasons.values()
    refused = {
        address for address, reason in run.reasons.items() if "@turn-" in address and reason != "identity_paused"
    }
    assert {run.row(address)["category"] for address in refused} <= {"risky"}
    assert {run.row(address)["retry"] for address in run.having("reason", "identity_paused")} == {"pause"}


def test_what_is_in_flight_asks_nothing_more_and_says_quit(lab, verify, quick):
    """Every session ends by QUIT, and none asks after the breaker opened but the half-open ones, one address each."""
    run = verify(lab, mixed(), policies=HASTE, concurrency=8)
    quits = {row["session"] for row in run.log.rows if row["event"] == "command" and row["text"].upper() == "QUIT"}
    assert set(run.log.sessions()) == quits


def test_an_identity_that_is_let_in_again_goes_on(lab, verify, quick):
    """The half-open session is answered: everybody gets his verdict."""
    seen = []

    def relent(verification):
        if not seen and verification.watch().paused.get("lab"):
            seen.append(verification.watch().paused["lab"])
            lab.set("turning", replies={"rcpt": "250 2.1.5 Ok"})
        return False

    patient = {"default": HASTE["default"] | {"retry": {"greylist": ["0.1s"], "tempfail": ["0.1s"], "give_up": "10s"}}}
    rows = [f"ada@turn-{n:02}.lab" for n in range(1, 9)] + [f"ada@calm-{n:02}.lab" for n in range(1, 9)]
    run = verify(lab, rows, policies=patient, concurrency=4, stop_when=relent)
    assert run.done
    assert seen == ["ip_blocklisted"]
    assert set(run.reasons.values()) <= {"catch_all", "rcpt_ok"}


def test_a_restart_keeps_the_identity_closed(lab, verify):
    """Another list, another journal: nothing is dialled while the breaker is open, and it ends as it began."""
    rows = [f"ada@turn-{n:02}.lab" for n in range(1, 9)]
    first = verify(lab, rows, policies=HASTE, stop_when=lambda verification: "lab" in verification.watch().paused)
    assert not first.done
    assert saved(first.state)["127.0.0.1"]["breaker"]["cause"] == "ip_blocklisted"
    second = verify(lab, [f"ada@calm-{n:02}.lab" for n in range(1, 9)], policies=HASTE, deadline_s=0.3)
    assert second.log.sessions() == []
    assert set(second.reasons.values()) == {"deadline_exceeded"}


def test_a_restart_keeps_a_lane_closed(lab, verify):
    """A site that refused us is left alone by the next run for as long, and its neighbours are asked."""
    first = verify(lab, ["ada@alone.lab"], policies=SLOW_BREAKER, stop_when=lambda v: bool(v.watch().paused))
    assert not first.done
    second = verify(lab, ["nobody@alone.lab", "ada@calm-01.lab"], policies=SLOW_BREAKER, deadline_s=0.6)
    assert second.log.sessions("alone.lab") == []
    assert second.reasons == {"nobody@alone.lab": "deadline_exceeded", "ada@calm-01.lab": "rcpt_ok"}


def test_who_is_killed_and_started_again_keeps_his_distance(lab, verify):
    """Spaces of sessions and of recipients hold over a kill: what they owe is on disk before anybody is asked."""
    rows, killed = [f"nobody-{n}@calm-02.lab" for n in range(4)], verify.folder / "killed" / "state.db"
    killed.parent.mkdir()
    two = {"per_session": 2, "per_transaction": 2}
    for limits in (
        {"sessions": {"concurrency": 1, "rate": "2/min", "burst": 1}, "recipients": two},
        {"recipients": {"rate": "2/min", **two}},
    ):

        def when_asked(verification):
            if not verification.counts().get("mailbox_not_found"):
                return False
            state = verification.request.state
            with closing(sqlite3.connect(state)) as source, closing(sqlite3.connect(killed)) as copy:
                source.backup(copy)  # as a kill would leave it
            return True

        first = verify(lab, rows, policies={"default": HASTE["default"] | limits}, stop_when=when_asked)
        assert not first.done
        again = {"policies": {"default": HASTE["default"] | limits}, "state": killed, "deadline_s": 0.5}
        second = verify(lab, ["other@calm-02.lab", "ada@calm-03.lab"], **again)
        assert (len(second.log.sessions("calm-02.lab")), len(second.log.sessions("calm-03.lab"))) == (0, 1)
        killed.unlink()
        first.state.unlink()


def test_a_wall_clock_that_jumps_moves_no_limit(lab, verify, monkeypatch):
    """A day ahead, a day back, at every look: spaces, budgets and ladders go by the monotonic clock."""
    real, jumps = time.time, itertools.cycle([0.0, 86_400.0, -86_400.0, 3_600.0])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    limits = {
        "sessions": {"concurrency": 1, "rate": "4/s", "burst": 1},
        "recipients": {"rate": "100/s", "per_session": 2, "per_transaction": 2},
        "refusals": {"per_session": 2, "rate": "6/h"},
    }
    rows = [f"nobody-{n}@calm-04.lab" for n in range(12)]
    run = verify(lab, rows, policies={"default": HASTE["default"] | limits}, deadline_s=4.0)
    starts = [at for (at,) in run.query("SELECT at FROM attempts WHERE kind = 'connect' ORDER BY seq")]
    assert sorted(Counter(run.reasons.values()).items()) == [("deadline_exceeded", 6), ("mailbox_not_found", 6)]
    assert len(starts) == len(run.log.sessions()) == 3
    assert min(after - before for before, after in itertools.pairwise(starts)) >= 0.25 - 1e-6


def test_a_delay_that_a_reply_names_keeps_the_lane_closed(lab, verify):
    """Try again in 300 s: not after the breaker's fifth of a second, and not by the next run either."""
    run = verify(lab, ["ada@slowed.lab", "bob@slowed.lab"], policies=HASTE, deadline_s=0.8)
    assert len(run.log.sessions("slowed.lab")) == 1
    (kept,) = [state for key, state in saved(run.state).items() if key != "127.0.0.1" and "breaker" in state]
    assert 290 < kept["breaker"]["left"] <= 300
    assert kept["pace"]["cut"] < 5


def test_a_machine_without_a_way_out_says_so(lab, verify):
    """Six sites in different networks time out: one sentence, and no seventh is tried."""
    with pytest.raises(PortClosed, match=r"Port \d+ is closed here.*--no-connect"):
        verify(lab, [f"ada@far-{n}.lab" for n in range(1, 8)], policies=HASTE)


def test_a_few_dead_sites_at_the_head_of_a_list_stop_nothing(lab, verify):
    """As long as nobody connected few are tried; then all are."""
    run = verify(lab, [*(f"ada@far-{n}.lab" for n in range(1, 5)), "ada@calm-01.lab"], policies=HASTE)
    assert run.row("ada@calm-01.lab")["reason"] == "rcpt_ok"
    assert {run.reasons[f"ada@far-{n}.lab"] for n in range(1, 5)} == {"connect_timeout"}


def test_a_tail_of_dead_hosts_is_no_closed_port(lab, verify):
    """26 sites in a row time out, and who answered last is asked once more: the run ends as it should."""
    rows = ["ada@calm-01.lab", *(f"ada@tail-{n:02}.lab" for n in range(1, 27))]
    run = verify(lab, rows, policies=HASTE)
    assert set(run.reasons.values()) == {"rcpt_ok", "connect_timeout"}
    assert len(run.log.sessions("mx.calm-01.lab")) > 1
    assert run.log.recipients().count("ada@calm-01.lab") == 1


@pytest.mark.parametrize(
    ("domain", "reason", "sessions"),
    [("mute.lab", "connect_timeout", 10), ("forgotten.lab", "mailbox_not_found", 300), ("patient.lab", "rcpt_ok", 300)],
)
def test_a_dead_or_greylisting_domain_of_a_thousand_opens_nothing_and_ends(
    lab, verify, addresses_of, domain, reason, sessions
):
    """Hosts that nobody reaches, "user unknown" to everybody, a greylist: no breaker moves, and all are answered."""
    ladders = {"greylist": ["1s", "1s", "1s"], "tempfail": ["0.1s"], "give_up": "1m"}
    quick = {"default": {"timeouts": HASTE["default"]["timeouts"], "retry": ladders}}
    run = verify(lab, [*addresses_of(domain, 1000), "ada@calm-01.lab"], policies=quick)
    assert run.reasons == dict.fromkeys(addresses_of(domain, 1000), reason) | {"ada@calm-01.lab": "rcpt_ok"}
    assert "engine_breaker_transitions_total{" not in page(run.verification.metrics).decode()
    assert len(run.log.sessions()) <= sessions


def test_a_site_that_refused_and_now_accepts_everybody_loses_its_facts(lab, verify):
    """The tripwire: its control is asked again after many acceptances; what is provisional then is not confirmed."""
    first = verify(lab, ["u0001@fickle.lab", "ada@beside.lab", "nobody@beside.lab"])
    assert set(first.reasons.values()) == {"rcpt_ok", "mailbox_not_found"}
    lab.set("fickle", replies={"unknown": "250 2.1.5 Ok"})
    second = verify(lab, [f"u{n:04}@fickle.lab" for n in range(2, 161)], state=first.state)
    assert second.having("reason", "accepted_unconfirmed")
    assert len(second.controls("fickle.lab")) == 1
    with closing(sqlite3.connect(first.state)) as connection:
        (facts,) = connection.execute("SELECT count(*) FROM facts WHERE answer = 'refuses'").fetchone()
        events = connection.execute("SELECT kind, detail FROM events").fetchall()
    assert facts == 0
    assert [(kind, json.loads(detail)["domain"]) for kind, detail in events] == [("silent_accept", "fickle.lab")]


def test_how_many_connections_a_site_takes_is_learnt_and_kept(lab, verify):
    """Two are open when it says that they are too many: from then on it sees one, in the next run too."""
    calls = {"default": {"sessions": {"concurrency": 2, "rate": "50/s", "burst": 2}, "breaker": {"open": "0.2s"},
                         "recipients": {"rate": "100/s", "per_transaction": 1, "per_session": 3},
                         "refusals": {"per_session": 50, "rate": "1000/h"}, "retry": {"give_up": "1s"}}}  # fmt: skip
    rows = [f"u{n:04}@crowded.lab" for n in range(1, 21)] + [f"u{n:04}@crowded-too.lab" for n in range(1, 21)]
    lab.set("crowded", replies={"rcpt": "421 4.7.0 Too many concurrent SMTP connections from your address"})
    first = verify(lab, rows, policies=calls)
    with closing(sqlite3.connect(f"file:{first.state}?mode=ro", uri=True)) as state:
        learnt = state.execute("SELECT name, value FROM learned WHERE name = 'connections'").fetchall()
    assert learnt == [("connections", 1.0)]
