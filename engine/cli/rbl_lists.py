"""`engine rbl lists` and `engine rbl verify-lists`: which lists there are, and which can be used from here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from engine.cli.rbl import UNCHECKED, asking_options, list_options, opened
from engine.cli.tables import folded, gap
from engine.core.grammar import rate_text
from engine.reputation.blocklist import BlockList, Kind
from engine.reputation.diagnosis import diagnose
from engine.reputation.health import Health
from engine.reputation.registry import Registry


@click.command(short_help="Show the lists that are known, and which of them are asked.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a list, one a line.")
@list_options
def lists(as_json: bool, files: Sequence[Path], force: bool, config: Path | None, lab: bool) -> None:
    """Show every list of the registry: its zone, how grave a listing is, how often it is asked, and if not, why.

    This asks nobody. Whether a list is alive, `engine rbl verify-lists` tells.
    """
    with opened(files, force, config, lab) as known:
        registry = known.registry
    if as_json:
        for each in registry.lists.values():
            print(json.dumps(_values(registry, each), ensure_ascii=False))
        return
    rows = [
        (each.name, _about(each), each.severity.label, gap(each.interval_s), each.zone or "-", each.lists)
        for each in sorted(registry.enabled, key=_rank)
    ]
    head = ("list", "about", "severity", "every", "zone", "what is listed")
    print("\n".join(folded([head, *rows], right=[3])))
    off = [(each.name, each.severity.label, each.why) for each in registry.unchecked]
    if off:
        print("\nNot asked, and named as not checked in every report:")
        print("\n".join(f"  {line}" for line in folded(off, indent=2)))
    read = sorted({each.verified_on for each in registry.lists.values() if each.verified_on})
    when = f" Facts read on {' and '.join(read)}." if read else ""
    print(f"\nAsked: {len(rows)}; not asked: {len(registry.off)}; zones denied: {len(registry.denied)}.{when}")
    print("Which of them are alive, `engine rbl verify-lists` tells.")


@click.command("verify-lists", short_help="Say which lists can be used from this resolver.")
@click.argument("names", nargs=-1, metavar="[LIST]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a list, then one about the resolver.")
@asking_options
def verify_lists(
    names: Sequence[str], as_json: bool, dns: Sequence[str], files: Sequence[Path], force: bool,
    config: Path | None, lab: bool,
) -> None:  # fmt: skip
    """Ask every list (or each LIST) its test entries, and examine the resolver.

    A list is usable when it knows the entry that it must know, and neither the one that it must not know nor a random
    one. The resolver must not invent names, and must not be one that the lists refuse, as public ones are.

    \b
    Exit codes:
      0  the resolver is fit, and every list that is asked can be used
      4  a list can't be used, or the resolver is not fit
    """
    with opened(files, force, config, lab, dns) as known:
        registry = known.registry
        chosen = sorted((registry.named(name) for name in names or registry.lists), key=_rank)
        checker = known.checker()
        asked = [each for each in chosen if each.name not in registry.off]
        resolver = diagnose(checker, asked, known.nowhere)
        health = {each.name: checker.health(each.name) for each in asked}
    if as_json:
        for each in chosen:
            print(json.dumps(_verified(registry, each, health.get(each.name)), ensure_ascii=False))
        print(json.dumps({"resolver": {"faults": resolver.faults, "seen_as": resolver.seen_as or None}}))
    else:
        rows = [_row(registry, each, health.get(each.name)) for each in chosen]
        print("\n".join([*folded([("list", "severity", "usable", "why not"), *rows]), ""]))
        usable = sum(each.usable for each in health.values())
        print(f"Usable: {usable} of {len(asked)}; not asked: {len(chosen) - len(asked)}.")
        for fault in resolver.faults or ["Nothing is wrong with it."]:
            print(f"The resolver: {fault}")
    sys.exit(0 if all(each.usable for each in health.values()) and not resolver.faults else UNCHECKED)


def _row(registry: Registry, blocklist: BlockList, health: Health | None) -> tuple[str, str, str, str]:
    usable = "not asked" if health is None else "yes" if health.usable else "NO"
    why = registry.off[blocklist.name] if health is None else health.why
    return blocklist.name, blocklist.severity.label, usable, why


def _verified(registry: Registry, blocklist: BlockList, health: Health | None) -> dict[str, Any]:
    return {
        "list": blocklist.name,
        "severity": blocklist.severity.label,
        "asked": health is not None,
        "usable": health is not None and health.usable,
        "finding": health.finding.value if health and health.finding else None,
        "why": registry.off[blocklist.name] if health is None else health.why,
    }


def _values(registry: Registry, each: BlockList) -> dict[str, Any]:
    return {
        "list": each.name, "zone": each.zone, "kind": each.kind.value, "families": [*each.families],
        "severity": each.severity.label, "asked": each.name not in registry.off, "why": registry.off.get(each.name, ""),
        "lists": each.lists, "needs": each.needs.value, "rate": rate_text(each.rate), "interval_s": each.interval_s,
        "delist": {"url": each.delist.url, "method": each.delist.method, "how": each.delist.how,
                   "cooldown_s": each.delist.cooldown_s, "expires_s": each.delist.expires_s},
        "verified_on": each.verified_on, "source": each.source,
    }  # fmt: skip


def _about(each: BlockList) -> str:
    if each.kind is Kind.WHITE:
        return "white"
    return "+".join(each.families)


def _rank(each: BlockList) -> tuple[int, bool, str]:
    return -each.severity, each.kind is Kind.WHITE, each.name
