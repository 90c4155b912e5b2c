"""When things leave: limits hold at the moment of sending, however long a server takes, and the audit has it."""

from __future__ import annotations

from itertools import groupby

import pytest

from engine.flow.desk import Desk
from engine.flow.run import STARTS_AT_ONCE
from engine.lab.process import LabProcess
from engine.metrics import Metrics

RATE, BURST = 20, 3  # recipients a second, and in a transaction
SPEC = {
    "personas": {"prompt": {"starttls": False}, "late": {"starttls": False, "delay": {"connect": "400ms"}}},
    "hosts": {"fast.microsoft.lab": "prompt", "slow.microsoft.lab": "late", "dead.pair.lab": "refusing"},
    "domains": {
        "fast.lab": {"mx": ["fast.microsoft.lab"], "mailboxes": []},
        "slow.lab": {"mx": ["slow.microsoft.lab"], "mailboxes": []},
        "pair.lab": {"mx": ["10 dead.pair.lab", "20 fast.microsoft.lab"], "mailboxes": []},
    },
    "generate": {"domains": 100, "per_domain": 1, "prefix": "many"},
}


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


def test_a_greeting_that_comes_late_lets_no_window_hold_more(lab, verify):
    """One lane, a host that greets at once and one that takes 400 ms: what leaves keeps the rate all the same."""
    policy = {
        "scope": "provider",
        "across_sites": None,
        "sessions": {"concurrency": 6, "rate": "100/s", "burst": 10},
        "recipients": {"rate": f"{RATE}/s..{RATE}/s", "per_session": 6, "per_transaction": BURST},
    }
    rows = [f"u{number}@{name}.lab" for number in range(20) for name in ("fast", "slow")]
    run = verify(lab, rows, policies={"microsoft-like": policy})
    assert set(run.reasons.values()) == {"mailbox_not_found"}
    moments = [at for (at,) in run.query("SELECT at FROM attempts WHERE kind = 'rcpt' ORDER BY at")]
    assert len(moments) == len(rows)
    # ceil(B - 1 + r*T) starts in each half-open window of length T, in one pass over all windows
    levels = [number - RATE * at for number, at in enumerate(moments)]
    assert max(level - min(levels[: number + 1]) for number, level in enumerate(levels)) <= BURST - 1 + 1e-3


def test_every_connection_is_in_the_audit(lab, verify):
    """Those that came about and those that did not, with the host that was dialled."""
    run = verify(lab, ["u1@pair.lab", "u2@fast.lab"])
    connects = run.query("SELECT mx_host, reason FROM attempts WHERE kind = 'connect'")
    assert set(connects) == {("dead.pair.lab", "connect_refused"), ("fast.microsoft.lab", "")}
    assert sum(host == "fast.microsoft.lab" for host, _ in connects) == len(run.log.sessions("fast.microsoft.lab"))


def test_sessions_that_start_let_others_have_their_turn(lab, verify, monkeypatch, plain_python):
    """A hundred could start at once: no more than a few do before those that were started dial."""
    events = []
    count, in_turn = Metrics.lane_waited, Desk.in_turn

    def started(*arguments):
        events.append("start")
        count(*arguments)

    def dials(*arguments):
        events.append("dial")
        return in_turn(*arguments)

    monkeypatch.setattr(Metrics, "lane_waited", started)
    monkeypatch.setattr(Desk, "in_turn", dials)
    run = verify(lab, [f"user1@many{number:05}.lab" for number in range(1, 101)], concurrency=200)
    assert run.done
    assert events.count("start") >= 100
    in_a_row = [len(list(group)) for event, group in groupby(events) if event == "start"]
    assert max(in_a_row) <= STARTS_AT_ONCE
