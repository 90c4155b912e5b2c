"""What a check of an identity found: the value that preflight and the DNS identity status share.

1. A check passes, fails, or is unknown. What could not be asked is unknown: never failed, and never missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Check(StrEnum):
    """Whether a check came out well."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `say` is a sentence for the operator, with the remedy where it fails.

    `seen` is the same for programs, where there is more to tell: an SPF result with its count of look-ups.
    """

    check: str
    outcome: Check
    say: str
    seen: Mapping[str, str | int] = field(default_factory=dict, hash=False)
