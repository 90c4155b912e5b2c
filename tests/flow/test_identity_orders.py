"""Laws of orders about an identity: obeyed within seconds, politely, kept over restarts, lifted, over, and audited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engine.core.identity import Identity, Status
from engine.flow.job import WrongUse
from engine.flow.standing import holding, words
from engine.lab.process import LabProcess
from engine.scrape import page
from engine.store.standing_order import in_force, place_status, strictest
from engine.store.state import IDENTITY, Order, State
from engine.store.writer import Writer

SPEC = {
    "personas": {"sluggish": {"delay": {"rcpt": "20ms"}, "pipelining": False, "starttls": False}},
    "hosts": {"mx.wide.lab": "sluggish"},
    "domains": {
        "slow.lab": {"persona": "sluggish", "mailboxes": [f"u{n:04}" for n in range(1, 401)]},
        "other.lab": {"persona": "sluggish", "mailboxes": [f"u{n:04}" for n in range(1, 401)]},
    },
}  # fmt: skip
# One RCPT a transaction; a session goes on for ten of them.
FAST = {"recipients": {"per_transaction": 1, "per_session": 10}, "sessions": {"concurrency": 1, "rate": "10/s"}}
HASTY = {**FAST, "retry": {"give_up": "2s"}}
ME = Identity("lab", "probe.lab", "probe@probe.lab", public_v4="127.0.0.1")
WITHIN_S = 2.0  # "within seconds": the holder looks once a second
WHY = "listed, ticket 4711"


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@dataclass
class Desk:
    """Places orders at moments of a run; `at` are those moments, on the clock of the lab's log."""

    state: State
    at: list[float] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)

    def order(
        self, status: Status, *, lasts_s: float | None = None, identity: str = "127.0.0.1", by: str = "Ann"
    ) -> int:
        now = time.time()
        self.at.append(time.monotonic())
        until = None if lasts_s is None else now + lasts_s
        return place_status(self.state, identity, status, by=by, why=WHY, at=now, until=until)

    def when(
        self, count: int, *acts: Callable[[], Any], apart_s: float = 0.0, look: Callable[[Any], Any] | None = None
    ):
        """`stop_when` that never stops: act when so many addresses have a reason, and look at what follows."""
        left = list(acts)
        due = [0.0]

        def watch(verification) -> bool:
            if verification._journal is None:
                return False
            if left and time.monotonic() >= due[0]:
                counts = verification.counts()
                if sum(number for reason, number in counts.items() if reason) >= count:
                    left.pop(0)()
                    due[0] = time.monotonic() + apart_s
            elif look is not None and self.at:
                self.shown.append(look(verification))
            return False

        return watch


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Who orders, from another writer than the run's."""
    with Writer() as writer:
        yield Desk(State(writer, tmp_path / "state" / "state.db"))


def audited(run) -> list[str]:
    return [note for (note,) in run.query("SELECT note FROM attempts WHERE kind = 'order' ORDER BY seq")]


def polite(run) -> bool:
    """Whether each session that was let in said QUIT."""
    rows = run.log.rows
    greeted = {row["session"] for row in rows if row["event"] == "command"}
    quit_ = {row["session"] for row in rows if row["event"] == "command" and row["text"].upper() == "QUIT"}
    return greeted == quit_


# --- a run that is at work


