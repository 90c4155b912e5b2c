"""The lists that may forbid to probe from an address at all, and who asks them before an Enhanced run.

1. A list that can say nothing that forbids (`reputation.listed`) is not asked: nothing would follow from it.
2. A list that is off answers with the reason, and one that gave no answer with what went wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from engine.core.listing import Check, Severity, Status
from engine.reputation.blocklist import BlockList, Effect
from engine.reputation.checker import Checker
from engine.reputation.listed import POLICY_LISTS
from engine.reputation.query import QueryError, Server
from engine.reputation.question import target
from engine.reputation.registry import Registry


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
