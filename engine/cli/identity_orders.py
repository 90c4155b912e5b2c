"""`engine identity drain|disable|quarantine|enable|status`: who may ask, from now on and for how long."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from engine.cli.machine import by_option, config_option, state_option, state_path, user
from engine.cli.placed import configured, identity_named, obeyed, strange, until_moment, until_option, why_option
from engine.cli.tables import folded, gap
from engine.core.identity import Identity, Status
from engine.flow.identity_status import IdentityStatus, OpenListing, read_identities
from engine.flow.lane_limits import moment
from engine.flow.standing import said, words
from engine.settings import load_configuration
from engine.store.standing_order import place_status, status_of
from engine.store.state import State
from engine.store.writer import Writer


@click.command(short_help="Start nothing more under it; what is open finishes.")
@click.argument("identity", metavar="NAME|ADDRESS")
@until_option
@by_option
@why_option
@state_option
@config_option
def drain(**given: Any) -> None:
    """Start no session under an identity any more, within seconds. Open ones come to their own end; then the run ends.

    \b
    Example:
      engine identity drain node-1 --why "kernel update"
    """
    _place(Status.DRAINING, **given)


@click.command(short_help="Stop it at once, until somebody enables it.")
@click.argument("identity", metavar="NAME|ADDRESS")
@until_option
@by_option
@why_option
@state_option
@config_option
def disable(**given: Any) -> None:
    """Stop an identity at once: open sessions say QUIT without asking more, and the run ends."""
    _place(Status.DISABLED, **given)


@click.command(short_help="Stop it at once, and wait for the all-clear.")
@click.argument("identity", metavar="NAME|ADDRESS")
@until_option
@by_option
@why_option
@state_option
@config_option
def quarantine(**given: Any) -> None:
    """Stop an identity at once, as `disable` does; the run waits for an all-clear before it ends what it holds."""
    _place(Status.QUARANTINED, **given)


@click.command(short_help="Lift all orders about an identity.")
@click.argument("identity", metavar="NAME|ADDRESS")
@by_option
@why_option
@state_option
@config_option
def enable(identity: str, by: str, why: str, state: Path | None, config: Path | None) -> None:
    """Lift all orders about an identity, whoever gave them. Its own breaker and limits are not touched."""
    now, settings = time.time(), load_configuration(config)
    path, name = state_path(state, settings), identity_named(identity)
    held = next((each for each in _all(path, configured(None, config), now) if _means(each, name)), None)
    if held is None or not held.orders:
        print(f"No order about {name} is in force.")
        return
    with Writer() as writer:
        opened = State(writer, path)
        number = place_status(opened, name, Status.ENABLED, by=by or user(), why=why, at=now)
        for order in held.orders:
            print(f"identity order {order.id} lifted: {order.identity} was {words(order)}.")
        print(obeyed(opened, number, _answer))


@click.command(short_help="Show how identities stand.")
@click.option("--identity", "file", type=click.Path(dir_okay=False, path_type=Path), help="The identity file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_option
@config_option
def status(file: Path | None, as_json: bool, state: Path | None, config: Path | None) -> None:
    """Show how identities stand: what their file says, the orders in force, who refuses them, what lists them."""
    now = time.time()
    found = _all(state_path(state, load_configuration(config)), configured(file, config), now)
    if as_json:
        for each in found:
            print(json.dumps(_values(each), ensure_ascii=False))
    elif found:
        print("\n".join(line for each in found for line in _lines(each)))
    else:
        print("No identity is set up here, and no order names one; `engine identity init` sets one up.")


def _place(
    wanted: Status, identity: str, until: str | None, by: str, why: str, state: Path | None, config: Path | None
) -> None:
    now, settings = time.time(), load_configuration(config)
    name, ends = identity_named(identity), until_moment(until, now)
    with Writer() as writer:
        opened = State(writer, state_path(state, settings))
        number = place_status(opened, name, wanted, by=by or user(), why=why, at=now, until=ends)
        order = opened.order(number)
        assert order is not None
        lasts = f"until {moment(ends)}" if ends is not None else f"until `engine identity enable {name}` lifts it"
        print(f"identity order {number}: {name} is {said(order)}, {lasts}.")
        if doubt := strange(name, configured(None, config)):
            print(doubt)
        print(obeyed(opened, number, _answer))


def _answer(told: dict[str, Any]) -> str:
    return f"open sessions: {told['sessions']}"


def _all(path: Path, identities: Sequence[Identity], now: float) -> list[IdentityStatus]:
    return read_identities(path, identities, now)


def _means(each: IdentityStatus, name: str) -> bool:
    return name in (each.name, *each.addresses)


def _lines(each: IdentityStatus) -> list[str]:
    title = f"{each.name} ({', '.join(each.addresses)})" if each.addresses else each.name
    rows = [("  status", _status(each))]
    rows += [(f"  order {order.id}", words(order)) for order in each.orders]
    if each.holder is not None:
        rows.append(
            ("  engine", f"process {each.holder.pid}, job {each.holder.job}, since {moment(each.holder.since)}")
        )
    if each.cause:
        rows.append(("  breaker", f"open for {gap(round(each.closed_s))} more after {each.cause}"))
    elif each.answering:
        rows.append(("  breaker", f"closed; {each.refusing} of the last {each.answering} sites refuse it"))
    rows += [
        ("  listed", f"{_list_name(one)}, {one.severity.label}, since {moment(one.since)}") for one in each.listings
    ]
    rows += [("  spent", f"{tokens} of its {name} window") for name, tokens in each.spent]
    return [title, *folded(rows)]


def _status(each: IdentityStatus) -> str:
    if each.configured is None:
        return f"{each.status} (no identity of the settings)"
    return each.status if each.status is each.configured else f"{each.status} (its file says {each.configured})"


def _values(each: IdentityStatus) -> dict[str, Any]:
    """A standing for programs."""
    return {
        "identity": each.name, "addresses": list(each.addresses), "status": each.status,
        "configured": each.configured,
        "orders": [
            {"order": order.id, "identity": order.identity, "status": status_of(order), "since": moment(order.at),
             "until": moment(order.until) if order.until else None, "by": order.by, "why": order.why,
             "obeyed": order.answer}
            for order in each.orders
        ],
        "engine": None if each.holder is None else {"pid": each.holder.pid, "job": each.holder.job},
        "breaker": {"cause": each.cause, "closed_s": round(each.closed_s), "refusing": each.refusing,
                    "answering": each.answering},
        "listings": [asdict(one) | {"severity": one.severity.label, "since": moment(one.since)}
                     for one in each.listings],
        "spent": dict(each.spent),
    }  # fmt: skip


def _list_name(one: OpenListing) -> str:
    return one.list if one.sublist == one.list else f"{one.list}/{one.sublist}"
