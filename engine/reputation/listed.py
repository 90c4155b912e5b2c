"""Listings that forbid to probe from an address at all: what they mean for a run, once they have been asked about.

1. Forbidden is what is critical or on a policy list (PBL: the owner of the network says that no mail comes from there).
2. A list that may not be asked, or gave no answer, is unknown and named with the reason. Unknown is not failed.
3. Who asks is `reputation.forbidding`, with all that asking takes; a run that asks nobody needs only this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.core.finding import Check as Found
from engine.core.finding import Finding
from engine.core.listing import Check, Severity, Status
from engine.settings import Configuration

POLICY_LISTS = frozenset({"pbl"})  # sublists that are no reproach, and refuse us all the same


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
