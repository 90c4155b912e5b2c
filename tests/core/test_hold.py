"""Laws of a held identity, with time as data."""

from __future__ import annotations

import pytest

from engine.core.hold import Hold
from engine.core.identity import Status

GIVE_UP_S = 3600.0


def held(status: Status, *, until: float | None = None) -> Hold:
    hold = Hold()
    hold.put(status, 100.0, why="by Ann", until=until)
    return hold


@pytest.mark.parametrize(
    ("status", "starts", "stops"),
    [
        (Status.ENABLED, True, False),
        (Status.DRAINING, False, False),
        (Status.DISABLED, False, True),
        (Status.QUARANTINED, False, True),
    ],
)
def test_draining_lets_sessions_finish_and_the_others_stop_them(status, starts, stops):
    """Nothing starts under any of them."""
    assert (held(status).starts, held(status).stops) == (starts, stops)


@pytest.mark.parametrize(
    ("status", "until", "busy", "ending"),
    [
        (Status.ENABLED, None, True, None),
        (Status.DRAINING, None, True, None),
        (Status.DRAINING, None, False, 100.0),
        (Status.DISABLED, None, True, None),
        (Status.DISABLED, None, False, 100.0),
        (Status.DRAINING, 200.0, False, 3700.0),
        (Status.DISABLED, 3700.0, False, 3700.0),
        (Status.DISABLED, 9999.0, False, 100.0),
        (Status.QUARANTINED, None, True, 3700.0),
        (Status.QUARANTINED, 9999.0, False, 3700.0),
    ],
)
def test_what_waits_ends_when_nobody_would_take_it_up(status, until, busy, ending):
    """Drained: with the last session. Quarantined: after give_up. An order that is over sooner is waited for."""
    assert held(status, until=until).ending(GIVE_UP_S, busy=busy) == ending


def test_giving_up_counts_from_the_first_of_orders_in_one_piece():
    """A second order does not begin anew; after a lift it does."""
    hold = held(Status.QUARANTINED)
    hold.put(Status.QUARANTINED, 500.0, why="by Ben")
    assert hold.ending(GIVE_UP_S, busy=False) == 3700.0
    hold.put(Status.ENABLED, 600.0)
    assert hold.ending(GIVE_UP_S, busy=False) is None
    hold.put(Status.QUARANTINED, 700.0)
    assert hold.ending(GIVE_UP_S, busy=False) == 4300.0
