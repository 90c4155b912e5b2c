"""What a judged answer means for its address: settled, provisional, or asked again later.

1. A permanent reply is not asked again in the same run; only what says *later*, or said nothing, is.
2. A refusal that rests on nothing (`rcpt_rejected`) and an acceptance are provisional until their evidence is in.
3. A ladder's steps are gaps; a delay that the reply names replaces a step when it is longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from engine.core.control import ControlAnswer
from engine.core.policy import Ladders
from engine.core.queue import Item
from engine.core.reasons import Category, Fault, Reach, Reason, Retry
from engine.core.result import CatchAll

RECONNECTS = 2  # sessions more for an address whose session or transaction was cut short


class Step(StrEnum):
    """Which ladder an address climbs."""

    NONE = "none"
    GREYLIST = "greylist"
    TEMPFAIL = "tempfail"
    RECONNECT = "reconnect"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Next:
    """What happens to an address now: `at` (wall clock) of its next attempt, or None when it has its answer."""

    at: float | None
    step: Step = Step.NONE
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What an accepted address is worth under its domain's control answer."""

    reason: str
    catch_all: CatchAll


ANSWERED = Next(None)
REFUSED = Next(None, provisional=True)
CONFIRMED = Acceptance("rcpt_ok", CatchAll.NO)
UNCONFIRMED = Acceptance("accepted_unconfirmed", CatchAll.UNKNOWN)
EVERYBODY = Acceptance("catch_all", CatchAll.YES)


def next_move(  # noqa: PLR0911 - one return a row of the rule
    item: Item, reason: Reason, *, permanent: bool, backed: bool, delay_s: float | None, ladders: Ladders, now: float
) -> Next:
    """Judge what follows an answer that is no acceptance.

    `permanent` says that the reply was a 5yz, `backed` that a refusal rests on a provider row or recipient words.
    """
    if reason.category is Category.INVALID:
        return ANSWERED if backed else REFUSED
    if reason.answered or reason.retry is Retry.NONE:
        return ANSWERED
    if reason.retry is Retry.RECONNECT:
        return Next(now, Step.RECONNECT) if item.reconnects < RECONNECTS else ANSWERED
    if reason.retry is Retry.PAUSE and reason.reach is not Reach.NONE:
        return Next(now + (delay_s or 0.0), Step.PAUSE)
    if permanent and reason.retry is not Retry.GREYLIST:
        return ANSWERED
    if reason.retry is Retry.GREYLIST:
        return _climb(item, Step.GREYLIST, ladders.greylist_s, item.greylist_steps, delay_s, ladders.give_up_s, now)
    return _climb(item, Step.TEMPFAIL, ladders.tempfail_s, item.tempfail_steps, delay_s, ladders.give_up_s, now)


def _climb(
    item: Item, step: Step, ladder: tuple[float, ...], used: int, delay_s: float | None, give_up_s: float, now: float
) -> Next:
    if used >= len(ladder):
        return ANSWERED
    gap = max(ladder[used], delay_s or 0.0)
    first = now if item.first_at is None else item.first_at
    if now + gap > first + give_up_s:
        return ANSWERED
    return Next(now + gap, step)


def acceptance(control: ControlAnswer, *, refuses_unknown: bool, unsure: bool = False) -> Acceptance:
    """The verdict on an accepted address: `valid` needs a refused control, or a policy that vouches for the domain.

    `unsure` marks replies such as 252, which accept without saying that the mailbox exists.
    """
    if unsure and control is not ControlAnswer.ACCEPTS:
        return UNCONFIRMED
    if refuses_unknown:
        return CONFIRMED
    match control:
        case ControlAnswer.REFUSES:
            return CONFIRMED
        case ControlAnswer.ACCEPTS:
            return EVERYBODY
        case _:
            return UNCONFIRMED


def control_answer(reason: Reason, *, accepted: bool) -> ControlAnswer:
    """What a control's reply says of its domain: a recipient-type refusal, an acceptance, or nothing."""
    if accepted:
        return ControlAnswer.ACCEPTS
    if reason.category is Category.INVALID and reason.fault is Fault.RECIPIENT:
        return ControlAnswer.REFUSES
    return ControlAnswer.INCONCLUSIVE


def is_listed_refusal(reason: Reason, *, backed: bool) -> bool:
    """Whether a listed address's refusal shows that its domain refuses unknown recipients: recipient evidence only."""
    return backed and reason.code == "mailbox_not_found"


def plain_words(code: int | None, text: str, recipient: str) -> str:
    """A reply's code and words without the recipient: what 'refused in the same words' compares."""
    words, recipient = text.lower(), recipient.lower()
    local, _, domain = recipient.partition("@")
    for echoed in (recipient, domain, local):
        words = words.replace(echoed, "") if len(echoed) > 2 else words
    return f"{code} {' '.join(words.split())}"
