"""A reply that names a block list, told to whoever watches: by an order of the state, in this process or another.

The monitor takes such orders within seconds and asks that list ahead of its turn; where nobody watches, they expire.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.store.state import State

ADDRESS, NAMED = "monitor", "rbl check"  # whom such an order is for, and its kind
NAMED_S = 600.0  # the same list, named again within this time, tells nothing new; an order is worth as long


class Named:
    """Tells of the lists that replies to one identity name, each once in NAMED_S."""

    def __init__(self, state: State, addresses: Iterable[str]) -> None:
        self._state = state
        self._addresses = tuple(addresses)
        self._told: dict[str, float] = {}

    def tell(self, named: str, now: float) -> bool:
        """A reply named this list; `now` in Unix seconds. False where that is no news."""
        if now - self._told.get(named, float("-inf")) < NAMED_S:
            return False
        self._told[named] = now
        for address in self._addresses:
            self._state.place_order(
                ADDRESS, NAMED, {"target": address, "named": named}, by="a reply", why=f"it names {named}", at=now,
                until=now + NAMED_S,
            )  # fmt: skip
        return True
