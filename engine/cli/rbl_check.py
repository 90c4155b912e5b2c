"""`engine rbl check`: how addresses and domains stand at every block list, now."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from engine.cli.rbl import LISTED, UNCHECKED, Lists, asking_options, opened
from engine.cli.tables import folded
from engine.core.listing import Check, Severity
from engine.flow.job import WrongUse
from engine.reputation.guard import mass_listed
from engine.reputation.health import Move
from engine.reputation.question import Target, TargetError, target
from engine.reputation.registry import Registry, Unchecked
from engine.reputation.standing import Standing, State, standing, worst

_EXITS = {State.CLEAN: 0, State.LISTED: LISTED, State.UNCHECKED: UNCHECKED}


@click.command(short_help="Ask every block list about addresses and domains, now.")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a target, one a line.")
@asking_options
def check(
    targets: Sequence[str], as_json: bool, dns: Sequence[str], files: Sequence[Path], force: bool,
    config: Path | None, lab: bool,
) -> None:  # fmt: skip
    """Ask every block list about each TARGET: an IPv4 or IPv6 address, or a registered domain.

    Each list is put to the test before it is asked. One that fails, or may not be asked, is named as not checked.

    \b
    Exit codes, the gravest of all targets:
      0  clean: every critical list was asked, and none lists it
      3  listed, by more than an informational list
      4  not listed where it was checked, but a critical list was not checked
      1  failed, and 2 wrong use, as everywhere

    \b
    Examples:
      engine rbl check 192.0.2.25 example.org --dns 127.0.0.1
      engine rbl check 203.0.113.67 --lab
    """
    with opened(files, force, config, lab, dns) as lists:
        found = _ask(lists, _read(targets))
        for number, each in enumerate(found):
            if as_json:
                print(json.dumps(values(lists.registry, each), ensure_ascii=False))
            else:
                print("\n".join([*([""] if number else []), *lines(lists.registry, each)]))
    sys.exit(_EXITS[worst(found)])


def _read(texts: Sequence[str]) -> list[Target]:
    try:
        return list(dict.fromkeys(target(text) for text in texts))
    except TargetError as error:
        raise WrongUse(f"{error}.") from error


def _ask(lists: Lists, targets: Sequence[Target]) -> list[Standing]:
    moves: list[Move] = []
    checker = lists.checker(moved=moves.append)
    checks = list(checker.sweep(targets))
    for name in mass_listed(checks):  # much of what was asked about: is the list itself in order?
        checker.probe(name)
    sure = [replace(each, reliable=False) if any(move.doubts(each) for move in moves) else each for each in checks]
    return [standing(lists.registry, each, sure) for each in targets]


def lines(registry: Registry, found: Standing) -> list[str]:
    """How one target stands: a summary, what lists it, and how it gets off."""
    told = [_summary(found)]
    if found.listings:
        head = ("list", "sublist", "severity", "answer", "meaning")
        rows = [
            (check.list, each.sublist, each.severity.label, each.code, each.meaning) for check, each in found.listings
        ]
        told += [f"  {line}" for line in folded([head, *rows], indent=2)]
    for check in {check.list: check for check, _ in found.listings}.values():
        told += [f"  {check.list} says: {text}" for text in check.text]
        told += [f"  {check.list}, to get off: {way}" for way in _ways(registry, check)]
    told += [f"  {check.list}: {check.detail}" for check in (*found.checks, *found.praise) if check.detail]
    return told


def _summary(found: Standing) -> str:
    """One sentence: the verdict, and what it does not cover."""
    asked = len(found.checks)
    lists = {check.list for check, _ in found.listings}
    if found.state is State.LISTED:
        said = f"LISTED on {len(lists)} of {asked} lists checked, {found.listings[0][1].severity.label} at worst"
    elif not asked:
        said = "no list was checked"
    elif lists:
        said = f"on {len(lists)} of {asked} lists checked, for information only"
    else:
        said = f"not listed on the {asked} lists checked" if asked > 1 else "not listed on the only list checked"
    said = f"{found.target}: {'clean: ' if found.state is State.CLEAN else ''}{said}"
    grave = [each for each in found.unchecked if each.severity is Severity.CRITICAL]
    high = [each for each in found.unchecked if each.severity is Severity.HIGH]
    rest = len(found.unchecked) - len(grave) - len(high)
    gaps = [*(f"{each.name} ({each.why})" for each in grave), *(each.name for each in high)]
    gaps += [f"{rest} lesser {'ones' if rest > 1 else 'one'}"] if rest else []
    label = "NOT CHECKED" if grave else "not checked"
    return f"{said}; {label}: {', '.join(gaps)}." if gaps else f"{said}."


def _ways(registry: Registry, check: Check) -> list[str]:
    blocklist = registry.named(check.list)
    ways = dict.fromkeys(filter(None, (blocklist.how_to_delist(each.sublist) for each in check.listings)))
    url = f" ({blocklist.delist.url})" if blocklist.delist.url else ""
    return [f"{way}{url}" for way in ways] or ([blocklist.delist.url] if url else [])


def values(registry: Registry, found: Standing) -> dict[str, Any]:
    """How one target stands, for programs."""
    return {
        "target": found.target,
        "state": found.state.value,
        "severity": found.listings[0][1].severity.label if found.listings else None,
        "listings": [
            {
                "list": check.list, "sublist": each.sublist, "severity": each.severity.label, "answer": each.code,
                "meaning": each.meaning, "text": list(check.text), "at": check.at,
                "delist": {
                    "url": registry.named(check.list).delist.url,
                    "method": registry.named(check.list).delist.method,
                    "how": registry.named(check.list).how_to_delist(each.sublist),
                    "expires_s": registry.named(check.list).expires_s(each.sublist),
                },
            }
            for check, each in found.listings
        ],
        "checked": [check.list for check in found.checks],
        "notes": {check.list: check.detail for check in (*found.checks, *found.praise) if check.detail},
        "not_checked": [unchecked_values(each) for each in found.unchecked],
    }  # fmt: skip


def unchecked_values(each: Unchecked) -> dict[str, str]:
    """A list that was not asked, for programs."""
    return {"list": each.name, "severity": each.severity.label, "why": each.why}
