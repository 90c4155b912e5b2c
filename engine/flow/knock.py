"""Standard mode: one connection a site, up to EHLO and STARTTLS; its answer holds for every address there."""

from __future__ import annotations

from engine.core.lane import Visit
from engine.core.reasons import Stage
from engine.core.verdict import Step, next_move
from engine.flow.desk import Desk
from engine.flow.dial import dial
from engine.flow.evidence import columns
from engine.flow.judged import Judged, no_reply
from engine.flow.line import Line, SiteHosts
from engine.flow.survey import ALIVE
from engine.net.session import Answer
from engine.store.job_tables import SETTLED

ALIVE_S = 86_400.0  # a site that let us in is not dialled again for a day


def knock(desk: Desk, visit: Visit, site: SiteHosts) -> None:
    """Dial a site and settle its addresses, or let it wait for another attempt by the ladders."""
    lane, (item,) = visit.lane, visit.first.items
    began = desk.clock()
    line = dial(desk, visit, site)
    try:
        if line.session is not None:
            line.session.quit()
        now, wall = desk.clock(), desk.wall()
        lane.settle(visit, visit.first, 0, now)
        if line.session is None and line.failure is None:  # the run stops, or no cap grants it
            lane.queue.add(item, now)
            return
        item.attempts += 1
        item.first_at = wall if item.first_at is None else item.first_at
        found = line.failure or _let_in(line)
        desk.observe(visit, line, visit.first.domain, [found], now, [False])
        if line.failure is None:
            desk.state.learn(site.key, ALIVE, wall + ALIVE_S, wall)
        move = next_move(
            item, found.reason, permanent=found.permanent, backed=True, delay_s=found.delay_s,
            ladders=lane.policy.retry, now=wall,
        )  # fmt: skip
        if line.failure is not None and move.at is not None and move.step is not Step.PAUSE and not desk.one_attempt:
            item.greylist_steps += move.step is Step.GREYLIST
            item.tempfail_steps += move.step is Step.TEMPFAIL
            item.reconnects += move.step is Step.RECONNECT
            lane.queue.add(item, now, now + move.at - wall)
            desk.write([], line.take_tried())
            return
        state = {"state": SETTLED, "attempts": item.attempts}
        settled = columns(line, found, attempts=item.attempts, at=desk.stamp()) | state
        desk.journal.settle_site(site.id, settled)
        desk.write([], line.take_tried())
    finally:
        if line.session is not None:
            line.session.close()
            desk.metrics.session_closed(lane.policy.name, desk.clock() - began, 0)
        lane.finish(visit, desk.clock())


def _let_in(line: Line) -> Judged:
    """The host greeted us and answered EHLO: as far as Standard mode goes."""
    assert line.session is not None
    stage = Stage.TLS if line.session.tls else Stage.EHLO
    return no_reply(Answer("", stage, None, "", 0, "connected"), "mailbox_unchecked")
