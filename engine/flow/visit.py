"""One session at a site: what it asks, and what its answers do.

1. Grants are in the identity state before the first RCPT of a transaction leaves; replies are in the journal before
   tokens and facts go back to the state.
2. The control question of a domain is decided at the end of its first transaction, in the same session.
3. A refusal that rests on nothing and an acceptance stay provisional until their evidence is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent

from engine.core.brake import MANY_DOMAINS, Doubt
from engine.core.control import ControlAnswer, control_local
from engine.core.lane import Batch, Domain, Item, Visit
from engine.core.reasons import REASONS, Fault, Reach, Stage
from engine.core.verdict import Next, Step, acceptance, control_answer, is_listed_refusal, next_move
from engine.flow.dial import MAX_HOSTS, Desk, Line, SiteHosts, dial
from engine.flow.judged import Judged, judge
from engine.net.session import Answer, Session
from engine.store.audit import AuditRow
from engine.store.journal import PROVISIONAL, SETTLED, WAITING, Outcome
from engine.store.state import Fact, Grant


class Call:
    """The course of one session; `run` never raises for what a peer or the network does."""

    def __init__(self, desk: Desk, visit: Visit, site: SiteHosts) -> None:
        self.desk = desk
        self.visit = visit
        self.lane = visit.lane
        self.site = site
        self.line = Line()

    def run(self) -> None:
        """Dial, ask batch after batch, and say QUIT."""
        batch: Batch | None = self.visit.first
        eai = any(not item.local.isascii() for item in self.visit.first.items)
        try:
            self.line = dial(self.desk, self.lane.policy, self.site, eai=eai)
            session = self.line.session
            if session is None:
                assert self.line.failure is not None
                self._not_opened(self.visit.first, self.line.failure)
                return
            while batch is not None and session.alive and not self.desk.draining:
                batch = self._ask(session, batch)
            if batch is not None:
                self._put_back(batch)
            session.quit()
        finally:
            if self.line.session is not None:
                self.line.session.close()
            self.lane.finish(self.visit, self.desk.clock())

    def _not_opened(self, batch: Batch, judged: Judged) -> None:
        """No session: its reason holds for everybody who waits at this site."""
        now = self.desk.clock()
        items = list(batch.items)
        if judged.reason.fault is Fault.NETWORK:
            items += self.lane.take_site(self.site.key)
        outcomes = [self._outcome(item, judged) for item in items]
        ticket = self.desk.journal.record(outcomes, [self._audit("connect", judged, "")])
        back = self.lane.settle(self.visit, batch, 0, now)
        self.lane.observe(batch.domain, judged.reason, judged.reach, now, self.desk.jitter())
        if batch.positive:
            self._positive_judged(batch.domain, judged)
        fact = self._control_judged(batch.domain, judged) if batch.control else None
        self._give_back(batch, back, [fact] if fact else [], ticket)

    # --- asking -----------------------------------------------------------------------------------------------

    def _ask(self, session: Session, batch: Batch) -> Batch | None:
        """Ask one transaction and act on its answers; the next one, or None."""
        recipients = self._recipients(batch)
        self._grant(batch)
        wait_s = batch.start_at - self.desk.clock()
        if wait_s > 0:
            gevent.sleep(wait_s)
        smtputf8 = not "".join(recipients).isascii()
        if smtputf8 and not session.smtputf8:
            return self._without_utf8(session, batch)
        judged = [judge(answer, self.line.rows) for answer in session.ask(recipients, smtputf8=smtputf8)]
        now = self.desk.clock()
        if batch.control or batch.positive:
            return self._single(session, batch, judged[0], now)
        return self._listed(session, batch, judged, now)

    def _listed(self, session: Session, batch: Batch, judged: list[Judged], now: float) -> Batch | None:
        """Answers for addresses of the list."""
        domain, lane = batch.domain, self.lane
        limited = [one for one in judged if one.reason.code == "too_many_recipients"]
        if limited:
            lane.learn(per_transaction=max(1, len(judged) - len(limited)))
        outcomes, rows = [], []
        for item, one in zip(batch.items, judged, strict=True):
            item.attempts += 1
            rows.append(self._audit("rcpt", one, one.answer.recipient, item.id))
            outcomes.append(self._accepted(domain, item, one) if one.accepted else self._outcome(item, one))
        ticket = self.desk.journal.record(outcomes, rows)
        back = lane.settle(self.visit, batch, sum(one.refusal for one in judged), now)
        for one in judged:
            self._observe(domain, one, now)
        facts = []
        if not domain.settled and any(is_listed_refusal(one.reason, backed=one.backed) for one in judged):
            facts.append(self._settle_control(domain, ControlAnswer.REFUSES, "listed_refusal"))
        wants_control = not domain.settled and any(one.accepted for one in judged)
        self._give_back(batch, back, facts, ticket)
        if wants_control and domain.control_due is None:
            return self._begin_control(session, domain, now)
        return lane.more(self.visit, now) if session.alive else None

    def _begin_control(self, session: Session, domain: Domain, now: float) -> Batch | None:
        if session.alive and not self.lane.policy.control.own_session and not self.visit.half_open:
            batch = self.lane.control(self.visit, domain, now)
            if batch is not None:
                return batch
        self.lane.want_control(domain, now, now)
        return None

    def _single(self, session: Session, batch: Batch, one: Judged, now: float) -> Batch | None:
        """The answer to a control or a positive control."""
        kind = "positive_control" if batch.positive else "control"
        ticket = self.desk.journal.record([], [self._audit(kind, one, one.answer.recipient)])
        back = self.lane.settle(self.visit, batch, one.refusal, now)
        facts = []
        if batch.positive:
            self._positive_judged(batch.domain, one)
        else:
            self._observe(batch.domain, one, now, counted=False)
            fact = self._control_judged(batch.domain, one)
            facts = [fact] if fact else []
        self._give_back(batch, back, facts, ticket)
        return self.lane.more(self.visit, now) if session.alive else None

    def _without_utf8(self, session: Session, batch: Batch) -> Batch | None:
        """This host takes no non-ASCII recipients; when none of the site's does, that is the answer."""
        assert self.line.endpoint is not None
        self.site.without_utf8.add(self.line.endpoint.host)
        now = self.desk.clock()
        everywhere = self.site.without_utf8 >= {name for name, _ in self.site.hosts[:MAX_HOSTS]}
        judged = Judged(
            Answer("", Stage.EHLO, None, "eai_unsupported", 0), REASONS["eai_unsupported"], "no_smtputf8",
            Reach.NONE, backed=True, accepted=False,
        )  # fmt: skip
        eai = [item for item in batch.items if not item.local.isascii()]
        rest = [item for item in batch.items if item.local.isascii()]
        ticket = None
        if everywhere:
            ticket = self.desk.journal.record(
                [self._outcome(item, judged) for item in eai], [self._audit("connect", judged, "")]
            )
        else:
            rest += eai
        back = self.lane.settle(self.visit, batch, 0, now)
        for item in rest:
            self.lane.add(item, now)
        self._give_back(batch, back, [], ticket)
        return self.lane.more(self.visit, now) if everywhere else None

    # --- what answers do --------------------------------------------------------------------------------------

    def _observe(self, domain: Domain, one: Judged, now: float, *, counted: bool = True) -> None:
        """Breaker and brake see each reply once."""
        self.lane.observe(domain, one.reason, one.reach, now, self.desk.jitter())
        if not counted:
            return
        if one.answer.stage is Stage.RCPT and one.answer.reply is not None:
            tripped = self.desk.brake.answered(self.site.key, unbacked=one.unbacked)
            if tripped:
                self.lane.brake.trip(now, everywhere=True)
        if one.accepted:
            self.desk.suspect = False
            if self.lane.brake.doubt is Doubt.NONE and self.lane.brake.domains:
                self.desk.journal.settle_refused([self.site.id])
            self.lane.brake.accepted()
        elif one.unbacked:
            self.lane.brake.refused(domain.name, one.words, now)

    def _accepted(self, domain: Domain, item: Item, one: Judged) -> Outcome:
        """An acceptance: provisional until the domain's control question is settled."""
        columns = self._columns(item, one)
        vouched = domain.name in self.lane.policy.control.refuses_unknown_domains
        unsure = one.answer.reply is not None and one.answer.reply.code == 252  # RFC 5321 section 3.5.3
        if not domain.settled and not vouched and not unsure:
            return Outcome(item.id, PROVISIONAL, columns | {"reason": "rcpt_ok", "catch_all": "unknown"})
        verdict = acceptance(domain.control, refuses_unknown=vouched, unsure=unsure)
        return Outcome(item.id, SETTLED, columns | {"reason": verdict.reason, "catch_all": verdict.catch_all.value})

    def _outcome(self, item: Item, one: Judged) -> Outcome:
        """What a refusal or a failure does to its address: settled, provisional, or back into the queue."""
        now, wall = self.desk.clock(), self.desk.wall()
        if one.answer.stage is not Stage.RCPT:
            item.attempts += 1 if one.reason.code != "eai_unsupported" else 0
        if item.first_at is None:
            item.first_at = wall
        item.last_reason = one.reason.code
        move = next_move(
            item, one.reason, permanent=one.permanent, backed=one.backed, delay_s=one.delay_s,
            ladders=self.lane.policy.retry, now=wall,
        )  # fmt: skip
        columns = self._columns(item, one)
        if move.at is None or self.desk.one_attempt:
            return Outcome(item.id, PROVISIONAL if move.provisional else SETTLED, columns)
        _climb(item, move)
        self.lane.add(item, now, now + (move.at - wall), first=move.step is Step.RECONNECT)
        columns |= {
            "next_at": move.at, "greylist_steps": item.greylist_steps, "tempfail_steps": item.tempfail_steps,
            "reconnects": item.reconnects, "first_at": item.first_at,
        }  # fmt: skip
        return Outcome(item.id, WAITING, columns)

    def _columns(self, item: Item, one: Judged) -> dict[str, Any]:
        reply, session, endpoint = one.answer.reply, self.line.session, self.line.endpoint
        return {
            "reason": one.reason.code, "detail": one.detail, "stage": one.answer.stage.value, "probed": 1,
            "provider": self.lane.policy.name, "mx_host": endpoint.host if endpoint else "",
            "mx_ip": endpoint.ip if endpoint else "", "source_ip": session.source_ip if session else "",
            "code": reply.code if reply else None, "enhanced": reply.enhanced if reply else "",
            "text": reply.text if reply else "", "checked_at": self.desk.stamp(), "attempts": item.attempts,
            "duration_ms": one.answer.duration_ms,
            "catch_all": "no" if is_listed_refusal(one.reason, backed=one.backed) else "not_checked",
        }  # fmt: skip

    # --- controls ---------------------------------------------------------------------------------------------

    def _control_judged(self, domain: Domain, one: Judged) -> Fact | None:
        """A control came back: settled, or asked again by the ladder until it is inconclusive."""
        answer = control_answer(one.reason, accepted=one.accepted)
        if answer is ControlAnswer.INCONCLUSIVE:
            waiting = Item(0, "", domain.name, greylist_steps=domain.control_steps, tempfail_steps=domain.control_steps)
            move = next_move(
                waiting, one.reason, permanent=one.permanent, backed=True, delay_s=one.delay_s,
                ladders=self.lane.policy.retry, now=self.desk.wall(),
            )  # fmt: skip
            if move.at is not None and not self.desk.one_attempt:
                domain.control_steps += move.step in (Step.GREYLIST, Step.TEMPFAIL)
                now = self.desk.clock()
                self.lane.want_control(domain, now, now + move.at - self.desk.wall())
                return None
        return self._settle_control(domain, answer, "control")

    def _settle_control(self, domain: Domain, answer: ControlAnswer, basis: str) -> Fact:
        """The control question is answered: accepted addresses get their verdict, and a catch-all is asked no more."""
        desk, policy = self.desk, self.lane.policy.control
        domain.control = answer
        verdict = acceptance(answer, refuses_unknown=False)
        desk.journal.settle_accepted(domain.id, verdict.reason, verdict.catch_all.value)
        if answer is ControlAnswer.ACCEPTS:
            self.lane.drop_domain(domain)
            desk.journal.settle_unasked(domain.id, "catch_all", "known", "yes", desk.stamp())
        ttl_s = policy.inconclusive_ttl_s if answer is ControlAnswer.INCONCLUSIVE else policy.ttl_s
        now = desk.wall()
        return Fact(
            domain=domain.name, site=self.site.key, answer=answer.value, basis=basis, at=now, expires=now + ttl_s
        )  # fmt: skip

    def _positive_judged(self, domain: Domain, one: Judged) -> None:
        """The positive control came back: the refusals stand, prove nothing, or the question is asked once more."""
        desk, lane, brake = self.desk, self.lane, self.lane.brake
        domains, everywhere = brake.domains, brake.everywhere
        alike = one.permanent and one.words == brake.words
        doubt = brake.answered(accepted=one.accepted, refused_alike=alike, now=desk.clock())
        if doubt is Doubt.ASKING:
            return
        reason = "refusals_suspect" if doubt is Doubt.SUSPECT else "rcpt_rejected"
        desk.journal.settle_refused(None if everywhere else [self.site.id], reason)
        if doubt is Doubt.NONE:
            return
        desk.suspect = desk.suspect or everywhere
        brake.release()
        for name in domains:
            concerned = lane.domains[name]
            lane.drop_domain(concerned)
            desk.journal.settle_unasked(concerned.id, "refusals_suspect", "not_asked", "not_checked", desk.stamp())
        if len(domains) >= MANY_DOMAINS:
            lane.breaker.open(desk.clock(), "refusals_suspect", desk.jitter())

    # --- writing ----------------------------------------------------------------------------------------------

    def _recipients(self, batch: Batch) -> list[str]:
        """Whom this batch asks for; a control's number is persisted before it is asked."""
        domain = batch.domain
        if batch.positive:
            known = self.desk.journal.accepted_local(self.site.id)
            local, name = known or ("postmaster", domain.name)
            return [f"{local}@{name}"]
        if batch.control:
            domain.control_number = self.desk.state.begin_control(domain.name).wait()
            return [f"{control_local(self.desk.secret, domain.name, domain.control_number)}@{domain.name}"]
        return [f"{item.local}@{item.domain}" for item in batch.items]

    def _grant(self, batch: Batch) -> None:
        if batch.tokens:
            grant = Grant(self.lane.key, self.visit.site, self.desk.wall(), batch.tokens)
            (batch.grant,) = self.desk.state.grant([grant]).wait()

    def _give_back(self, batch: Batch, back: int, facts: Sequence[Fact], ticket: Any) -> None:
        """State after journal: tokens, facts and the audit head follow the replies that prove them."""
        if back and batch.grant:
            self.desk.state.give_back([(batch.grant, back)])
        if facts:
            self.desk.state.put_facts(facts)
        head = ticket.wait() if ticket is not None else None
        if head is not None:
            self.desk.state.put_head(self.desk.job.id, head.seq, head.hash)

    def _put_back(self, batch: Batch) -> None:
        """The session died before this batch could be asked: its addresses wait again, its tokens return."""
        now = self.desk.clock()
        self.lane.settle(self.visit, batch, 0, now)
        for item in reversed(batch.items):
            self.lane.add(item, now, first=True)
        if batch.control:
            self.lane.want_control(batch.domain, now, now)

    def _audit(self, kind: str, one: Judged, address: str, address_id: int | None = None) -> AuditRow:
        reply, endpoint = one.answer.reply, self.line.endpoint
        return AuditRow(
            at=self.desk.wall(), kind=kind, stage=one.answer.stage.value, code=reply.code if reply else None,
            enhanced=reply.enhanced if reply else "", reason=one.reason.code, identity=self.desk.identity.key,
            consent=self.desk.job.consent.reference if self.desk.job.consent else "",
            mx_host=endpoint.host if endpoint else "", mx_ip=endpoint.ip if endpoint else "",
            address=address, text=reply.text if reply else "", address_id=address_id,
        )  # fmt: skip


def _climb(item: Item, move: Next) -> None:
    match move.step:
        case Step.GREYLIST:
            item.greylist_steps += 1
        case Step.TEMPFAIL:
            item.tempfail_steps += 1
        case Step.RECONNECT:
            item.reconnects += 1
        case _:
            pass
