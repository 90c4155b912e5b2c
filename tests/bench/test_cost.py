"""What one address costs, in calls and statements: counts are the same on every machine, however busy it is.

A bound is a little above what was counted when it was last set. Who makes the hot path dearer meets it here and says
why; who makes it cheaper sets it lower.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import gevent

from engine.core.classify import classify
from engine.core.dialogue import Dialogue
from engine.core.reasons import Stage
from engine.store.audit import AuditRow
from engine.store.job_tables import SETTLED, NewRow, Outcome, Routed
from engine.store.journal import Journal
from engine.store.writer import Writer

EHLO = b"250-mx.site.lab\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
ACCEPTED = b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n"
REFUSED = b"250 2.0.0 Ok\r\n250 2.1.0 Ok\r\n550 5.1.1 <%b>: Recipient address rejected: User unknown\r\n"


def calls(do: Callable[[], object]) -> int:
    """How many Python functions are called by it, those of C not counted."""
    count = 0

    def see(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    do()  # what is only done the first time is not what an address costs
    before = sys.getprofile()
    sys.setprofile(see)
    try:
        do()
    finally:
        sys.setprofile(before)
    return count


def dialogue(recipient: str) -> None:
    """A session as most are: greeting, EHLO, an accepted recipient, a refused control, QUIT."""
    talk = Dialogue("probe.lab", "probe@probe.lab", tls="never")

    def hear(data: bytes) -> None:
        talk.receive(data)
        while talk.next_event() is not None:
            pass
        talk.to_send()

    hear(b"220 mx.site.lab ESMTP\r\n")
    hear(EHLO)
    talk.ask([recipient])
    talk.to_send()
    hear(ACCEPTED)
    talk.ask(["tavorimule100@site.lab"])
    talk.to_send()
    hear(REFUSED % b"tavorimule100@site.lab")
    talk.quit()
    talk.to_send()
    hear(b"221 2.0.0 Bye\r\n")


def test_a_session_is_a_bounded_number_of_calls() -> None:
    """The dialogue of a session with a control."""
    assert calls(lambda: dialogue("user1@site.lab")) <= 150


def test_a_reply_is_judged_in_a_bounded_number_of_calls() -> None:
    """One acceptance and one refusal that names its recipient."""

    def judge() -> None:
        classify(250, "2.1.5", "Ok", Stage.RCPT, echoed=("user1@site.lab",))
        text = "<user1@site.lab>: Recipient address rejected: User unknown"
        classify(550, "5.1.1", text, Stage.RCPT, echoed=("user1@site.lab",))

    assert calls(judge) <= 38


def test_replies_that_come_together_cost_few_statements(tmp_path: Path) -> None:
    """Twenty addresses answered at once: an update and an audit row each, and what all of them share."""
    seen: list[str] = []

    def trace(conn: sqlite3.Connection) -> None:
        conn.set_trace_callback(lambda statement: seen.append(statement.lstrip("- ").split(maxsplit=1)[0]))

    with Writer() as writer:
        journal = Journal(tmp_path / "job.journal", writer)
        journal.begin("20260101-cafe0001")
        journal.add_rows([NewRow(n, "[]", "", f"user{n}@site.lab", f"user{n}", "site.lab") for n in range(1, 21)])
        journal.route([Routed(1, "mx.site.lab", "192.0.2.1", "mx.site.lab", "default")])
        writer.read(journal._db, trace)
        tickets = [
            journal.record(
                [Outcome(n, SETTLED, {"reason": "rcpt_ok", "code": 250})],
                [AuditRow(1.79e9, "rcpt", "rcpt", 250, reason="rcpt_ok", address=f"user{n}@site.lab", address_id=n)],
            )
            for n in range(1, 21)
        ]
        head = tickets[-1].wait()
        gevent.sleep(0)
    assert head is not None
    assert head.seq == 20
    assert [seen.count(word) for word in ("BEGIN", "SAVEPOINT", "SELECT", "UPDATE", "INSERT", "COMMIT")] == [
        1, 0, 1, 21, 20, 1,
    ]  # fmt: skip
