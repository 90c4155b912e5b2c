"""`engine rbl events`, `close` and `delist`: what block lists hold against us, and the way off them.

1. Reading disturbs nobody; writing goes through the identity state, where a running engine sees it at its next check.
2. An event's number is the one number that an operator needs: a request has none of its own.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from engine.cli.machine import by_option, config_option, state_option, state_path, user
from engine.cli.tables import folded
from engine.core.listing import Status
from engine.core.listing_event import ListingEvent, Progress, Request
from engine.flow.job import WrongUse
from engine.flow.lane_limits import moment
from engine.identity_file import find_identities
from engine.reputation.delist import Applicant, DelistError, instructions, next_step
from engine.reputation.digest import unchecked
from engine.reputation.record import Events
from engine.reputation.registry import load_registry
from engine.reputation.wording import day, span
from engine.settings import Configuration, SettingsError, load_configuration
from engine.store import reputation as tables
from engine.store.database import open_read_only
from engine.store.state import KIND, State
from engine.store.writer import Writer

NAMED = 5  # lists that are not checked and named one by one
_number = click.argument("event", type=click.IntRange(min=1))
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.command(short_help="List the listings of our addresses and domains.")
@click.option("--all", "everything", is_flag=True, help="Those that are over as well, of the last 90 days.")
@click.option("--open", "only_open", is_flag=True, help="Those that are open, as without it.")
@click.option("--target", default="", metavar="TARGET", help="Only of this address or domain.")
@click.option("--list", "name", default="", metavar="LIST", help="Only of this block list.")
@_json
@state_option
@config_option
def events(
    everything: bool, only_open: bool, target: str, name: str, as_json: bool, state: Path | None, config: Path | None
) -> None:
    """List the confirmed listings that are open, the worst first, with what to do next.

    Below them stand the lists that are not checked: what they don't say is no clean bill. Exit 1 where one is open that
    is listed here.
    """
    if everything and only_open:
        raise WrongUse("--all and --open exclude each other; give one.")
    now = time.time()
    settings = load_configuration(config)
    unasked = load_registry(settings).unasked
    with _reading(state_path(state, settings)) as conn:
        since = 0.0 if everything else None
        found = tables.events(conn, closed_since=since, target=target, name=name) if conn else []
        asked = {request.event: request for request, _ in tables.requests(conn, over=True)} if conn else {}
        answers = tables.newest_answers(conn) if conn else []
    if as_json:
        for event in found:
            print(json.dumps(_values(event, asked.get(event.id)), ensure_ascii=False))
    else:
        print(
            "\n".join(_event_lines(found, asked, now))
            if found
            else "No event is open."
            if not everything
            else "No event."
        )
        if not answers:
            print("No block list was ever asked from this machine: nothing is known.")
        heard = any(one.reliable and one.status in (Status.LISTED, Status.CLEAN) for one in answers)
        gone = [*(unasked if heard else []), *unchecked(answers)]  # where nothing is known, no gap makes a difference
        for line in gone[:NAMED]:
            print(f"Not checked: {line}.")
        if len(gone) > NAMED:
            print(f"Not checked: {len(gone) - NAMED} more lists; `engine rbl verify-lists` says why.")
    if any(event.is_open for event in found):
        raise click.exceptions.Exit(1)


@click.command(short_help="Close an event that no check can close.")
@_number
@by_option
@click.option("--why", required=True, metavar="TEXT", help="For what reason; goes into the history.")
@state_option
@config_option
def close(event: int, by: str, why: str, state: Path | None, config: Path | None) -> None:
    """Close an event by hand: the list is gone, or the address is not ours any more.

    A target that is still listed opens it again, after two more answers.
    """
    with _events(state, config) as recorded:
        over = recorded.close(event, by=by or user(), why=why, now=time.time()).event
    print(f"event {event} is closed: {over.target} on {over.name}.")


@click.group()
def delist() -> None:
    """Get off a block list: what to do, and how far it is. The engine never sends a form."""


@delist.command("list", short_help="List the requests under way.")
@click.option("--all", "everything", is_flag=True, help="Those that are done as well.")
@_json
@state_option
@config_option
def list_requests(everything: bool, as_json: bool, state: Path | None, config: Path | None) -> None:
    """List the requests under way, the worst listing first, with what to do next."""
    now = time.time()
    with _reading(state_path(state, load_configuration(config))) as conn:
        found = tables.requests(conn, over=everything) if conn else []
    if as_json:
        for request, event in found:
            print(json.dumps(_values(event, request), ensure_ascii=False))
    elif not found:
        print("No request is under way.")
    else:
        head = ("event", "target", "list", "severity", "method", "status", "since", "by", "next")
        rows = [
            (
                str(event.id), event.target, event.name, event.severity.label, request.method.value,
                request.status.value, span(now - request.moved_at), request.actor or "-",
                next_step(request, event, now),
            )
            for request, event in found
        ]  # fmt: skip
        print("\n".join(folded([head, *rows], right=[0])))


@delist.command(short_help="Show the steps, a text to copy, and the history.")
@_number
@click.option("--fixed", default="", metavar="TEXT", help="What was fixed, for the text to copy.")
@click.option("--contact", default="", metavar="ADDR", help="Whom the list may ask; the MAIL FROM, if not given.")
@click.option("--ptr", default="", metavar="NAME", help="The reverse name; the HELO name, if not given.")
@_json
@state_option
@config_option
def show(
    event: int, fixed: str, contact: str, ptr: str, as_json: bool, state: Path | None, config: Path | None
) -> None:
    """Show how EVENT gets off its list: the steps in order, a text to copy, and what was done so far."""
    now, settings = time.time(), load_configuration(config)
    with _reading(state_path(state, settings)) as conn:
        found = tables.event(conn, event) if conn else None
        request = tables.request_of(conn, event) if conn else None
    if found is None or found.confirmed_at is None:
        raise WrongUse(f"There is no event {event}; engine rbl events lists them.")
    if as_json:
        print(json.dumps(_values(found, request), ensure_ascii=False))
        return
    print(instructions(found, request, _applicant(found.target, settings, fixed, contact, ptr), now))
    if request is not None and request.notes:
        print("\nHistory:")
        print("\n".join(f"  {day(note.at)}  {note.by}: {note.text}" for note in request.notes))


def _moves(name: str, to: Progress, short: str, told: str, option: str, what: str, *, needed: bool) -> None:
    """One of the commands that move a request on."""

    def command(event: int, text: str, by: str, state: Path | None, config: Path | None) -> None:
        with _events(state, config) as recorded:
            request = recorded.move(event, to, by=by or user(), text=text, now=time.time())
        print(f"event {event}: the request is {request.status}.")
        if request.cooldown_until is not None and to is Progress.SUBMITTED:
            print(f"The list wants no second request before {day(request.cooldown_until)}.")

    command.__doc__ = told
    presence: dict[str, Any] = {"required": True} if needed else {"default": ""}
    text = click.option(option, "text", metavar="TEXT", help=what, **presence)
    for decorator in (config_option, state_option, by_option, text, _number):
        command = decorator(command)
    delist.command(name, short_help=short)(command)


_moves(
    "start", Progress.SUBMITTED, "Write down that the list was asked.",
    "Write down that the list was asked to take EVENT off. Its cool-down begins; nothing is sent. Refused while the\n"
    "cool-down of an earlier request lasts.",
    "--fixed", "What was fixed before it was asked.", needed=True,
)  # fmt: skip
_moves(
    "ack", Progress.ACKNOWLEDGED, "Write down that the list took the request up.",
    "Write down that the list said it has the request for EVENT.",
    "--note", "What it said.", needed=False,
)  # fmt: skip
_moves(
    "refuse", Progress.REFUSED, "Write down that the list refused.",
    "Write down that the list refused to take EVENT off. It may be asked again after its cool-down.",
    "--note", "What it said.", needed=False,
)  # fmt: skip
_moves(
    "done", Progress.DONE, "Write down that nothing more is to be done.",
    "Write down that the request for EVENT needs nobody any more. The event itself closes when two answers are clean.",
    "--note", "Why.", needed=False,
)  # fmt: skip


@delist.command(short_help="Add a line to the history.")
@_number
@click.argument("text")
@by_option
@state_option
@config_option
def note(event: int, text: str, by: str, state: Path | None, config: Path | None) -> None:
    """Add a line to the history of EVENT's request."""
    with _events(state, config) as recorded:
        request = recorded.note(event, by=by or user(), text=text, now=time.time())
    print(f"event {event}: noted; the request is {request.status}.")


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """The state's tables; None where there are none yet."""
    if not path.exists():
        yield None
        return
    with open_read_only(path, KIND) as conn:
        yield conn if tables.has_tables(conn) else None


