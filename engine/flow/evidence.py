"""What is written down of an answer: the journal's columns and the audit's rows."""

from __future__ import annotations

from typing import Any

from engine.core.reasons import Stage
from engine.core.verdict import is_listed_refusal
from engine.flow.desk import Desk
from engine.flow.judged import Judged
from engine.flow.line import Line
from engine.store.audit import AuditRow


def columns(line: Line, one: Judged, *, attempts: int, at: str) -> dict[str, Any]:
    """The columns of an address that an answer sets, whatever it comes to; `at` is when, as results write it."""
    session, endpoint = line.session, line.endpoint
    return {
        "reason": one.reason.code,
        "detail": one.detail,
        "stage": one.answer.stage.value,
        "probed": 1,
        "mx_host": endpoint.host if endpoint else "",
        "mx_ip": endpoint.ip if endpoint else "",
        "source_ip": session.source_ip if session else "",
        "code": one.code,
        "enhanced": one.enhanced,
        "text": one.text,
        "checked_at": at,
        "attempts": attempts,
        "duration_ms": one.answer.duration_ms,
        "catch_all": "no" if is_listed_refusal(one.reason, backed=one.backed) else "not_checked",
    }


def audit_row(
    desk: Desk, line: Line, kind: str, one: Judged, at: float, address: str = "", address_id: int | None = None
) -> AuditRow:
    """The audit row of an answer: who asked whom, under which consent, and what was said.

    `at` is when it was asked, in seconds of the run's clock: by these moments limits are judged.
    """
    endpoint = line.endpoint
    return AuditRow(
        at + desk.offset_s, kind, one.answer.stage.value, one.code, one.enhanced, one.reason.code,
        desk.asker, desk.consent, endpoint.host if endpoint else "", endpoint.ip if endpoint else "",
        address, one.text, address_id,
    )  # fmt: skip


def connect_row(desk: Desk, line: Line, at: float) -> AuditRow:
    """The audit row of a connection that came to be a session."""
    assert line.endpoint is not None
    return AuditRow(
        at + desk.offset_s, "connect", Stage.EHLO.value, None, "", "",
        desk.asker, desk.consent, line.endpoint.host, line.endpoint.ip,
    )  # fmt: skip
