"""`engine lane`: narrow what engines ask of a provider, for a while, without touching a policy file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from engine.cli.machine import by_option, config_option, state_option, state_path, user
from engine.cli.placed import configured, identity_named, obeyed, strange, until_moment, why_option
from engine.cli.tables import limit_lines, limit_values
from engine.core.grammar import GrammarError, rate
from engine.core.limit import narrowed
from engine.core.policy import Policy
from engine.flow.job import WrongUse
from engine.flow.lane_limits import in_force, limit_of, moment, place_limit, place_reset, read_limits, words
from engine.flow.policies import load_policies
from engine.settings import Configuration, load_configuration
from engine.store.state import State
from engine.store.writer import Writer

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)

_policies = click.option(
    "--policies", "directories", multiple=True, metavar="DIR", type=_DIRECTORY,
    help="Policy files over the shipped ones, where the provider is yours; may be given more than once.",
)  # fmt: skip


@click.group()
def lane() -> None:
    """Narrow what engines ask of a provider, at once and for a while."""


@lane.command(short_help="Narrow a provider's lanes, within seconds.")
@click.argument("provider")
@click.option("--identity", default="", metavar="NAME", help="Only under this identity: its name or public address.")
@click.option("--rate", "most", metavar="RATE", help="At most so many sessions and so many recipients, as in 6/min.")
@click.option("--concurrency", type=click.IntRange(1, 1000), metavar="N", help="At most so many sessions at once.")
@click.option("--until", metavar="TIME", help="A duration (2h) or a time (RFC 3339); until it is lifted, if not given.")
@by_option
@why_option
@_policies
@state_option
@config_option
def limit(
    provider: str, identity: str, most: str | None, concurrency: int | None, until: str | None, by: str, why: str,
    directories: Sequence[Path], state: Path | None, config: Path | None,
) -> None:  # fmt: skip
    """Narrow the lanes of PROVIDER: a policy's name, an alias or a mail host name; `default` for all others.

    Engines at work obey within seconds, those to come from their first session on. A limit never widens what the
    policy allows. Several add up: the tightest number holds.

    \b
    Example:
      engine lane limit gmail --rate 6/min --concurrency 1 --until 2h --why "complaint, ticket 4711"
    """
    if most is None and concurrency is None:
        raise WrongUse("Nothing to narrow: give --rate RATE, --concurrency N, or both.")
    now, settings = time.time(), load_configuration(config)
    chosen, ends = _policy(provider, directories, settings), until_moment(until, now)
    identity = identity_named(identity) if identity else ""
    try:
        rate_given = rate(most) if most is not None else None
    except GrammarError as error:
        raise WrongUse(f"--rate: {error}.") from error
    path = state_path(state, settings)
    with Writer() as writer:
        opened = State(writer, path)
        number = place_limit(
            opened, chosen.name, identity=identity, most=rate_given, concurrency=concurrency,
            by=by or user(), why=why, until=ends, at=now,
        )  # fmt: skip
        order = opened.order(number)
        assert order is not None
        lasts = f"until {moment(ends)}" if ends is not None else "until `engine lane reset` lifts it"
        print(f"lane limit {number}: {words(order)}, {lasts}, {_whom(identity)}.")
        if narrowed(chosen, [limit_of(order)]) is chosen:
            print(f"It changes nothing today: the policy of {chosen.name} allows no more than that.")
        print(obeyed(opened, number, _answer))
        obeys = opened.order(number)
        doubt = strange(identity, configured(None, config)) if identity else ""
        if doubt and (obeys is None or obeys.answer is None):
            print(f"{doubt} If one of these was meant: engine lane reset {chosen.name} --identity {identity}")


@lane.command(short_help="List the limits in force.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_option
@config_option
def limits(as_json: bool, state: Path | None, config: Path | None) -> None:
    """List the limits in force: what they narrow, until when, and who ordered them for what reason."""
    found = read_limits(state_path(state, load_configuration(config)), time.time())
    if as_json:
        for order in found:
            print(json.dumps(limit_values(order), ensure_ascii=False))
    elif found:
        print("\n".join(limit_lines(found)))
    else:
        print("No limit is in force: the policies' own numbers hold.")


@lane.command(short_help="Lift a provider's limits.")
@click.argument("provider")
@click.option("--identity", default="", metavar="NAME", help="Only the limits that were given for this identity.")
@by_option
@click.option("--why", default="", metavar="TEXT", help="For what reason; goes into the audit.")
@_policies
@state_option
@config_option
def reset(
    provider: str, identity: str, by: str, why: str, directories: Sequence[Path], state: Path | None,
    config: Path | None,
) -> None:  # fmt: skip
    """Lift all limits of PROVIDER: the policy's own numbers hold again, less what pace and budget have learnt."""
    now, settings = time.time(), load_configuration(config)
    path, identity = state_path(state, settings), identity_named(identity) if identity else ""
    before = read_limits(path, now)
    names = {limit_of(order).provider for order in before}
    name = provider if provider in names else _policy(provider, directories, settings).name
    if not any(limit_of(order).provider == name and identity in ("", order.identity) for order in before):
        print(f"No limit of {name} is in force{f' for {identity}' if identity else ''}.")
        return
    with Writer() as writer:
        opened = State(writer, path)
        number = place_reset(opened, name, identity=identity, by=by or user(), why=why, at=now)
        after = in_force(opened.standing_orders(now), now)
        lifted = [order for order in before if order.id not in {each.id for each in after}]
        for order in lifted:
            print(f"lane limit {order.id} lifted: {words(order)}.")
        print(obeyed(opened, number, _answer))


def _answer(told: dict[str, Any]) -> str:
    return f"lanes at work: {told['lanes']}"


def _policy(provider: str, directories: Sequence[Path], settings: Configuration) -> Policy:
    given = settings.option("policies", tuple(directories), ())
    named = [each.strip() for each in given.split(",") if each.strip()] if isinstance(given, str) else given
    found = load_policies([Path(each) for each in named])
    chosen = found.named(provider)
    if chosen is None:
        known = ", ".join(sorted(one.name for one in (found.default, *found.policies)))
        raise WrongUse(f"No policy is named {provider!r} or claims it as a mail host; there are {known}.")
    return chosen


def _whom(identity: str) -> str:
    return f"under the identity {identity}" if identity else "under every identity"
