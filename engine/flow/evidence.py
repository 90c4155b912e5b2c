"""What is written down of an answer: the journal's columns and the audit's rows."""

from __future__ import annotations

from typing import Any

from engine.core.reasons import Stage
from engine.core.verdict import is_listed_refusal
from engine.flow.desk import Desk
from engine.flow.judged import Judged
from engine.flow.line import Line
from engine.store.audit import AuditRow


def columns(desk: Desk, line: Line, one: Judged, *, attempts: int) -> dict[str, Any]:
    """The columns of an address that an answer sets, whatever it comes to."""
    reply, session, endpoint = one.answer.reply, line.session, line.endpoint
    return {
        "reason": one.reason.code,
        "detail": one.detail,
        "stage": one.answer.stage.value,
        "probed": 1,
        "mx_host": endpoint.host if endpoint else "",
        "mx_ip": endpoint.ip if endpoint else "",
        "source_ip": session.source_ip if session else "",
        "code": reply.code if reply else None,
        "enhanced": reply.enhanced if reply else "",
        "text": reply.text if reply else "",
        "checked_at": desk.stamp(),
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
    reply, endpoint, consent = one.answer.reply, line.endpoint, desk.job.consent
    return AuditRow(
        at=at + desk.offset_s,
        kind=kind,
        stage=one.answer.stage.value,
        code=reply.code if reply else None,
        enhanced=reply.enhanced if reply else "",
        reason=one.reason.code,
        identity=desk.identity.key,
        consent=consent.reference if consent else "",
        mx_host=endpoint.host if endpoint else "",
        mx_ip=endpoint.ip if endpoint else "",
        address=address,
        text=reply.text if reply else "",
        address_id=address_id,
    )


def connect_row(desk: Desk, line: Line, at: float) -> AuditRow:
    """The audit row of a connection that came to be a session."""
    assert line.endpoint is not None
    consent = desk.job.consent
    return AuditRow(
        at=at + desk.offset_s,
        kind="connect",
        stage=Stage.EHLO.value,
        identity=desk.identity.key,
        consent=consent.reference if consent else "",
        mx_host=line.endpoint.host,
        mx_ip=line.endpoint.ip,
    )
