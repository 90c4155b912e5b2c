"""Standard mode: one connection a site, up to EHLO and STARTTLS; its answer holds for every address there."""

from __future__ import annotations

from engine.core.lane import Visit
from engine.core.reasons import Stage
from engine.core.verdict import Step, next_move
from engine.flow.dial import Desk, Line, SiteHosts, dial
from engine.store.audit import AuditRow
from engine.store.journal import SETTLED


def knock(desk: Desk, visit: Visit, site: SiteHosts) -> None:
    """Dial a site and settle its addresses, or let it wait for another attempt by the tempfail ladder."""
    lane, (item,) = visit.lane, visit.first.items
    line = dial(desk, lane.policy, site)
    try:
        if line.session is not None:
            line.session.quit()
        now, wall = desk.clock(), desk.wall()
        lane.settle(visit, visit.first, 0, now)
        failure = line.failure
        item.attempts += 1
        item.first_at = wall if item.first_at is None else item.first_at
        if failure is not None and not desk.one_attempt:
            move = next_move(
                item, failure.reason, permanent=failure.permanent, backed=True, delay_s=failure.delay_s,
                ladders=lane.policy.retry, now=wall,
            )  # fmt: skip
            if move.at is not None and move.step in (Step.TEMPFAIL, Step.GREYLIST):
                item.tempfail_steps += 1
                lane.add(item, now, now + move.at - wall)
                return
        _settle(desk, site, line, item.attempts)
    finally:
        if line.session is not None:
            line.session.close()
        lane.finish(visit, desk.clock())


def _settle(desk: Desk, site: SiteHosts, line: Line, attempts: int) -> None:
    failure, endpoint, session = line.failure, line.endpoint, line.session
    reply = failure.answer.reply if failure else None
    reason = failure.reason.code if failure else "mailbox_unchecked"
    stage = failure.answer.stage if failure else (Stage.TLS if session and session.tls else Stage.EHLO)
    columns = {
        "state": SETTLED, "reason": reason, "detail": failure.detail if failure else "connected", "stage": stage.value,
        "probed": 1, "attempts": attempts, "mx_host": endpoint.host if endpoint else "",
        "mx_ip": endpoint.ip if endpoint else "", "source_ip": session.source_ip if session else "",
        "code": reply.code if reply else None, "enhanced": reply.enhanced if reply else "",
        "text": reply.text if reply else "", "checked_at": desk.stamp(),
    }  # fmt: skip
    row = AuditRow(
        at=desk.wall(), kind="connect", stage=stage.value, code=reply.code if reply else None,
        enhanced=reply.enhanced if reply else "", reason=reason, identity=desk.identity.key,
        consent=desk.job.consent.reference if desk.job.consent else "", mx_host=endpoint.host if endpoint else "",
        mx_ip=endpoint.ip if endpoint else "", address="", text=reply.text if reply else "", address_id=None,
    )  # fmt: skip
    ticket = desk.journal.settle_site(site.id, columns, [row])
    head = ticket.wait()
    if head is not None:
        desk.state.put_head(desk.job.id, head.seq, head.hash)
