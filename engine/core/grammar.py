"""The words of a policy file: durations, rates, ranges.

1. A number never stands without its unit: `30s`, `20/min`.
2. What is read can be written again: `duration(duration_text(x)) == x`, and so for rates and ranges.
3. An error says what stood there, what is expected, and shows an example.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

DAY_S = 86_400.0
MAX_DURATION_S = 365 * DAY_S  # a longer wait is a slip of the pen

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "day": DAY_S}
_DURATION = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,3})?)s)?")
_RATE = re.compile(r"([0-9]{1,9})/([0-9]{1,6})?(s|min|h|day)")


class GrammarError(ValueError):
    """A text that is not what the grammar asks for; the message is one sentence for the author of the file."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` events in `period_s` seconds."""

    count: int
    period_s: float
    per_s: float = field(init=False, repr=False, compare=False)  # in the mean

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_s", self.count / self.period_s)


@dataclass(frozen=True, slots=True)
class Range:
    """A rate that adapts: where it starts and what it never exceeds."""

    start: Rate
    ceiling: Rate


def duration(text: object) -> float:
    """Seconds of a duration such as `30s`, `5m`, `1h30m` or `7d`; raises GrammarError."""
    found = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or not any(found.groups()):
        raise GrammarError(f"{text!r} is not a duration (expected Ns, Nm, Nh, Nd or a sum of them, for example 1h30m)")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    total = days * DAY_S + hours * 3600 + minutes * 60 + seconds
    if not 0 < total <= MAX_DURATION_S:
        raise GrammarError(f"{text!r} is out of range (expected more than 0s and at most 365d, for example 30s)")
    return total


def duration_text(seconds: float) -> str:
    """The shortest text of a duration, largest unit first."""
    whole, fraction = divmod(round(seconds * 1000), 1000)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        count, whole = divmod(whole, size)
        parts += [f"{count}{unit}"] if count else []
    if whole or fraction or not parts:
        parts.append(f"{whole}.{fraction:03d}".rstrip("0").rstrip(".") + "s" if fraction else f"{whole}s")
    return "".join(parts)


def rate(text: object) -> Rate:
    """The rate of a text such as `20/min` or `5/10min`; raises GrammarError."""
    found = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise GrammarError(f"{text!r} is not a rate (expected N/s, N/min, N/h or N/day, for example 20/min)")
    count, multiple, unit = int(found[1]), int(found[2] or 1), found[3]
    period_s = multiple * _UNITS[unit]
    if count == 0 or not 0 < period_s <= MAX_DURATION_S:
        raise GrammarError(f"{text!r} is out of range (expected at least 1 in a period of 1s to 365day, as in 20/min)")
    return Rate(count, period_s)


def rate_text(value: Rate) -> str:
    """The text of a rate, in the largest unit that divides its period."""
    for unit, size in (("day", DAY_S), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value.period_s % size == 0:
            multiple = int(value.period_s / size)
            return f"{value.count}/{multiple if multiple > 1 else ''}{unit}"
    raise GrammarError(f"a period of {value.period_s} seconds can't be written (expected whole seconds)")


def rate_range(text: object) -> Range:
    """The range of `20/min..120/min`; a single rate is start and ceiling; raises GrammarError."""
    start, dots, ceiling = text.partition("..") if isinstance(text, str) else ("", "", "")
    if not isinstance(text, str):
        rate(text)  # says what is wrong with it
    low = rate(start)
    high = rate(ceiling) if dots else low
    if high.per_s < low.per_s:
        raise GrammarError(f"{text!r} ends below its start (expected START..CEILING, for example 20/min..120/min)")
    return Range(low, high)


def range_text(value: Range) -> str:
    """The text of a range; one rate where start and ceiling are the same."""
    start, ceiling = rate_text(value.start), rate_text(value.ceiling)
    return start if start == ceiling else f"{start}..{ceiling}"
