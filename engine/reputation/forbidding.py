"""Listings that forbid to probe from an address at all: what is asked before an Enhanced run.

1. Forbidden is what is critical or on a policy list (PBL: the owner of the network says that no mail comes from there).
   Lists that report neither are not asked: nothing would follow from it.
2. A list that may not be asked, or gave no answer, is unknown and named with the reason. Unknown is not failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from engine.core.finding import Check as Found
from engine.core.finding import Finding
from engine.core.listing import Check, Severity, Status
from engine.reputation.blocklist import BlockList, Effect
from engine.reputation.checker import Checker
from engine.reputation.query import QueryError, Server
from engine.reputation.question import target
from engine.reputation.registry import Registry
from engine.settings import Configuration

POLICY_LISTS = frozenset({"pbl"})  # sublists that are no reproach, and refuse us all the same


def may_forbid(blocklist: BlockList) -> bool:
    """Whether a list can say anything that forbids to probe."""
    return any(
        row.effect is Effect.LISTING and (row.severity is Severity.CRITICAL or row.sublist in POLICY_LISTS)
        for row in blocklist.codes
    )


def forbidding(registry: Registry, servers: Sequence[Server] = ()) -> Callable[[str], list[Check]]:
    """Who asks the lists that may forbid about an address; a list that is off answers with why."""

    def ask(address: str) -> list[Check]:
        about, now = target(address), time.time()
        off = [
            Check(address, each.name, Status.ERROR, now, detail=each.why, reliable=False)
            for each in registry.unchecked_for(about)
            if may_forbid(registry.lists[each.name])
        ]
        asked = [each for each in registry.asked_about(about) if may_forbid(each)]
        if not asked:
            return off
        try:
            return [*Checker(registry, servers).sweep([about], asked), *off]
        except QueryError as error:
            return [Check(address, each.name, Status.ERROR, now, detail=str(error), reliable=False) for each in asked]

    return ask


def asks(settings: Configuration, *, allow_private: bool) -> bool:
    """Whether a run asks at all: in a test network no list knows anybody, unless the settings speak of lists."""
    return not allow_private or any(settings.section(name).value is not None for name in ("monitor", "rbl"))


def findings(ip: str, checks: Sequence[Check]) -> Iterator[Finding]:
    """One for each listing that forbids, one for all lists that did not answer, or one that says that it is clean."""
    silent = {check.list: check for check in checks if not _counts(check)}
    listings = [
        (check, listing)
        for check in checks
        if _counts(check)
        for listing in check.listings
        if listing.severity is Severity.CRITICAL or listing.sublist.lower() in POLICY_LISTS
    ]
    for check, listing in listings:
        name = check.list if listing.sublist == check.list else f"{check.list} ({listing.sublist})"
        why = f" {check.text[0]}" if check.text else ""
        yield Finding(
            "block_list",
            Found.FAIL,
            f"{ip} is listed by {name}: {listing.meaning or listing.code};{why} have it removed before you probe.",
        )
    if silent or not checks:
        which = ", ".join(_named(check) for _, check in sorted(silent.items())) or "any list"
        yield Finding("block_list", Found.UNKNOWN, f"Whether {ip} is listed could not be asked of {which}.")
    elif not listings:
        yield Finding("block_list", Found.PASS, f"{ip} is on no list that forbids to probe ({len(checks)} asked).")


def _counts(check: Check) -> bool:
    """An answer of a list that is in its right mind."""
    return check.reliable and check.status in (Status.LISTED, Status.CLEAN)


def _named(check: Check) -> str:
    return f"{check.list} ({check.detail})" if check.detail else check.list
