"""What SIGUSR1 prints of lanes: a line each, and why it waits."""

from __future__ import annotations

import pytest

from engine.cli.lanes import SHOWN, lane_lines
from engine.core.grammar import Range, Rate
from engine.core.lane import Lane
from engine.core.policy import Policy, Recipients, Refusals, Sessions
from engine.core.queue import Item

POLICY = Policy(
    name="lab",
    sessions=Sessions(concurrency=2, rate=Rate(60, 60.0), burst=2),
    recipients=Recipients(rate=Range(Rate(6, 60.0), Rate(12, 60.0)), per_session=10, per_transaction=4),
    refusals=Refusals(per_session=5, rate=Range(Rate(8, 3600.0), Rate(8, 3600.0))),
)


def lane(key: str = "mx.one.test", waiting: int = 6) -> Lane:
    """A lane with so many addresses of one domain."""
    made = Lane(key, POLICY)
    made.queue.domain("one.test", 1, "mx.one.test")
    for number in range(waiting):
        made.queue.add(Item(number, f"u{number}", "one.test"), 0.0)
    return made


def told(one: Lane, now: float = 0.0) -> str:
    """The line of one lane."""
    (line,) = lane_lines([one], now)[2:]
    return line


def blocked(one: Lane) -> None:
    one.breaker.open(0.0, "ip_blocklisted")


def spent(one: Lane) -> None:
    one.budget.spend(0.0, 8)


def begun(one: Lane) -> None:
    assert one.start(0.0) is not None


def doubted(one: Lane) -> None:
    one.brake.trip(0.0)


def delayed(one: Lane) -> None:
    items = one.queue.take(one.queue.domains["one.test"], 6)
    one.queue.add(items[0], 0.0, 1200.0)


WHY = {
    "closed to us after ip_blocklisted": blocked,
    "its refusal budget is spent": spent,
    "an open session asks first contact": begun,
    "a positive control comes first": doubted,
    "waits for another attempt": delayed,
}


@pytest.mark.parametrize("why", WHY)
def test_a_lane_says_why_it_waits(why: str) -> None:
    """In words that a mail engineer can act on."""
    one = lane()
    WHY[why](one)
    assert why in told(one)


def test_a_line_has_the_numbers_of_its_lane() -> None:
    """Breaker, next session, sessions of those allowed, waiting, budget, pace of its ceiling; no reason, no why."""
    assert [cell.strip() for cell in told(lane()).split("  ") if cell.strip()] == [
        "mx.one.test", "closed", "now", "0 of 2", "6", "1", "0% of 8 in 60 min", "6 of 12 a min",
    ]  # fmt: skip
    one = lane()
    delayed(one)
    assert "in 20 min" in told(one)


def test_the_fullest_lanes_come_first_and_the_rest_is_counted() -> None:
    """A run with thousands of lanes prints a page, not a book."""
    lanes = [lane(f"mx{number}.test", waiting=number) for number in range(SHOWN + 7)]
    lines = lane_lines(lanes, 0.0)
    assert lines[0].startswith(f"engine: {SHOWN + 7} lanes in memory, {sum(range(SHOWN + 7))} addresses")
    assert lines[2].startswith(f"mx{SHOWN + 6}.test ")
    assert lines[-1] == "and 7 lanes more"
    assert len(lines) == SHOWN + 3


def test_long_keys_do_not_push_the_table_off_the_screen() -> None:
    """A site of many hosts is cut."""
    assert len(told(lane("mx.one.test," * 40))) < 200
