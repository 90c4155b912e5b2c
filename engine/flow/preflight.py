"""May this identity probe from here: asked before the first question of an Enhanced run.

1. Its names and records are judged in `reputation.names`; that it is on a block list by a callable that it is given.
2. Refused is what is critical or on a policy list (PBL: the owner of the network says that no mail comes from there).
   A list that gave no answer is unknown, and unknown is not failed.
3. Here nothing is sent but DNS questions. What follows from a failure is the caller's to decide.
"""

from __future__ import annotations

import _socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from engine.core.finding import Check, Finding
from engine.core.identity import Identity
from engine.core.listing import Check as ListCheck
from engine.core.listing import Listing, Severity, Status
from engine.net.resolver import Resolver
from engine.reputation.names import check_names

__all__ = ["Check", "Finding", "preflight", "unbindable"]

POLICY_LISTS = frozenset({"pbl"})  # sublists that are no reproach, and refuse us all the same

Listed = Callable[[str], Sequence[ListCheck]]  # an address, asked at every list that may be asked


def preflight(
    identity: Identity, resolver: Resolver, *, allow_private: bool = False, listed: Listed | None = None
) -> tuple[Finding, ...]:
    """All findings about an identity, in the order in which a server would meet them."""
    found = check_names(identity, resolver, allow_private=allow_private)
    if listed is None:
        return found
    return (*found, *(each for ip in identity.addresses for each in _lists(ip, listed(ip))))


def _lists(ip: str, checks: Sequence[ListCheck]) -> Iterator[Finding]:
    """One finding for each list that forbids, one for all that did not answer, or one that says it is clean."""
    unasked = [check.list for check in checks if check.status is not Status.CLEAN and not _counts(check)]
    forbidding = [
        (check, listing) for check in checks if _counts(check) for listing in check.listings if _forbids(listing)
    ]
    for check, listing in forbidding:
        name = check.list if listing.sublist == check.list else f"{check.list} ({listing.sublist})"
        why = f" {check.text[0]}" if check.text else ""
        yield Finding(
            "block_list",
            Check.FAIL,
            f"{ip} is listed by {name}: {listing.meaning or listing.code};{why} have it removed before you probe.",
        )
    if unasked or not checks:
        which = ", ".join(sorted(set(unasked))) or "any list"
        yield Finding("block_list", Check.UNKNOWN, f"Whether {ip} is listed could not be asked of {which}.")
    elif not forbidding:
        yield Finding("block_list", Check.PASS, f"{ip} is on no list that forbids to probe ({len(checks)} asked).")


def _counts(check: ListCheck) -> bool:
    """A listing by a list that is in its right mind."""
    return check.status is Status.LISTED and check.reliable


def _forbids(listing: Listing) -> bool:
    return listing.severity is Severity.CRITICAL or listing.sublist.lower() in POLICY_LISTS


def unbindable(identity: Identity) -> str:
    """Why this identity can't connect from its bind address, or nothing: no risk that anybody could accept."""
    for ip in filter(None, (identity.bind_v4, identity.bind_v6)):
        family = _socket.AF_INET6 if ":" in ip else _socket.AF_INET
        try:
            with closing(_socket.socket(family, _socket.SOCK_STREAM)) as probe:
                probe.bind((ip, 0))
        except OSError as error:
            return f"bind_address {ip} can't be used on this machine ({error.strerror}); give one of its own addresses."
    return ""
