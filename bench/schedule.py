"""Cost of the scheduler's decisions alone, from 10 to 100,000 lanes: us a decision, and how it grows.

Lanes with work and limits that bind, time as data: each decision starts a session or says how long to wait; sessions
end after a second. No socket, no store, no gevent: the core as it is.

    python -m bench schedule [--short] [--decisions 20000]
"""

from __future__ import annotations

import gc
import heapq
import math
import time

from bench.measure.plots import LINES
from bench.measure.report import Report, options
from engine.core.caps import Caps
from engine.core.control import ControlAnswer
from engine.core.grammar import Range, Rate
from engine.core.lane import Lane, Visit
from engine.core.policy import Policy, PolicySet, Recipients, Refusals, Sessions
from engine.core.queue import Item
from engine.core.schedule import Schedule

SIZES = (10, 100, 1_000, 10_000, 100_000)
LIMIT_US = 15.0
ROUNDS = 3
ITEMS = 20  # addresses of each lane; it gets more as they are asked
SESSION_S = 1.0
_MANY = Rate(1_000_000, 3600.0)
POLICY = Policy(
    "default",
    sessions=Sessions(2, Rate(10, 60.0), 1),
    recipients=Recipients(Range(Rate(60, 60.0), Rate(60, 60.0)), 10, 1),
    refusals=Refusals(10, Range(_MANY, _MANY)),
)


def main(arguments: list[str]) -> int:
    """Run it and report."""
    parser = options("schedule", __doc__)
    parser.add_argument("--decisions", type=int, help="counted at each size; 20000, or 5000 with --short")
    chosen = parser.parse_args(arguments)
    decisions = chosen.decisions or (5000 if chosen.short else 20000)
    report, costs = Report("schedule"), {}
    for size in SIZES:
        costs[size] = min(cost(size, decisions) for _ in range(1 if chosen.short else ROUNDS)) * 1e6
        report.figure("us a decision", costs[size], per=f"{size:,} lanes")
        report.figure("of that at 10", costs[size] / costs[SIZES[0]], "x", per=f"{size:,} lanes")
    report.at_most("us a decision, at the size that costs most", max(costs.values()), LIMIT_US, "us")
    # log2(100,000) is 5 times log2(10): growth with the logarithm of the lanes is at most that
    grown = costs[SIZES[-1]] / costs[SIZES[0]]
    report.at_most("growth from 10 to 100,000 lanes", grown, math.log2(SIZES[-1]) / math.log2(SIZES[0]), "x")
    points = {"engine": list(costs.items())}
    report.plot("cost", "A decision", "lanes", "us", LINES, points, logarithmic=True, limit=LIMIT_US)
    report.note("a decision is Schedule.next with what it charges; the end of a session (Schedule.touch) is not in it")
    return report.finish(chosen)


def filled(size: int) -> Schedule:
    """So many lanes with work, ready to decide."""
    schedule, caps = Schedule(), Caps(PolicySet((), POLICY))
    for number in range(size):
        key = f"mx.d{number}.lab"
        lane = caps.lane(key, POLICY, [(key, [f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"])])
        domain = lane.queue.domain(f"d{number}.lab", number, key)
        domain.control = ControlAnswer.REFUSES
        _fill(lane, domain.name)
        schedule.add(lane)
        schedule.touch(lane, 0.0)
    return schedule


def cost(size: int, decisions: int) -> float:
    """CPU seconds a decision."""
    schedule = filled(size)
    now, spent, made = 0.0, 0.0, 0
    running: list[tuple[float, int, Visit]] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    warm = -min(decisions, size)  # those of the first round meet lanes that nobody has looked at
    while made < decisions:
        began = time.process_time()
        turn = schedule.next(now)
        took = time.process_time() - began
        warm += 1
        if warm > 0:
            spent += took
            made += 1
        if isinstance(turn, Visit):
            heapq.heappush(running, (now + SESSION_S, made + warm, turn))
            continue
        moments = [entry[0] for entry in running[:1]] + ([turn.until] if turn.until is not None else [])
        now = max(now, min(moments))
        while running and running[0][0] <= now:
            _end(schedule, heapq.heappop(running)[2], now)
    gc.enable()
    gc.unfreeze()
    return spent / made


def _end(schedule: Schedule, visit: Visit, now: float) -> None:
    lane = visit.lane
    lane.settle(visit, visit.first, 0, now)
    if lane.queue.waiting < ITEMS // 2:
        _fill(lane, visit.first.domain.name)
    lane.finish(visit, now)
    schedule.touch(lane, now)


def _fill(lane: Lane, name: str) -> None:
    for number in range(ITEMS):
        lane.queue.add(Item(number, "user", name), 0.0)


if __name__ == "__main__":
    main([])
