"""What an address's way ends in: Result, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from engine.core.reasons import REASONS, Category, Fault, Retry, Stage

MAX_TEXT = 512  # characters of a reply that a result carries; enough for every provider's text and URL


class CatchAll(StrEnum):
    """What is known of the domain's answer to a made-up recipient."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    NOT_CHECKED = "not_checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The verdict on one address and the evidence for it.

    `checked_at` is UTC in RFC 3339; `attempts` counts RCPTs or connects of this address, controls not;
    `duration_ms` is the last attempt's; `smtp_text` is sanitised and at most 512 characters.
    """

    address: str
    normalized: str = ""
    category: Category
    reason: str
    detail: str = ""
    stage: Stage = Stage.NONE
    answered: bool
    fault: Fault
    retry: Retry
    probed: bool = False
    provider: str = ""
    mx_host: str = ""
    mx_ip: str = ""
    source_ip: str = ""
    smtp_code: int | None = None
    enhanced_code: str = ""
    smtp_text: str = ""
    catch_all: CatchAll = CatchAll.NOT_CHECKED
    role: bool = False
    disposable: bool = False
    free: bool = False
    tagged: bool = False
    suggestion: str = ""
    attempts: int = 0
    checked_at: str = ""
    duration_ms: int | None = None
    classifier_version: str = ""
    policy: str = ""

    @classmethod
    def of(cls, reason: str, /, **evidence: Any) -> Result:
        """A result whose category, answered, fault and retry are those of its reason: they can't disagree."""
        return cls(**of_reason(reason), **evidence)


def of_reason(reason: str) -> dict[str, Any]:
    """What a reason says of a result by itself."""
    row = REASONS[reason]
    return {
        "reason": row.code, "category": row.category, "answered": row.answered, "fault": row.fault, "retry": row.retry,
    }  # fmt: skip


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Result))
