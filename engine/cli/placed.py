"""What commands that place orders share: who orders, until when, in which state, and whether an engine has obeyed."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import gevent

from engine.core.grammar import GrammarError, duration
from engine.flow.job import WrongUse
from engine.flow.lane_limits import moment
from engine.settings import Configuration
from engine.store.lock import holders
from engine.store.state import State, default_path

PATIENCE_S = 4.0  # engines at work look for orders once a second
LOOK_EVERY_S = 0.1
_FILE = click.Path(dir_okay=False, path_type=Path)

state_option = click.option("--state", type=_FILE, help="The identity state; this machine's, if not given.")
config_option = click.option("--config", type=_FILE, help="The settings file.")
by_option = click.option(
    "--by", metavar="WHO", default="", help="Who orders it; the user at the keyboard, if not given."
)
until_option = click.option(
    "--until", metavar="TIME", help="A duration (2h) or a time (RFC 3339); until it is lifted, if not given."
)


def obeyed(state: State, number: int, answer: Callable[[dict[str, Any]], str]) -> str:
    """Wait a little for an engine at work to say that it obeys; `answer` puts what it tells into words."""
    if not holders(state.folder):
        return "No engine is at work here; the next one is bound by what is in force when it starts."
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        order = state.order(number)
        if order is not None and order.answer is not None:
            told = order.answer
            return f"Obeyed by the job {told['job']} under {told['identity']}; {answer(told)}."
        gevent.sleep(LOOK_EVERY_S)
    return f"No engine at work has obeyed within {PATIENCE_S:.0f} s; those whom it concerns still will."


def state_path(state: Path | None, settings: Configuration) -> Path:
    """Where the identity state is: by flag, environment, settings file, or the user's own place."""
    given = settings.option("state", state)
    return Path(given) if given else default_path(settings.environ)


def until_moment(text: str | None, now: float) -> float | None:
    """The moment that `--until` names, in Unix seconds; raises WrongUse for one that is over."""
    if text is None:
        return None
    try:
        return now + duration(text)
    except GrammarError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUse(f"--until {text}: expected a duration, as 2h, or a time, as 2026-11-22T20:00:00Z.") from None
    ends = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if ends <= now:
        raise WrongUse(f"--until {text}: that is over already; it is {moment(now)}.")
    return ends


def user() -> str:
    """Who sits at the keyboard."""
    return os.environ.get("SUDO_USER") or getpass.getuser()
