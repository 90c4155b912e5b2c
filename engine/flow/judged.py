"""An answer and what it means: the classifier's word, beside the evidence."""

from __future__ import annotations

from typing import NamedTuple

from engine.core.classify import Classifier
from engine.core.reasons import REASONS, Category, Reach, Reason, Stage
from engine.core.verdict import plain_words
from engine.net.session import Answer, SessionEnded


class Judged(NamedTuple):
    """An answer with what it means.

    `backed` says that a refusal rests on a provider row or recipient words; `refusal` that the server will have counted
    it among our unknown recipients: a 5yz, or no answer, at RCPT. `code`, `enhanced` and `text` are the reply's.
    """

    answer: Answer
    reason: Reason
    detail: str
    reach: Reach
    backed: bool
    accepted: bool
    refusal: bool = False
    delay_s: float | None = None
    code: int | None = None
    enhanced: str = ""
    text: str = ""

    @property
    def permanent(self) -> bool:
        """Whether it is a 5yz reply."""
        return self.code is not None and self.code >= 500

    @property
    def unbacked(self) -> bool:
        """Whether it is a refusal that rests on nothing: what the sanity brake counts."""
        return self.reason.category is Category.INVALID and not self.backed and self.answer.reply is not None

    @property
    def words(self) -> str:
        """The reply's code and words without the recipient: what 'refused in the same words' compares."""
        return plain_words(self.code, self.text, self.answer.recipient) if self.answer.reply else ""


def judge(answer: Answer, classifier: Classifier) -> Judged:
    """Classify an answer; a failure without a reply carries its reason already."""
    reply, stage = answer.reply, answer.stage
    if reply is None:
        unanswered = stage in (Stage.MAIL, Stage.RCPT)  # pipelined RCPTs have left with the MAIL that was not answered
        return no_reply(answer, answer.reason or "protocol_error", refusal=unanswered)
    code, text = reply.code, reply.text
    found = classifier.judge(code, reply.enhanced, text, stage, answer.recipient)
    at_rcpt = stage is Stage.RCPT
    return Judged(
        answer, found.reason, found.detail, found.reach, found.backed, at_rcpt and 200 <= code < 300,
        at_rcpt and code >= 500, found.delay_s, code, reply.enhanced, text,
    )  # fmt: skip


def judge_ended(ended: SessionEnded, classifier: Classifier) -> Judged:
    """What the end of a session before its first question means."""
    return judge(Answer("", ended.stage, ended.reply, ended.reason, 0, ended.detail), classifier)


def no_reply(answer: Answer, reason: str, *, refusal: bool = False) -> Judged:
    """What is known without any reply."""
    return Judged(answer, REASONS[reason], answer.detail, Reach.NONE, backed=True, accepted=False, refusal=refusal)