@contextmanager
def _events(state: Path | None, config: Path | None) -> Iterator[Events]:
    """The events of this machine, for one change."""
    with Writer() as writer:
        try:
            yield Events(State(writer, state_path(state, load_configuration(config))))
        except DelistError as error:
            text = str(error)
            raise WrongUse(f"{text[0].upper()}{text[1:]}.") from None


def _applicant(target: str, settings: Configuration, fixed: str, contact: str, ptr: str) -> Applicant:
    """Who asks: what the identity says, where the target is its address."""
    try:
        found = find_identities(settings)
    except SettingsError:
        found = ()
    for identity in found:
        if target in identity.addresses:
            contact, ptr = contact or identity.mail_from, ptr or identity.helo_name
    return Applicant(fixed, contact, ptr)


def _event_lines(found: Sequence[ListingEvent], asked: dict[int, Request], now: float) -> list[str]:
    head = ("event", "target", "list", "severity", "since", "state", "next")
    rows = [
        (
            str(event.id), event.target, event.name, event.severity.label, day(event.first_seen), _standing(event, now),
            next_step(asked.get(event.id), event, now) if event.is_open else "-",
        )
        for event in found
    ]  # fmt: skip
    return folded([head, *rows], right=[0])


def _standing(event: ListingEvent, now: float) -> str:
    if event.is_open:
        return f"open, seen {span(now - event.last_seen)} ago"
    return f"{event.close_reason} {span(now - (event.closed_at or now))} ago"


def _values(event: ListingEvent, request: Request | None) -> dict[str, Any]:
    """An event with its request, for programs."""
    at: Callable[[float | None], str | None] = lambda value: moment(value) if value is not None else None  # noqa: E731
    return {
        "event": event.id, "target": event.target, "list": event.list, "sublist": event.sublist,
        "severity": event.severity.label, "open": event.is_open, "code": event.code, "meaning": event.meaning,
        "text": list(event.text), "first_seen": at(event.first_seen), "confirmed_at": at(event.confirmed_at),
        "opened_at": at(event.opened_at), "last_seen": at(event.last_seen),
        "expected_expiry": at(event.expected_expiry), "closed_at": at(event.closed_at),
        "close_reason": event.close_reason, "flaps": event.flaps,
        "request": None if request is None else {
            "status": request.status, "method": request.method, "url": request.url, "procedure": request.procedure,
            "requested_at": at(request.requested_at), "cooldown_until": at(request.cooldown_until),
            "actor": request.actor,
            "notes": [{"at": at(each.at), "by": each.by, "text": each.text} for each in request.notes],
        },
    }  # fmt: skip
