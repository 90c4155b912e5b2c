"""May this identity probe from here: asked before the first question of an Enhanced run.

1. Its names and records are judged in `reputation.names`; what block lists say in `reputation.listed`, asked by a
   callable that it is given.
2. Here nothing is sent but DNS questions. What follows from a failure is the caller's to decide.
"""

from __future__ import annotations

import _socket
from collections.abc import Callable, Sequence
from contextlib import closing

from engine.core.finding import Check, Finding
from engine.core.identity import Identity
from engine.core.listing import Check as ListCheck
from engine.net.resolver import Resolver
from engine.reputation.listed import findings
from engine.reputation.names import check_names

__all__ = ["Check", "Finding", "preflight", "unbindable"]

Listed = Callable[[str], Sequence[ListCheck]]  # an address, asked at every list that may be asked


def preflight(
    identity: Identity, resolver: Resolver, *, allow_private: bool = False, listed: Listed | None = None
) -> tuple[Finding, ...]:
    """All findings about an identity, in the order in which a server would meet them."""
    found = check_names(identity, resolver, allow_private=allow_private)
    if listed is None:
        return found
    return (*found, *(each for ip in identity.addresses for each in findings(ip, listed(ip))))


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
