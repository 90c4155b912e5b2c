"""What one DNS question brought, for code that judges answers and never asks by itself.

1. Three outcomes, never two: records, a void (the name or the type is not there), or a failure. A failure says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """Records, or none (`nxdomain` tells which kind of none), or why nothing is known (`failure`).

    `values`: addresses as text; names in lower case without the last dot, those of MX by preference; TXT records with
    their strings joined (RFC 7208 section 3.3), each octet one character.
    """

    values: tuple[str, ...] = ()
    nxdomain: bool = False
    failure: str = ""  # servfail, refused, timeout ...; empty where the DNS has answered

    @property
    def void(self) -> bool:
        """Whether the DNS says that there is nothing (RFC 7208 section 4.6.4)."""
        return not self.values and not self.failure


Ask = Callable[[str, str], Answer]  # (name without last dot, type: A, AAAA, MX, PTR, TXT)
