"""An answer and what it means: the classifier's word, beside the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.core.classify import classify
from engine.core.policy import ReplyRow
from engine.core.reasons import REASONS, Category, Reach, Reason, Stage
from engine.core.verdict import plain_words
from engine.net.session import Answer, SessionEnded


class Judged(NamedTuple):
    """An answer with what it means. `backed` says that a refusal rests on a provider row or recipient words."""

    answer: Answer
    reason: Reason
    detail: str
    reach: Reach
    backed: bool
    accepted: bool
    delay_s: float | None = None

    @property
    def permanent(self) -> bool:
        """Whether it is a 5yz reply."""
        return self.answer.reply is not None and self.answer.reply.code >= 500

    @property
    def refusal(self) -> bool:
        """Whether the server will have counted it among our unknown recipients: a 5yz, or no answer, at RCPT."""
        if self.answer.reply is None:  # pipelined RCPTs have left with the MAIL that was not answered
            return self.answer.stage in (Stage.MAIL, Stage.RCPT)
        return self.answer.stage is Stage.RCPT and self.permanent

    @property
    def unbacked(self) -> bool:
        """Whether it is a refusal that rests on nothing: what the sanity brake counts."""
        return self.reason.category is Category.INVALID and not self.backed and self.answer.reply is not None

    @property
    def words(self) -> str:
        """The reply's code and words without the recipient: what 'refused in the same words' compares."""
        reply = self.answer.reply
        return plain_words(reply.code, reply.text, self.answer.recipient) if reply else ""


def judge(answer: Answer, rows: Sequence[ReplyRow]) -> Judged:
    """Classify an answer; a failure without a reply carries its reason already."""
    reply = answer.reply
    if reply is None:
        reason = REASONS[answer.reason or "protocol_error"]
        return Judged(answer, reason, answer.detail, Reach.NONE, backed=True, accepted=False)
    found = classify(reply.code, reply.enhanced, reply.text, answer.stage, rows, echoed=(answer.recipient,))
    accepted = answer.stage is Stage.RCPT and 200 <= reply.code < 300
    return Judged(answer, found.reason, found.detail, found.reach, found.backed, accepted, found.delay_s)


def judge_ended(ended: SessionEnded, rows: Sequence[ReplyRow]) -> Judged:
    """What the end of a session before its first question means."""
    return judge(Answer("", ended.stage, ended.reply, ended.reason, 0, ended.detail), rows)
