"""Which delimiter, which header, which column: judged from the first rows of a list.

1. What a column holds outweighs its name; a name decides between columns that both hold addresses.
2. Where two are equally good nothing is guessed: the caller is asked to choose.
3. `column_3` names the third column of any list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

Rows = Sequence[Sequence[str]]

# Names of address columns, best first, without case, spaces and punctuation.
_NAMES = (
    "email", "emailaddress", "mail", "mailaddress", "emails", "emailaddr", "emailadresse", "mailadresse",
    "adresseemail", "adressemail", "adresseelectronique", "courriel", "correo", "correoelectronico", "indirizzoemail",
    "epost", "epostadress", "eposta", "emailadres",
)  # fmt: skip
_MAYBE = ("address", "adresse", "addr", "recipient", "rcpt", "to", "user", "username", "login", "contact")
_CERTAIN = len(_NAMES)  # ranks up to this one need no address below them
_NAMELESS = _CERTAIN + len(_MAYBE) + 1
_ADDRESS = re.compile(r'\s*[^\s@,;|<>"]+@[^\s@,;|<>"]+\s*')


def choose_delimiter(samples: Mapping[str, Rows]) -> str:
    """The delimiter under which most rows have the first row's width and a column holds addresses, or empty.

    `samples` holds the first rows as each delimiter cuts them.
    """
    best, delimiter = (False, 0.5, 1), ""
    for each, rows in samples.items():
        width = len(rows[0]) if rows else 0
        if width < 2:
            continue
        agreement = sum(len(row) == width for row in rows) / len(rows)
        held = max(_share([row[i] for row in rows if i < len(row)], _ADDRESS.fullmatch) for i in range(width)) > 0.5
        if (held or agreement >= 0.8) and (held, agreement, width) > best:
            best, delimiter = (held, agreement, width), each
    return delimiter


def has_header(rows: Rows, column: str | None) -> bool:
    """Whether the first row names the columns: it holds the asked name, or nothing with an @."""
    first = rows[0]
    asked = column is not None and _plain(column) in map(_plain, first)
    return asked or not any("@" in cell for cell in first)


def names_address(cell: str, column: str | None) -> bool:
    """Whether a lone cell is the header of a one-column list: the asked name, or a usual one."""
    return "@" not in cell and (_rank(cell) < _NAMELESS or (column is not None and _plain(cell) == _plain(column)))


def column_named(header: Sequence[str], name: str) -> int:
    """The place of the column that is asked for. Raises LookupError with what is wrong."""
    found = [i for i, each in enumerate(header) if each == name]
    found = found or [i for i, each in enumerate(header) if _plain(each) == _plain(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise LookupError(f"has {len(found)} columns named {name!r} (column_{found[0] + 1} is the first)")
    place = re.fullmatch(r"column_([1-9]\d{0,5})", name)
    if place and int(place[1]) <= len(header):
        return int(place[1]) - 1
    raise LookupError(f"has no column {name!r}")


def column_of_addresses(header: Sequence[str], rows: Rows) -> int:
    """The place of the column that holds the addresses. Raises LookupError with what is wrong."""
    shares = [_share([row[i] for row in rows if i < len(row)], lambda cell: "@" in cell) for i in range(len(header))]
    ranks = [_rank(name) for name in header]
    places = [i for i, share in enumerate(shares) if share > 0.5]
    places = places or [i for i, rank in enumerate(ranks) if rank <= _CERTAIN]
    if not places:
        raise LookupError("has no address column")
    best = min(ranks[i] for i in places)
    places = [i for i in places if ranks[i] == best]
    if len(places) > 1:
        raise LookupError("has addresses in " + " and in ".join(repr(header[i]) for i in places[:5]))
    return places[0]


def _plain(name: str) -> str:
    return name.strip().casefold()


def _rank(name: str) -> int:
    """How well a name says that its column holds addresses; 0 is best."""
    bare = "".join(filter(str.isalnum, name.casefold()))
    if bare in _NAMES:
        return _NAMES.index(bare)
    if "email" in bare:
        return _CERTAIN
    return _CERTAIN + 1 + _MAYBE.index(bare) if bare in _MAYBE else _NAMELESS


def _share(cells: Sequence[str], fits: Callable[[str], object]) -> float:
    """The share of the filled cells that fit."""
    filled = [cell for cell in cells if cell.strip()]
    return sum(bool(fits(cell)) for cell in filled) / len(filled) if filled else 0.0
