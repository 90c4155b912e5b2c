"""What the command line prints in rows and columns: plain text that a pipe and a terminal both show well."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from engine.core.grammar import rate_text
from engine.core.reasons import REASONS, Category
from engine.core.simulation import Assumed
from engine.flow.forecast import Outlook
from engine.flow.lane_limits import limit_of, moment
from engine.store.state import Order

_BAR = 28
_NARROW = 24  # columns: below that a folded text is harder to read than one that the terminal wraps


def aligned(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows with columns of equal width; those numbered in `right` are set flush right."""
    if not rows:
        return []
    numbers = set(right)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def folded(
    rows: Sequence[Sequence[str]], right: Iterable[int] = (), *, indent: int = 0, width: int | None = None
) -> list[str]:
    """As `aligned`; on a terminal that is too narrow (None: this one) the last column goes on below itself."""
    lines = aligned(rows, right)
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if not width or all(indent + len(line) <= width for line in lines):
        return lines
    column = sum(max(len(row[place]) for row in rows) + 2 for place in range(len(rows[0]) - 1))
    room = width - indent - column
    if room < _NARROW:
        return lines
    found: list[str] = []
    for row, line in zip(rows, lines, strict=True):
        first, *more = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
        found += [f"{line[:column]:{column}}{first}".rstrip(), *(" " * column + each for each in more)]
    return found


def verdict_lines(counts: dict[str, int]) -> list[str]:
    """The table of verdicts: how many addresses by category and reason."""
    total = sum(counts.values())
    lines = [""]
    for category in Category:
        found = {code: n for code, n in counts.items() if code and REASONS[code].category is category}
        if not found:
            continue
        number = sum(found.values())
        bar = "█" * max(1, round(_BAR * number / max(1, total)))
        lines.append(f"{category.value:8}{number:>8}  {100 * number / total:5.1f} %  {bar}")
        rows = [
            (f"    {code}", str(n), "" if REASONS[code].answered else "not answered", REASONS[code].meaning)
            for code, n in sorted(found.items(), key=lambda each: -each[1])
        ]
        lines += aligned(rows, right=[1])
    if counts.get(""):
        lines.append(f"open    {counts['']:>8}")
    lines.append(f"{total} distinct addresses.")
    return lines


def forecast_lines(told: Outlook) -> list[str]:
    """How long the policies make the list take, per provider: said before the first probe."""
    if not told.rows:
        return []
    head = ("provider", "addresses", "sites", "about" if told.assumed else "at least", "bound by")
    rows = [
        (each.provider, str(each.addresses), str(each.sites), hours(each.hours), each.binding)
        for each in told.rows[:12]
    ]
    if told.assumed:
        basis = f"Simulated with {assumed_text(told.assumed)}: {hours(told.hours)} in all."
    else:
        basis = (
            "By the policies' ceilings, since the list is too long to simulate quickly; "
            "controls and retries come on top."
        )
    return [*aligned([head, *rows], right=[1, 2, 3]), basis]


def assumed_text(assumed: Assumed) -> str:
    """The shares that a simulation assumes, in words."""
    return (
        f"{share(assumed.refused)} of the addresses refused, {share(assumed.tempfail)} failing for a while, "
        f"{share(assumed.greylisted)} of the domains without a provider greylisting, "
        f"{1000 * assumed.rtt_s:g} ms a round trip"
    )


def share(value: float) -> str:
    """A share in per cent: `8 %`."""
    return f"{100 * value:.3g} %"


def limit_lines(orders: Sequence[Order]) -> list[str]:
    """Limits as a table."""
    head = ("limit", "provider", "identity", "rate", "sessions", "since", "until", "by", "why")
    rows = [head]
    for order in orders:
        what = limit_of(order)
        rows.append(
            (
                str(order.id), what.provider, order.identity or "all", rate_text(what.rate) if what.rate else "-",
                str(what.concurrency or "-"), moment(order.at), moment(order.until) if order.until else "-",
                order.by, order.why,
            )
        )  # fmt: skip
    return aligned(rows, right=[0])


def limit_values(order: Order) -> dict[str, Any]:
    """A limit for programs."""
    what = limit_of(order)
    return {
        "limit": order.id, "provider": what.provider, "identity": order.identity,
        "rate": rate_text(what.rate) if what.rate else None, "concurrency": what.concurrency,
        "since": moment(order.at), "until": moment(order.until) if order.until else None,
        "by": order.by, "why": order.why, "obeyed": order.answer,
    }  # fmt: skip


def hours(value: float) -> str:
    """A time as people say it: `2.5 h`, `12 min`, `under a minute`."""
    if value >= 48:
        return f"{value / 24:.1f} days"
    if value >= 1:
        return f"{value:.1f} h"
    if value * 60 >= 1:
        return f"{value * 60:.0f} min"
    return "under a minute"


def gap(seconds: float) -> str:
    """A short time in its own unit: `90 s`, `15 min`, `6 h`."""
    if seconds >= 7200:
        return f"{seconds / 3600:g} h"
    return f"{seconds / 60:g} min" if seconds >= 120 else f"{seconds:g} s"
