"""Laws of lane limits that are ordered: they bind within seconds, outlive a run, end by themselves, and are audited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine.core.grammar import Rate
from engine.core.identity import Identity
from engine.flow.lane_limits import binds, in_force, limit_of, place_limit, place_reset, read_limits, words
from engine.lab.process import LabProcess
from engine.store.state import LIMIT, RESET, Order, State
from engine.store.writer import Writer

SPEC = {
    "personas": {"sluggish": {"delay": {"rcpt": "20ms"}, "pipelining": False, "starttls": False}},
    "hosts": {"mx.wide.lab": "sluggish"},
    "domains": {
        "slow.lab": {"persona": "sluggish", "mailboxes": [f"u{n:04}" for n in range(1, 401)]},
        "wide-{1..8}.lab": {
            "persona": "sluggish", "mx": ["mx.wide.lab"], "mailboxes": [f"u{n:04}" for n in range(1, 41)]
        },
    },
}  # fmt: skip
FAST = {"recipients": {"per_transaction": 1, "per_session": 1000}, "sessions": {"concurrency": 1}}
JITTER_S = 0.05
WITHIN_S = 2.0  # "within seconds": the holder looks once a second
WHY = "complaint, ticket 4711"


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Who orders, from another writer than the run's."""
    with Writer() as writer:
        yield Desk(State(writer, tmp_path / "state" / "state.db"))


@dataclass
class Desk:
    """Places orders at moments of a run; `at` are those moments, on the clock of the lab's log."""

    state: State
    at: list[float] = field(default_factory=list)

    def limit(self, provider: str = "default", *, lasts_s: float | None = None, **given: Any) -> int:
        now = time.time()
        self.at.append(time.monotonic())
        until = None if lasts_s is None else now + lasts_s
        return place_limit(self.state, provider, by="Ann", why=WHY, at=now, until=until, **given)

    def reset(self, provider: str = "default") -> int:
        self.at.append(time.monotonic())
        return place_reset(self.state, provider, by="Ben", why="settled with them", at=time.time())

    def when(self, count: int, act: Callable[[], Any], *, then_for_s: float) -> Callable[[Any], bool]:
        """`stop_when` of a run: act when so many addresses have a reason, stop so long after it."""
        acted: list[float] = []

        def watch(verification) -> bool:
            if not acted and verification._journal is not None:
                counts = verification.counts()
                if sum(number for reason, number in counts.items() if reason) >= count:
                    act()
                    acted.append(time.monotonic())
            return bool(acted) and time.monotonic() > acted[0] + then_for_s

        return watch


def spaced(moments: list[float], gap_s: float) -> bool:
    """Whether they are that far apart, but for the machine's jitter."""
    return all(later - earlier >= gap_s - JITTER_S for earlier, later in pairwise(moments))


def audited(run) -> list[str]:
    return [note for (note,) in run.query("SELECT note FROM attempts WHERE kind = 'order' ORDER BY seq")]


# --- a run that is at work


def test_a_limit_binds_a_running_engine_and_the_next_one(lab, verify, desk, addresses_of) -> None:
    """As fast as the server answers, then one a second; a resume starts under it; a reset gives the policy back."""
    rows = list(addresses_of("slow.lab", 160))
    order = lambda: desk.limit(most=Rate(1, 1.0))  # noqa: E731
    first = verify(
        lab, rows, policies={"default": FAST}, output="out.jsonl", stop_when=desk.when(20, order, then_for_s=3.6)
    )
    assert not first.done
    after = [one.t for one in first.log.asked if one.t > desk.at[0] + WITHIN_S]
    before = [one.t for one in first.log.asked if one.t < desk.at[0]]
    assert len(before) >= 20
    assert before[-1] - before[0] < 5.0
    assert 1 <= len(after) <= 3
    assert spaced(after, 1.0)
    (begun,) = audited(first)
    assert begun == f"lane limit 1: default at most 1/s, until it is lifted, by Ann: {WHY}"
    assert desk.state.order(1).answer == {"identity": "127.0.0.1", "job": first.verification.job.id, "lanes": 1}

    ((known,),) = first.query("SELECT count(*) FROM addresses WHERE reason != ''")
    second = verify(
        lab, rows, policies={"default": FAST}, output="out.jsonl", resume=True,
        stop_when=desk.when(known + 3, desk.reset, then_for_s=60),
    )  # fmt: skip
    assert second.done
    narrow = [one.t for one in second.log.asked if one.t < desk.at[1]]
    assert len(narrow) >= 3
    assert spaced(narrow, 1.0)
    freed = [one.t for one in second.log.asked if one.t > desk.at[1] + WITHIN_S]
    assert len(freed) > 20
    assert freed[-1] - freed[0] < 15
    assert audited(second) == [begun, begun, "lane limit 1 lifted: default at most 1/s, by Ben: settled with them"]


