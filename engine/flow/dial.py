"""Whom a visit dials: the hosts of a site in order, and when the next one may be tried.

1. At most 3 hosts, 2 addresses each, and none whose caps grant nothing now.
2. The next is tried only when one could not be reached, or said 4yz of its own state. Any reply that blames us, at
   any stage, ends the attempt for the whole site.
3. What leaves, a connection or a transaction, leaves in its turn: the limits hold at that moment too, and the audit
   has it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import gevent

from engine.core.caps import MAX_ADDRESSES
from engine.core.lane import Lane, Visit
from engine.core.reasons import Fault, Reach, Stage
from engine.flow.desk import Desk
from engine.flow.evidence import audit_row, connect_row
from engine.flow.judged import Judged, judge_ended, no_reply
from engine.flow.line import Line, SiteHosts
from engine.net.session import Answer, Session, SessionEnded

_OWN_STATE = frozenset({"server_busy", "server_storage", "smtp_tempfail"})


def dial(desk: Desk, visit: Visit, site: SiteHosts, *, eai: bool = False) -> Line:
    """Open a session at the first host that lets us in. `eai` puts hosts known to lack SMTPUTF8 last.

    A line without session and failure: nothing was dialled, because the run stops or no cap grants it now.
    """
    policy = visit.lane.policy
    identity = desk.identity  # it asks from addresses that it has stated, and from no other
    endpoints = [
        each for each in site.endpoints(desk.port) if (identity.public_v6 if ":" in each.ip else identity.public_v4)
    ]
    if eai:
        endpoints.sort(key=lambda endpoint: endpoint.host in site.without_utf8)
    line, dialled, stops = Line(), not endpoints, partial(desk.stops, visit)
    for endpoint in endpoints:
        if stops():
            line.failure = None  # nobody knows what the next host would have said
            return line
        if not desk.admit(visit, endpoint.host, endpoint.ip):
            continue
        dialled_at = desk.in_turn(visit.caps, stops)
        if dialled_at is None:
            line.failure = None
            return line
        dialled = True
        line.classifier = desk.classifier(desk.policies.claiming(endpoint.host) or policy)
        line.endpoint = endpoint
        session = Session(endpoint, desk.identity, policy.timeouts, policy.tls, transcript=desk.transcript)
        try:
            session.open()
        except SessionEnded as ended:
            line.failure = judge_ended(ended, line.classifier)
            line.tried.append(audit_row(desk, line, "connect", line.failure, dialled_at))
            desk.count(policy, line.failure)
            desk.guard.dialled(visit, site, connected=bool(session.source_ip), reason=line.failure.reason.code)
            if not _next_may_try(line.failure):
                return line
        else:
            desk.guard.dialled(visit, site, connected=True)
            line.tried.append(connect_row(desk, line, dialled_at))
            line.session, line.failure = session, None
            return line
    if line.failure is None and dialled:
        line.failure = no_reply(
            Answer("", Stage.CONNECT, None, "", 0, "no address that we can dial"), "network_unreachable"
        )
        line.tried.append(audit_row(desk, line, "connect", line.failure, desk.clock()))
    return line


def reach(desk: Desk, lane: Lane, site: SiteHosts) -> bool:
    """Whether a site can still be connected to: one connection within its lane's limits, that says QUIT at once."""
    while until := lane.greet(desk.clock()):
        gevent.sleep(until - desk.clock())
        if desk.draining:
            return True
    if until is None:  # sessions there are open, or it refuses us: it proves nothing
        return True
    try:
        for endpoint in site.endpoints(desk.port)[:MAX_ADDRESSES]:
            if desk.in_turn(lane.caps, lambda: desk.draining) is None:
                return True
            session = Session(
                endpoint, desk.identity, lane.policy.timeouts, lane.policy.tls, transcript=desk.transcript
            )
            with suppress(SessionEnded):
                session.open()
            session.quit()
            if session.source_ip:
                return True
    finally:
        lane.part()
    return False


def _next_may_try(failure: Judged) -> bool:
    """Whether the host could not be reached, or said 4yz of its own state and nothing of us."""
    if failure.reach is not Reach.NONE:
        return False
    if failure.answer.reply is not None:
        return not failure.permanent and failure.reason.code in _OWN_STATE
    return failure.reason.fault is Fault.NETWORK
