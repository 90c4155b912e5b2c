"""What commands that place orders share: whom they mean, until when, why, and whether an engine has obeyed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import gevent

from engine.core.grammar import GrammarError, duration
from engine.core.identity import Identity
from engine.flow.job import WrongUse
from engine.flow.lane_limits import moment
from engine.identity_file import find_identities
from engine.settings import SettingsError, load_configuration
from engine.store.lock import holders
from engine.store.state import State

PATIENCE_S = 4.0  # engines at work look for orders once a second
LOOK_EVERY_S = 0.1

until_option = click.option(
    "--until", metavar="TIME", help="A duration (2h) or a time (RFC 3339); until it is lifted, if not given."
)


def _told(_: click.Context, __: click.Parameter, text: str) -> str:
    if not text.strip():
        raise WrongUse("--why is empty: say for what reason, so that the audit can tell.")
    return text.strip()


why_option = click.option(
    "--why", required=True, metavar="TEXT", callback=_told,
    help="For what reason; goes into the audit of each job it binds.",
)  # fmt: skip


def identity_named(text: str) -> str:
    """The name or address that means an identity, an address as it is kept."""
    if not text.strip():
        raise WrongUse("An identity is named by its name or its public address.")
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        return text.strip()


def configured(file: Path | None, config: Path | None) -> tuple[Identity, ...]:
    """The identities of the file or the settings; an order needs none."""
    try:
        return find_identities(load_configuration(config), file=file)
    except SettingsError:
        if file is not None:
            raise
        return ()


def strange(name: str, known: Sequence[Identity]) -> str:
    """A sentence about a name that none of these identities has; empty where one has it, or where there are none."""
    if not known or any(name in (each.name, *each.addresses) for each in known):
        return ""
    names = ", ".join(f"{each.name} ({', '.join(each.addresses)})" for each in known)
    return f"No identity of the settings is named {name!r}: there {'is' if len(known) == 1 else 'are'} {names}."


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