def test_a_limit_ends_when_its_time_is_over(lab, verify, desk, addresses_of) -> None:
    """Placed while no engine ran it binds from the first session; after its time the policy's own numbers hold."""
    number = desk.limit(most=Rate(1, 1.0), lasts_s=2.0)
    run = verify(lab, addresses_of("slow.lab", 60), policies={"default": FAST})
    assert run.done
    over = desk.at[0] + 2.0
    assert spaced([one.t for one in run.log.asked if one.t < over], 1.0)
    assert len([one for one in run.log.asked if one.t > over]) >= 55
    notes = audited(run)
    assert [note.split(":")[0] for note in notes] == [f"lane limit {number}", f"lane limit {number} over"]
    assert read_limits(desk.state.path, time.time()) == []


def test_a_lowered_number_of_sessions_is_reached_within_seconds(lab, verify, desk) -> None:
    """Sessions beyond it say QUIT after their transaction; from then on no more are open together."""
    rows = [f"u{n:04}@wide-{d}.lab" for n in range(1, 41) for d in range(1, 9)]
    policies = {"default": {**FAST, "sessions": {"concurrency": 6}}}
    order = lambda: desk.limit(concurrency=1)  # noqa: E731
    run = verify(lab, rows, policies=policies, stop_when=desk.when(40, order, then_for_s=3))
    opened, most_before, most_after = 0, 0, 0
    for row in run.log.rows:
        opened += {"connect": 1, "close": -1}.get(row["event"], 0)
        if row["t"] < desk.at[0]:
            most_before = max(most_before, opened)
        elif row["t"] > desk.at[0] + WITHIN_S:
            most_after = max(most_after, opened)
    assert most_before > 1
    assert most_after == 1


def test_a_limit_of_others_and_a_wide_one_change_nothing(lab, verify, desk, addresses_of) -> None:
    """Another identity's, another provider's, one above the policy: the run is as fast and as narrow as without."""
    desk.limit(identity="somebody-else", most=Rate(1, 60.0))
    desk.limit("gmail", most=Rate(1, 60.0))
    desk.limit(most=Rate(100, 1.0), concurrency=50)
    policies = {"default": {**FAST, "recipients": {"rate": "10/s", "per_transaction": 1, "per_session": 100}}}
    run = verify(lab, addresses_of("slow.lab", 15), policies=policies)
    asked = [one.t for one in run.log.asked]
    assert spaced(asked[1:], 0.1)
    assert asked[-1] - asked[0] < 6.0
    assert run.log.peak("slow.lab") == 1
    assert len(audited(run)) == 2  # gmail's binds this identity too, and waits for its lanes


# --- which orders hold


def order(
    number: int, kind: str = LIMIT, provider: str = "gmail", identity: str = "", until: float | None = None
) -> Order:
    arguments = (
        {"provider": provider, "rate": "6/min", "concurrency": None} if kind == LIMIT else {"provider": provider}
    )
    return Order(number, identity, 0.0, "Ann", WHY, kind, arguments, until)


@pytest.mark.parametrize(
    ("orders", "held"),
    [
        ([order(1), order(2)], [1, 2]),
        ([order(1), order(2, RESET), order(3)], [3]),
        ([order(1, provider="outlook"), order(2, RESET)], [1]),
        ([order(1, identity="a"), order(2, identity="b"), order(3), order(4, RESET, identity="a")], [2, 3]),
        ([order(1, identity="a"), order(2), order(3, RESET)], []),
        ([order(1, until=99.0), order(2, until=100.0), order(3, until=101.0)], [3]),
    ],
)
def test_a_limit_holds_until_it_is_over_or_lifted(orders: list[Order], held: list[int]) -> None:
    """A reset lifts what came before it: of one identity those placed for it, of none all."""
    assert [each.id for each in in_force(orders, 100.0)] == held


def test_an_identity_is_meant_by_name_or_address() -> None:
    """And by nothing at all, which means every one."""
    identity = Identity("node-1", "probe.example.net", "probe@example.net", public_v4="203.0.113.7")
    assert [binds(order(1, identity=name), identity) for name in ("", "node-1", "203.0.113.7", "node-2")] == [
        True, True, True, False
    ]  # fmt: skip


def test_an_order_says_what_it_narrows(desk) -> None:
    """What was placed is what is read back, by the engine and by a command line that only reads."""
    number = desk.limit("gmail", identity="node-1", most=Rate(6, 60.0), concurrency=1)
    (found,) = read_limits(desk.state.path, time.time())
    assert words(found) == "gmail at most 6/min and 1 session at once"
    assert (limit_of(found).rate, limit_of(found).concurrency, found.id) == (Rate(6, 60.0), 1, number)
    assert desk.state.take_orders("node-1", time.time(), again=True) == []


def test_without_a_state_no_limit_is_in_force(tmp_path: Path) -> None:
    """Nor does looking make the file."""
    assert read_limits(tmp_path / "state.db", 0.0) == []
    assert not (tmp_path / "state.db").exists()