@pytest.mark.parametrize("status", [Status.DISABLED, Status.QUARANTINED])
def test_a_stopped_identity_asks_no_more_within_seconds(lab, verify, desk, addresses_of, status) -> None:
    """Open sessions say QUIT, what waits ends `identity_paused` after give_up, and a resume takes it up."""
    rows = list(addresses_of("slow.lab", 200))
    stop = lambda: desk.order(status)  # noqa: E731
    run = verify(lab, rows, policies={"default": HASTY}, output="out.jsonl", stop_when=desk.when(20, stop))
    assert run.done
    assert [one for one in run.log.asked if one.t > desk.at[0] + WITHIN_S] == []
    assert polite(run)
    paused = run.having("reason", "identity_paused")
    assert len(paused) > 100
    assert all(run.row(each)["answered"] is False and run.row(each)["retry"] == "pause" for each in paused)
    ended = [row for row in run.log.rows if row["event"] == "close"][-1]["t"]
    assert ended < desk.at[0] + WITHIN_S
    (note,) = audited(run)
    assert note.startswith(f"identity order 1: {status} by Ann since 2")
    assert note.endswith(f", until it is lifted: {WHY}")
    answer = desk.state.order(1).answer
    assert (answer["identity"], answer["job"]) == ("127.0.0.1", run.verification.job.id)

    desk.order(Status.ENABLED, by="Ben")
    again = verify(lab, rows, policies={"default": HASTY}, output="out.jsonl", resume=True)
    assert again.done
    assert again.having("reason", "identity_paused") == set()
    assert again.having("category", "valid") == set(rows)
    assert not set(again.log.recipients()) & (set(rows) - paused)


def test_a_drained_identity_finishes_what_is_open(lab, verify, desk, addresses_of) -> None:
    """No session starts; the open one goes on to its own end; then the run is over, long before give_up."""
    run = verify(
        lab, addresses_of("slow.lab", 200), policies={"default": {**FAST, "retry": {"give_up": "6h"}}},
        stop_when=desk.when(13, lambda: desk.order(Status.DRAINING)),
    )  # fmt: skip
    assert run.done
    opened = [row["t"] for row in run.log.rows if row["event"] == "connect"]
    assert max(opened) < desk.at[0] + WITHIN_S
    assert polite(run)
    last = run.log.sessions()[-1]
    asked = [
        one for one in run.log.asked if one.session == last and one.recipient in set(addresses_of("slow.lab", 200))
    ]
    assert len(asked) == 10
    assert len(run.having("reason", "identity_paused")) > 100


def test_an_order_that_is_lifted_or_over_lets_the_run_go_on(lab, verify, desk, addresses_of) -> None:
    """A pause of two seconds, once by its time, once by `enabled`: nothing is lost, and the audit tells both."""
    rows = list(addresses_of("slow.lab", 120))
    acts = [
        lambda: desk.order(Status.DISABLED, lasts_s=2.0),
        lambda: desk.order(Status.QUARANTINED, identity="lab"),
        lambda: desk.order(Status.ENABLED, by="Ben"),
    ]
    run = verify(lab, rows, policies={"default": FAST}, stop_when=desk.when(10, *acts, apart_s=3.2))
    assert run.done
    assert run.having("category", "valid") == set(rows)
    notes = audited(run)
    assert notes[0].startswith("identity order 1: disabled by Ann since ")
    assert notes[1] == "identity order 1 over: disabled, its time has passed"
    assert notes[2].startswith("identity order 2: quarantined by Ann since ")
    assert notes[3] == f"identity order 2 lifted: quarantined, by Ben: {WHY}"


def test_it_is_shown_while_it_holds(lab, verify, desk, addresses_of) -> None:
    """/readyz has a line, the metric its state, the progress display a cause."""

    def look(verification) -> tuple[str, str, dict[str, str]]:
        shown = page(verification.metrics).decode()
        line = next((line for line in shown.splitlines() if line.startswith("engine_identity_state{") and
                     'state="quarantined"' in line), "")  # fmt: skip
        return verification.complaint(), line, dict(verification.watch().paused)

    run = verify(
        lab, addresses_of("slow.lab", 100), policies={"default": HASTY},
        stop_when=desk.when(10, lambda: desk.order(Status.QUARANTINED), look=look),
    )  # fmt: skip
    assert run.done
    complaint, line, paused = next(each for each in desk.shown if each[0])
    assert complaint.startswith("the identity lab is quarantined by Ann since ")
    assert line.endswith(" 1.0")
    assert WHY in paused["lab"]


