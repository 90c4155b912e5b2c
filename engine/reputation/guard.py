"""The mass-listing guard; pure: a list that suddenly lists much of a fleet is more likely broken than right.

What it holds is not dropped: the list is probed again, and if it is found good its listings stand. A whole network can
be listed at once, by a list that escalates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from engine.core.listing import Check, Status

SHARE = 0.3  # of the targets that one list answered for
LEAST = 3  # targets; below that a share says nothing


def mass_listed(checks: Iterable[Check]) -> frozenset[str]:
    """The lists that list more than SHARE, and at least LEAST, of the targets for which they gave an answer."""
    listed: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    for check in checks:
        listed[check.list] += check.status is Status.LISTED
        answered[check.list] += check.status in (Status.LISTED, Status.CLEAN)
    return frozenset(name for name, count in listed.items() if count >= LEAST and count > SHARE * answered[name])
