"""The crew: places, reuse of greenlets, and what is left when a job is cut short or fails."""

from __future__ import annotations

from functools import partial

import gevent
import pytest
from gevent.event import Event

from engine.flow.crew import Crew


def test_a_place_is_free_again_when_its_job_ends() -> None:
    """So many are at work as there are places, and `ended` is called when one of them is free."""
    free: list[int] = []
    crew = Crew(2, lambda: free.append(crew.free))
    go = Event()
    crew.start(go.wait)
    crew.start(go.wait)
    assert (len(crew), crew.free) == (2, 0)
    with pytest.raises(RuntimeError, match="All 2 places"):
        crew.start(go.wait)
    go.set()
    assert crew.join(5.0)
    assert (len(crew), crew.free, free) == (0, 2, [1, 2])
    crew.dismiss()


def test_a_greenlet_takes_one_job_after_the_other() -> None:
    """Who has ended a job takes the next one; a new greenlet begins only where all are at work."""
    crew, seen = Crew(10), []
    for _ in range(3):
        crew.start(lambda: seen.append(gevent.getcurrent()))
        assert crew.join(5.0)
    assert len(seen) == 3
    assert len(set(seen)) == 1
    crew.dismiss()
    gevent.sleep(0)
    assert seen[0].dead


def test_a_job_may_start_the_next_one() -> None:
    """`ended` may start a job at once: the place is free, and the greenlet too."""
    left, seen = [3, 2, 1], []

    def ended() -> None:
        if left:
            crew.start(partial(seen.append, left.pop()))

    crew = Crew(1, ended)
    crew.start(partial(seen.append, 0))
    while left or crew:
        assert crew.join(5.0)
        gevent.sleep(0)
    assert seen == [0, 1, 2, 3]
    crew.dismiss()


def test_whoever_is_killed_leaves_his_place() -> None:
    """A job that is cut short cleans up, and one that never got its turn leaves its place too."""
    cleaned: list[str] = []

    def wait() -> None:
        try:
            Event().wait(60.0)
        finally:
            cleaned.append("cleaned")

    crew = Crew(3)
    crew.start(lambda: None)
    assert crew.join(5.0)
    crew.start(wait)  # by the one who is idle
    gevent.sleep(0)
    crew.start(wait)
    gevent.sleep(0)
    crew.start(wait)  # has not begun when all are killed
    assert len(crew) == 3
    crew.kill(5.0)
    assert (len(crew), crew.free, cleaned) == (0, 3, ["cleaned", "cleaned"])
    crew.start(lambda: cleaned.append("after"))
    assert crew.join(5.0)
    assert cleaned[2:] == ["after"]
    crew.dismiss()


def test_an_error_that_escapes_takes_no_place_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A job that raises ends its greenlet; its place is free, and the next job is done."""
    crew, seen = Crew(1), []
    crew.start(lambda: 1 / 0)
    assert crew.join(5.0)
    crew.start(lambda: seen.append("done"))
    assert crew.join(5.0)
    assert seen == ["done"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    crew.dismiss()
