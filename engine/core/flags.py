"""What an address shows by itself: role, disposable, free, tagged, and the domain that it may have been meant for.

1. A flag is never a verdict: no category depends on one.
2. The lists are data: `data/*.txt` with source and date, and the package disposable-email-domains.
3. A known domain is never corrected. A suggestion needs one slip (a letter lost, added or changed, or two swapped)
   from a well-known name of five letters or more under the same ending, with the first letter right; or an ending
   that does not exist (`.con`), or that is a usual slip behind a well-known name (`gmail.co`).
   So ymail.com, mail.com, gmx.de, hotmail.fr and aol.de stay what they are.
"""

from __future__ import annotations

import pkgutil
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache

from disposable_email_domains import blocklist

from engine.core.address import Address


@dataclass(frozen=True, slots=True)
class Flags:
    """`role`: a function, not a person. `disposable`: a throw-away service's domain, or one below it. `free`: anybody
    gets a mailbox there. `tagged`: a local part with a plus tag (`ann+list`); other separators, as Yahoo's hyphen, look
    like any name and don't count. `suggestion`: the address that may have been meant, or empty."""

    role: bool = False
    disposable: bool = False
    free: bool = False
    tagged: bool = False
    suggestion: str = ""


def flags(address: Address) -> Flags:
    """The flags of an address. Pure look-ups: cheap enough for every address of a list."""
    disposable, free, meant = _of_domain(address.domain)
    name, _plus, tag = address.local.partition("+")
    return Flags(
        role=_is_role(name),
        disposable=disposable,
        free=free,
        tagged=bool(name and tag),
        suggestion=f"{address.local}@{meant}" if meant else "",
    )


def _words(file: str) -> frozenset[str]:
    """The entries of a data file: what is not a comment, by white space."""
    data = pkgutil.get_data("engine.core", f"data/{file}")
    assert data is not None
    lines = data.decode("utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


ROLES = _words("roles.txt")
FREE = _words("free.txt")
DISPOSABLE: Set[str] = blocklist
TARGETS = _words("typo_targets.txt")

_MIN_NAME = 5  # letters: shorter names have real neighbours everywhere (gmx, gmc, gmw)
_DOMAINS_KEPT = 65_536  # answers; a list's domains repeat, and these are most of them
# Endings that are no top-level domain (IANA's list at the date of the data files): wrong behind any name.
_NO_ENDING = {
    **dict.fromkeys(("con", "comm", "coom", "cmo", "ocm", "vom", "xom", "cpm", "clm", "c0m", "cpom", "conm"), "com"),
    **dict.fromkeys(("nte", "ent", "nett", "neet", "ney", "met"), "net"),
    **dict.fromkeys(("ogr", "rog", "orgg", "og"), "org"),
}
# Endings that exist: wrong only where the outcome is a well-known domain.
_ODD_ENDING = dict.fromkeys(("co", "cm", "om", "cam"), "com")


def _is_role(name: str) -> bool:
    name = name.lower()
    return name in ROLES or name.endswith("-request")  # RFC 2142 section 6: who runs a mailing list


def _targets_by_shape() -> dict[tuple[str, int, str], tuple[str, ...]]:
    """Well-known names by ending, length and the letter with which a slip of one can begin: its first, or its second
    where the two are swapped."""
    shapes: dict[tuple[str, int, str], tuple[str, ...]] = defaultdict(tuple)
    for target in sorted(TARGETS):
        name, _, ending = target.partition(".")
        if len(name) >= _MIN_NAME:
            for letter in set(name[:2]):
                shapes[ending, len(name), letter] += (name,)
    return dict(shapes)


_BY_SHAPE = _targets_by_shape()


@lru_cache(maxsize=_DOMAINS_KEPT)
def _of_domain(domain: str) -> tuple[bool, bool, str]:
    """Whether a domain is disposable, whether it is free, and which one may have been meant."""
    above = domain
    while above and above not in DISPOSABLE:
        above = above.partition(".")[2]
    return above != "", domain in FREE, _meant(domain)


def _meant(domain: str) -> str:
    """The domain that this one is a slip of, or empty."""
    if domain in FREE or domain in TARGETS:
        return ""
    name, _, ending = domain.rpartition(".")
    if ending in _NO_ENDING:
        corrected = f"{name}.{_NO_ENDING[ending]}"
        return corrected if corrected in FREE else _near(corrected) or corrected
    if ending in _ODD_ENDING and f"{name}.{_ODD_ENDING[ending]}" in TARGETS:
        return f"{name}.{_ODD_ENDING[ending]}"
    return _near(domain)


def _near(domain: str) -> str:
    """The well-known domain one slip away, or empty."""
    name, _, ending = domain.partition(".")
    for length in (len(name), len(name) + 1, len(name) - 1):
        for target in _BY_SHAPE.get((ending, length, name[:1]), ()):
            if one_slip(name, target):
                return f"{target}.{ending}"
    return ""


def one_slip(typed: str, meant: str) -> bool:
    """Whether one letter was lost, added or changed behind the first, or two neighbours were swapped anywhere."""
    start = 0
    for a, b in zip(typed, meant, strict=False):
        if a != b:
            break
        start += 1
    left, right = typed[start:], meant[start:]
    if len(left) == len(right):
        swapped = left[:2] == right[1::-1] and left[2:] == right[2:]
        return left != right and (swapped or (start > 0 and left[1:] == right[1:]))
    return start > 0 and (left == right[1:] or left[1:] == right)
