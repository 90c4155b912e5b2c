"""How lanes stand, for a mail engineer who wonders why a run waits: what SIGUSR1 prints.

1. A line a lane, those with most addresses first; after SHOWN of them the rest is counted.
2. It decides nothing and runs in one piece: what it prints is one moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.cli.tables import aligned, gap, hours
from engine.core.brake import Doubt
from engine.core.breaker import BreakerState
from engine.core.lane import Lane

SHOWN = 100
LONGEST_KEY = 48
_HEAD = ("lane", "breaker", "next session", "sessions", "waiting", "domains", "refusals", "pace", "why")
_WAITS_FOR = {
    "refusals.rate": "its refusal budget is spent",
    "recipients.rate": "its rate of recipients allows no more yet",
    "sessions.rate": "its rate of sessions allows no more yet",
    "sessions.concurrency": "as many sessions are open as its policy lets",
    "limits.sessions": "its identity has begun as many sessions as it may",
    "limits.refusals": "its identity's refusal budget is spent",
    "warmup": "its identity has asked as many as it may on this day of its warm-up",
    "breaker.open": "a provider or address that it leads to is closed to us",
    "retry": "all it has waits for another attempt, or at a domain that refuses us",
    "control_rcpt": "a control is being asked",
    "": "it starts next",
}


def lane_lines(lanes: Sequence[Lane], now: float) -> list[str]:
    """The table; `now` is monotonic."""
    waiting, sessions = sum(lane.queue.waiting for lane in lanes), sum(lane.open_sessions for lane in lanes)
    head = f"engine: {len(lanes)} lanes in memory, {waiting} addresses wait there, {sessions} sessions are open"
    if not lanes:
        return [head]
    shown = sorted(lanes, key=lambda lane: (-lane.queue.waiting, lane.key))[:SHOWN]
    lines = [head, *aligned([_HEAD, *(_row(lane, now) for lane in shown)], right=[4])]
    return lines if len(shown) == len(lanes) else [*lines, f"and {len(lanes) - SHOWN} lanes more"]


def _row(lane: Lane, now: float) -> tuple[str, ...]:
    due = lane.ready_at(now)
    budget, pace, held = lane.budget, lane.pace, len(lane.queue.held())
    return (
        lane.key if len(lane.key) <= LONGEST_KEY else f"{lane.key[: LONGEST_KEY - 1]}…",
        lane.breaker.state.value,
        "-" if due is None else "now" if due <= now else f"in {_time(due - now)}",
        f"{lane.open_sessions} of {lane.policy.sessions.concurrency}",
        str(lane.queue.waiting),
        f"{len(lane.queue.domains)}, {held} held" if held else str(len(lane.queue.domains)),
        f"{budget.used_ratio(now):.0%} of {budget.limit} in {gap(budget.window_s)}",
        f"{_rate(pace.rate_per_s)} of {_rate(lane.policy.recipients.rate.ceiling.per_s)} a min",
        _why(lane, now, due),
    )


def _why(lane: Lane, now: float, due: float | None) -> str:
    """What keeps the next session; the first that holds, in the order in which the lane asks."""
    waits_for = lane.waits_for(now)
    match lane.breaker.state:
        case BreakerState.OPEN | BreakerState.HALF_OPEN as state:
            tells = "closed to us" if state is BreakerState.OPEN else "one session tries again"
            return f"{tells} after {lane.breaker.cause}"
        case _ if lane.brake.doubt is Doubt.ASKING:
            return "refusals that rest on nothing: a positive control comes first"
        case _ if due is None and not lane.queue.waiting:
            return "its sessions are open"
        case _ if due is None and waits_for in {"", "control_rcpt", "retry"}:
            return "an open session asks first contact"
        case _ if due is not None and due <= now:
            return ""
    return _WAITS_FOR[waits_for]


def _rate(per_s: float) -> str:
    return f"{60 * per_s:.0f}" if per_s >= 1 / 6 else f"{60 * per_s:.2g}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else hours(seconds / 3600)
