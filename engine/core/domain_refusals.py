"""Domains of a lane that refuse us, each on its own account: when so many do that it is the source they mean.

Each domain counts once, by its last answer.
"""

from __future__ import annotations

IN_A_ROW = 3  # domains that refuse us one after the other
OF_LAST = 25  # or REFUSING of the last domains that answered
REFUSING = 5


class DomainRefusals:
    """The last answers of a lane's domains: which of them refused us."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: list[tuple[str, bool]] = []  # the newest OF_LAST

    def refused(self, domain: str) -> bool:
        """A domain refuses us; True when it is the source that is refused."""
        self._note(domain, refused=True)
        in_a_row = len(self._last) >= IN_A_ROW and all(refused for _, refused in self._last[-IN_A_ROW:])
        return in_a_row or sum(refused for _, refused in self._last) >= REFUSING

    def answered(self, domain: str) -> None:
        """A domain lets us in."""
        self._note(domain, refused=False)

    def _note(self, domain: str, *, refused: bool) -> None:
        last = self._last
        if last and last[-1] == (domain, refused):
            return
        for known in last:
            if known[0] == domain:
                last.remove(known)
                break
        last.append((domain, refused))
        del last[:-OF_LAST]

    def __repr__(self) -> str:
        return f"<DomainRefusals {sum(refused for _, refused in self._last)} of the last {len(self._last)}>"