def test_a_check_under_a_held_identity_is_refused_by_its_engine(lab, verify, desk, addresses_of) -> None:
    """It is not left to wait for its time-out."""

    def check() -> None:
        arguments = {"addresses": ["u0001@other.lab"], "mode": "enhanced", "consent": "TICKET-7"}
        desk.state.place_order("127.0.0.1", "check", arguments, by="x", why="check", at=time.time()).wait()

    acts = [lambda: desk.order(Status.QUARANTINED), check]
    verify(lab, addresses_of("slow.lab", 100), policies={"default": {**FAST, "retry": {"give_up": "4s"}}},
           stop_when=desk.when(10, *acts, apart_s=1.5))  # fmt: skip
    answer = desk.state.order(2).answer
    assert answer is not None
    assert answer["error"].startswith("the identity is quarantined by Ann since ")


# --- a run that would begin


@pytest.mark.parametrize("status", [Status.DRAINING, Status.DISABLED, Status.QUARANTINED])
def test_no_run_begins_under_a_held_identity(lab, verify, desk, status) -> None:
    """One sentence names who, when, why, until when, and what lifts it; nothing is sent, no journal is made."""
    desk.order(status, identity="lab", lasts_s=3600.0)
    with pytest.raises(WrongUse) as refused:
        verify(lab, ["u0001@slow.lab"], output="out.jsonl")
    told = str(refused.value)
    word = {Status.DRAINING: "drained"}.get(status, status.value)
    assert told.startswith(f"The identity lab is {word} by Ann since 2")
    assert f": {WHY}; `engine identity enable lab --why TEXT` lifts it." in told
    assert ", until 2" in told
    assert not (verify.folder / "out.jsonl.journal").exists()


def test_others_orders_hold_nobody_else(lab, verify, desk, addresses_of) -> None:
    """Nor does one that is over."""
    desk.order(Status.DISABLED, identity="203.0.113.7")
    desk.order(Status.DISABLED, lasts_s=-1.0)
    assert verify(lab, addresses_of("slow.lab", 2)).done


# --- which orders hold


def order(number: int, status: str, identity: str = "lab", until: float | None = None) -> Order:
    return Order(number, identity, 0.0, "Ann", WHY, IDENTITY, {"status": status}, until)


@pytest.mark.parametrize(
    ("orders", "held"),
    [
        ([], None),
        ([order(1, "draining"), order(2, "quarantined"), order(3, "draining")], 2),
        ([order(1, "disabled"), order(2, "quarantined")], 1),
        ([order(1, "quarantined"), order(2, "quarantined")], 1),
        ([order(1, "disabled"), order(2, "enabled"), order(3, "draining")], 3),
        ([order(1, "disabled"), order(2, "enabled")], None),
        ([order(1, "disabled", until=99.0), order(2, "draining", until=101.0)], 2),
    ],
)
def test_the_strictest_holds_until_it_is_lifted_or_over(orders, held) -> None:
    """A later drain does not loosen a quarantine; `enabled` lifts all before it."""
    found = strictest(in_force(orders, 100.0))
    assert (found.id if found else None) == held


def test_an_order_by_address_is_lifted_by_name(desk) -> None:
    """Both mean the same identity."""
    desk.order(Status.QUARANTINED)
    assert holding(desk.state, ME, time.time()).id == 1
    desk.order(Status.ENABLED, identity="lab")
    assert holding(desk.state, ME, time.time()) is None
    assert [each.id for each in desk.state.standing_orders(time.time())] == [1, 2]
    assert desk.state.take_orders("127.0.0.1", time.time(), again=True) == []


def test_an_order_is_told_in_words() -> None:
    """By whom, since when, until when, and why."""
    told = words(order(1, "draining", until=3600.0))
    assert told == f"drained by Ann since 1970-01-01T00:00:00Z, until 1970-01-01T01:00:00Z: {WHY}"
