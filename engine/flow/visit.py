"""One session at a site: what it asks, and what its answers do.

1. Grants are in the identity state before the first RCPT of a transaction leaves; replies are in the journal before
   tokens and facts go back to the state.
2. The control question of a domain is decided at the end of its first transaction, in the same session. From a
   transaction's answers to its control nothing else of the process runs.
3. A refusal that rests on nothing and an acceptance stay provisional until their evidence is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import gevent

from engine.core.brake import MANY_DOMAINS, Doubt
from engine.core.caps import MAX_HOSTS
from engine.core.control import ControlAnswer, control_local
from engine.core.lane import Batch, Visit
from engine.core.queue import Domain, Item
from engine.core.reasons import Category, Fault, Retry, Stage
from engine.core.verdict import (
    RECONNECTS,
    Next,
    Step,
    acceptance,
    control_answer,
    is_listed_refusal,
    next_move,
)
from engine.flow.desk import Desk
from engine.flow.dial import dial
from engine.flow.evidence import audit_row, columns
from engine.flow.judged import Judged, judge, no_reply
from engine.flow.line import Line, SiteHosts
from engine.net.session import Answer, Session
from engine.store.audit import AuditRow
from engine.store.job_tables import PROVISIONAL, SETTLED, WAITING, Outcome
from engine.store.state import Fact, Grant

POSTMASTER = "postmaster"  # RFC 5321 section 4.5.1: every domain that takes mail has it


class Call:
    """The course of one session; `run` never raises for what a peer or the network does."""

    def __init__(self, desk: Desk, visit: Visit, site: SiteHosts) -> None:
        self.desk = desk
        self.visit = visit
        self.lane = visit.lane
        self.site = site
        self.line = Line()
        self._stops = partial(desk.stops, visit)
        self._asked = 0  # recipients, controls included
        self._leaves = False  # a reply asked for another session
        self._late = False  # its turn would come too late for this session

    def run(self) -> None:
        """Dial, ask batch after batch, and say QUIT."""
        began = self.desk.clock()
        batch: Batch | None = self.visit.first
        eai = not "".join([item.local for item in self.visit.first.items]).isascii()
        try:
            self.line = dial(self.desk, self.visit, self.site, eai=eai)
            session = self.line.session
            if session is None:
                if self.line.failure is not None:
                    self._not_opened(self.visit.first, self.line.failure)
                    batch = None
                return
            while batch is not None and session.alive and not self._late and not self._stops():
                batch = self._ask(session, batch)
            session.quit()
        finally:
            if batch is not None:
                self._put_back(batch)
            if self.line.tried:
                self._write([], [])
            if self.line.session is not None:
                self.line.session.close()
                self.desk.metrics.session_closed(self.lane.policy.name, self.desk.clock() - began, self._asked)
            self.lane.finish(self.visit, self.desk.clock())

    def _not_opened(self, batch: Batch, judged: Judged) -> None:
        """No session: its reason holds for everybody who waits at this site."""
        now = self.desk.clock()
        items = list(batch.items)
        back = self.lane.settle(self.visit, batch, 0, now, asked=False)
        if judged.reason.fault is Fault.NETWORK:
            items += self.lane.queue.take_site(self.site.key)
        for item in items:
            item.attempts += 1
        self._write([self._outcome(item, judged, self.desk.stamp()) for item in items], [])
        self.desk.observe(self.visit, self.line, batch.domain, [judged], now, [False])
        fact = None
        if batch.positive:
            self._positive_judged(judged)
        elif batch.control:
            fact = self._control_judged(batch.domain, judged)
        self._return(back, [fact] if fact else [])

    # --- asking -----------------------------------------------------------------------------------------------

    def _ask(self, session: Session, batch: Batch) -> Batch | None:
        """Ask one transaction and act on its answers; the next one, or None."""
        recipients = self._prepare(batch)
        wait_s = batch.start_at - self.desk.clock()
        if wait_s > 0:
            gevent.sleep(wait_s)
        smtputf8 = not "".join(recipients).isascii()
        if smtputf8 and not session.smtputf8 and not self._stops():
            self._without_utf8(batch)
            return None
        latest = self.lane.ages_at(self.visit)
        asked_at = self.desk.in_turn(self.visit.caps, self._stops, len(recipients), latest)
        if asked_at is None:
            self._late = True
            return batch
        batch.start_at = asked_at
        judged = [judge(answer, self.line.classifier) for answer in session.ask(recipients, smtputf8=smtputf8)]
        self._asked += len(recipients)
        one_for_all = judged[0].answer.stage is Stage.MAIL and judged[0].answer.reply is not None
        for one in judged[:1] if one_for_all else judged:
            self.desk.count(self.lane.policy, one)
        now = self.desk.clock()
        if batch.control or batch.positive:
            return self._single(session, batch, judged[0], now)
        return self._listed(session, batch, judged, now)

    def _prepare(self, batch: Batch) -> list[str]:
        """Whom this batch asks for. Grants, and a control's number, are on disk before anything is asked."""
        desk, domain = self.desk, batch.domain
        granted = begun = None
        if batch is not self.visit.first:
            desk.memory.charged(self.visit.caps)
        if batch.charges:
            wall, site = desk.wall(), self.visit.site
            granted = desk.state.grant(
                [Grant(desk.memory.key(charge.key), site, wall, batch.tokens) for charge in batch.charges]
            )
        if batch.control:
            begun = desk.state.begin_control(domain.name)
        if granted is not None:
            for charge, grant in zip(batch.charges, granted.wait(), strict=True):
                charge.grant = grant
        if begun is not None:
            domain.control_number = begun.wait()
            return [f"{control_local(desk.secret, domain.name, domain.control_number)}@{domain.name}"]
        if batch.positive:
            local, name = desk.journal.accepted_local(self.site.id) or (POSTMASTER, domain.name)
            return [f"{local}@{name}"]
        return [f"{item.local}@{item.domain}" for item in batch.items]

    def _listed(self, session: Session, batch: Batch, judged: list[Judged], now: float) -> Batch | None:
        """Answers for addresses of the list."""
        domain, lane, desk = batch.domain, self.lane, self.desk
        accepted = refused = limited = 0
        for one in judged:
            accepted += one.accepted
            refused += one.refusal
            limited += one.reason.code == "too_many_recipients"
        if accepted and self.site.unbacked and lane.brake.doubt is Doubt.NONE:
            desk.journal.settle_refused(site_id=self.site.id)  # those before this acceptance stand
            self.site.unbacked = False
        if limited:
            self._learn_limit(len(judged), limited)
            self._leaves = True
        vouched = domain.name in lane.policy.control.refuses_unknown_domains
        if not vouched:
            domain.heard(accepted, refused)
        outcomes, rows, firsts, at = [], [], [], desk.stamp()
        for item, one in zip(batch.items, judged, strict=True):
            firsts.append(not item.attempts and one.answer.stage is Stage.RCPT)
            item.attempts += 1
            rows.append(audit_row(desk, self.line, "rcpt", one, batch.start_at, one.answer.recipient, item.id))
            outcomes.append(
                self._accepted(domain, item, one, at, vouched=vouched) if one.accepted else self._outcome(item, one, at)
            )
        self._write(outcomes, rows)
        back = lane.settle(self.visit, batch, refused, now, errors=len(judged) - accepted)
        desk.observe(self.visit, self.line, domain, judged, now, firsts)
        self._brakes(domain, judged, now)
        facts = []
        if not domain.settled and any(is_listed_refusal(one.reason, backed=one.backed) for one in judged):
            facts.append(self._settle_control(domain, ControlAnswer.REFUSES, "listed_refusal"))
        self._return(back, facts)
        asked = domain.control_due is not None or domain.control_asked
        if accepted and not domain.settled and not vouched and not asked:
            return self._begin_control(session, domain, now)
        return self._next(session, judged, now)

    def _next(self, session: Session, judged: Sequence[Judged], now: float) -> Batch | None:
        """The next transaction here; none after a reply that asks for another session."""
        self._leaves = self._leaves or any(one.reason.retry is Retry.RECONNECT for one in judged)
        return self.lane.more(self.visit, now) if session.alive and not self._leaves else None

    def _learn_limit(self, asked: int, limited: int) -> None:
        """So many recipients were too many: for a session, where transactions went before; else for a transaction."""
        lane, desk = self.lane, self.desk
        taken = asked - limited
        if self.visit.recipients > asked:
            lane.learn(per_session=self.visit.recipients - limited)
            desk.state.learn(lane.key, "per_session", lane.per_session, desk.wall())
        else:
            lane.learn(per_transaction=taken)
            desk.state.learn(lane.key, "per_transaction", lane.per_transaction, desk.wall())

    def _begin_control(self, session: Session, domain: Domain, now: float) -> Batch | None:
        if session.alive and not self.lane.policy.control.own_session and not self.visit.half_open:
            batch = self.lane.control(self.visit, domain, now)
            if batch is not None:
                return batch
        self.lane.queue.want_control(domain, now, now)
        return None

    def _single(self, session: Session, batch: Batch, one: Judged, now: float) -> Batch | None:
        """The answer to a control or a positive control."""
        kind = "positive_control" if batch.positive else "control"
        self._write([], [audit_row(self.desk, self.line, kind, one, batch.start_at, one.answer.recipient)])
        back = self.lane.settle(self.visit, batch, one.refusal, now, errors=not one.accepted)
        self.desk.observe(self.visit, self.line, batch.domain, [one], now, [one.answer.stage is Stage.RCPT])
        fact = None
        if batch.positive:
            self._positive_judged(one)
        else:
            fact = self._control_judged(batch.domain, one)
        self._return(back, [fact] if fact else [])
        return self._next(session, [one], now)

    def _without_utf8(self, batch: Batch) -> None:
        """This host takes no non-ASCII recipients; when no other one that can be reached does, that is the answer."""
        assert self.line.endpoint is not None
        self.site.without_utf8 |= {self.line.endpoint.host}
        now, desk = self.desk.clock(), self.desk
        everywhere = self.site.without_utf8 >= {name for name, _ in self.site.hosts[:MAX_HOSTS]}
        unsupported = no_reply(Answer("", Stage.EHLO, None, "", 0, "no_smtputf8"), "eai_unsupported")
        outcomes, at = [], desk.stamp()
        back = self.lane.settle(self.visit, batch, 0, now, asked=False)
        for item in batch.items:
            if item.local.isascii():
                self.lane.queue.add(item, now)
            elif everywhere or item.reconnects >= RECONNECTS:
                outcomes.append(self._outcome(item, unsupported, at))
            else:
                item.reconnects += 1
                self.lane.queue.add(item, now)
                outcomes.append(Outcome(item.id, WAITING, {"reconnects": item.reconnects}))
        self._write(outcomes, [audit_row(desk, self.line, "connect", unsupported, now)])
        self._return(back, [])

    # --- what answers do --------------------------------------------------------------------------------------

    def _brakes(self, domain: Domain, judged: Sequence[Judged], now: float) -> None:
        """The sanity brakes of lane and identity see the answers at RCPT.

        They count unbacked refusals; of others in a row that are alike the first one tells them all.
        """
        brake, before = self.lane.brake, None
        for one in judged:
            if one.answer.stage is not Stage.RCPT or one.answer.reply is None:
                continue
            unbacked = one.unbacked
            heard = one.accepted or (one.backed and one.reason.category is Category.INVALID)
            told = before == (one.accepted, heard)
            before = None if unbacked else (one.accepted, heard)
            if told and not unbacked:
                continue
            if one.accepted:
                self.desk.trust()
                if brake.doubt is Doubt.NONE:
                    brake.accepted()
            elif unbacked:
                brake.refused(domain.name, one.words, now)
            tripped = self.desk.brake.answered(self.site.key, domain.name, unbacked=unbacked, heard=heard)
            if tripped and brake.doubt is Doubt.NONE:
                brake.trip(now, everywhere=True)

    def _accepted(self, domain: Domain, item: Item, one: Judged, at: str, *, vouched: bool) -> Outcome:
        """An acceptance: provisional until the domain's control question is settled."""
        found = columns(self.line, one, attempts=item.attempts, at=at)
        unsure = one.code == 252  # RFC 5321 section 3.5.3
        if not domain.settled and not vouched and not unsure:
            found["reason"], found["catch_all"] = "rcpt_ok", "unknown"
            return Outcome(item.id, PROVISIONAL, found)
        verdict = acceptance(domain.control, refuses_unknown=vouched, unsure=unsure)
        found["reason"], found["catch_all"] = verdict.reason, verdict.catch_all.value
        return Outcome(item.id, SETTLED, found)

    def _outcome(self, item: Item, one: Judged, at: str) -> Outcome:
        """What a refusal or a failure does to its address: settled, provisional, or back into the queue."""
        now = self.desk.clock()
        wall = now + self.desk.offset_s
        if item.first_at is None:
            item.first_at = wall
        item.last_reason = one.reason.code
        move = next_move(
            item, one.reason, permanent=one.permanent, backed=one.backed, delay_s=one.delay_s,
            ladders=self.lane.policy.retry, now=wall,
        )  # fmt: skip
        found = columns(self.line, one, attempts=item.attempts, at=at)
        if move.provisional and (self.lane.brake.distrusts or self.desk.suspect):
            found["reason"] = "refusals_suspect"
            return Outcome(item.id, SETTLED, found)
        if move.at is None or self.desk.one_attempt:
            self.site.unbacked |= move.provisional
            return Outcome(item.id, PROVISIONAL if move.provisional else SETTLED, found)
        _climb(item, move)
        self.lane.queue.add(item, now, now + (move.at - wall), first=move.step is Step.RECONNECT)
        found |= {
            "next_at": move.at, "greylist_steps": item.greylist_steps, "tempfail_steps": item.tempfail_steps,
            "reconnects": item.reconnects, "first_at": item.first_at,
        }  # fmt: skip
        return Outcome(item.id, WAITING, found)

    # --- controls ---------------------------------------------------------------------------------------------

    def _control_judged(self, domain: Domain, one: Judged) -> Fact | None:
        """A control came back: settled, or asked again by the ladder until it is inconclusive."""
        answer = control_answer(one.reason, accepted=one.accepted)
        if answer is ControlAnswer.INCONCLUSIVE and not self.desk.one_attempt:
            steps = domain.control_steps
            waiting = Item(0, "", domain.name, greylist_steps=steps, tempfail_steps=steps, reconnects=steps)
            move = next_move(
                waiting, one.reason, permanent=one.permanent, backed=True, delay_s=one.delay_s,
                ladders=self.lane.policy.retry, now=self.desk.wall(),
            )  # fmt: skip
            if move.at is not None:
                domain.control_steps += move.step is not Step.PAUSE
                now = self.desk.clock()
                self.lane.queue.want_control(domain, now, now + move.at - self.desk.wall())
                return None
        return self._settle_control(domain, answer, "control")

    def _settle_control(self, domain: Domain, answer: ControlAnswer, basis: str) -> Fact:
        """The control question is answered: accepted addresses get their verdict, and a catch-all is asked no more."""
        desk, policy, queue = self.desk, self.lane.policy.control, self.lane.queue
        queue.drop_control(domain)
        now = desk.wall()
        if domain.learnt(answer):
            return self._trip(domain, now)
        verdict = acceptance(answer, refuses_unknown=False)
        desk.journal.settle_accepted(domain.id, verdict.reason, verdict.catch_all.value)
        if answer is ControlAnswer.ACCEPTS:
            queue.drop_domain(domain)
            desk.journal.settle_unasked(domain.id, "catch_all", "known", "yes", desk.stamp())
        ttl_s = policy.inconclusive_ttl_s if answer is ControlAnswer.INCONCLUSIVE else policy.ttl_s
        return Fact(domain.name, self.site.key, answer.value, basis, now, now + ttl_s)

    def _trip(self, domain: Domain, now: float) -> Fact:
        """A site that refused unknown recipients accepts one: nothing that it taught holds any more.

        That the domain accepts is believed for as long as an inconclusive control: the site may say so to us alone.
        """
        desk, lane, site = self.desk, self.lane, self.site
        desk.state.forget_facts(site=site.key)
        desk.state.event("silent_accept", now, {"identity": desk.identity.key, "site": site.key, "domain": domain.name})
        desk.journal.settle_unconfirmed(site.id)
        for other in lane.queue.domains.values():
            if other.site == site.key and other.control is ControlAnswer.REFUSES:
                other.control = ControlAnswer.UNKNOWN
        lane.queue.drop_domain(domain)
        desk.journal.settle_unasked(domain.id, "catch_all", "known", "yes", desk.stamp())
        expires = now + lane.policy.control.inconclusive_ttl_s
        return Fact(domain.name, site.key, ControlAnswer.ACCEPTS.value, "control", now, expires)

    def _positive_judged(self, one: Judged) -> None:
        """The positive control came back: the refusals stand, prove nothing, or the question is asked once more."""
        desk, lane, brake = self.desk, self.lane, self.lane.brake
        domains, everywhere = brake.domains, brake.everywhere
        alike = one.permanent and one.words == brake.words
        doubt = brake.answered(accepted=one.accepted, refused_alike=alike, now=desk.clock())
        if doubt is Doubt.ASKING:
            return
        reason = "refusals_suspect" if doubt is Doubt.SUSPECT else "rcpt_rejected"
        desk.journal.settle_refused(reason, lane=None if everywhere else lane.key)
        if doubt is Doubt.NONE:
            return
        if everywhere:
            desk.distrust()
        brake.release()
        for concerned in [lane.queue.domains[name] for name in domains if name in lane.queue.domains]:
            lane.queue.drop_domain(concerned)
            desk.journal.settle_unasked(concerned.id, "refusals_suspect", "not_asked", "not_checked", desk.stamp())
        if len(domains) >= MANY_DOMAINS:
            lane.breaker.open(desk.clock(), "refusals_suspect", desk.jitter())

    # --- writing ----------------------------------------------------------------------------------------------

    def _write(self, outcomes: Sequence[Outcome], rows: Sequence[AuditRow]) -> None:
        """To the journal, with the connections that led here."""
        self.desk.write(outcomes, [*self.line.take_tried(), *rows])

    def _return(self, back: Sequence[tuple[int, int]], facts: Sequence[Fact]) -> None:
        """State after journal: tokens and facts follow the replies that prove them."""
        if back:
            self.desk.state.give_back(back)
        if facts:
            self.desk.state.put_facts(facts)

    def _put_back(self, batch: Batch) -> None:
        """The batch was not asked: its addresses wait again, its tokens return."""
        now = self.desk.clock()
        self._return(self.lane.settle(self.visit, batch, 0, now, asked=False), [])
        for item in reversed(batch.items):
            self.lane.queue.add(item, now, first=True)
        if batch.control:
            self.lane.queue.want_control(batch.domain, now, now)


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
