"""Times and other people's words as they stand in a message."""

from __future__ import annotations

from datetime import UTC, datetime

LONGEST = 300  # characters of a text that a list sent


def day(at: float) -> str:
    """A moment to the minute, UTC: `2026-11-22 03:10 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def span(seconds: float) -> str:
    """A time in two units at most: `40 s`, `25 min`, `3 h 20 min`, `2 days 4 h`."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def plain(text: str, longest: int = LONGEST) -> str:
    """Somebody else's text on one line, without control characters, cut where it is too long."""
    one = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return one if len(one) <= longest else f"{one[: longest - 1]}…"


def many(count: int, thing: str) -> str:
    """`1 address`, `3 lists`."""
    if count == 1:
        return f"1 {thing}"
    return f"{count} {thing}es" if thing.endswith("s") else f"{count} {thing}s"
