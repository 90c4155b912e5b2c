"""From a reply to a Reason: `classify(code, enhanced, text, stage, rows)`; a `Classifier` remembers what it has read.

1. Lookup order: provider row, words that excuse the recipient (they blame us or the message, or say that the mailbox
   is there), enhanced code, other words, three-digit code, stage. The first that knows an answer gives it.
2. `_gate` is the one place that lets an `invalid` through. It holds the hard rules: a 5yz at RCPT, never X.7.x (but
   a disabled account) nor X.3.x, never a code that speaks of something else, never a text that speaks of our host or
   says "for now". What it stops becomes the nearest risky reason.
3. Provider rows pass the gate of code and stage; only they may read X.7.x or X.3.x as a refused recipient.
4. A reply out of a log or after DATA (stages `unknown`, `data`) is read as if at RCPT.
5. The three-digit code says whether it is final; an enhanced code of another class only says what about.

Sources: RFC 5321 section 4.2, RFC 3463, RFC 7504, RFC 7505, IANA's registry of enhanced status codes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from engine.core import codes, rules
from engine.core.policy import ReplyRow
from engine.core.reasons import REASONS, Category, Fault, Reach, Reason, Retry, Stage
from engine.core.reply_text import list_name, may_name, named_delay, to_anybody, unfold, without_addresses, words

VERSION = "2026.11.2"

_ENHANCED = re.compile(r"#?(([245])\.(\d{1,3}\.\d{1,3}))(?![.\d])[\s:;,-]*")
_CODE = re.compile(r"(?:smtp;\s*)?([2-5]\d\d)(?:[ -]|$)")
# A reply quoted inside this one that says "later": the outer refusal then rests on a moment's trouble.
_INNER_TEMPORARY = re.compile(
    r"\b(?:said|response|reply|replied|answer|answered|returned|error)\b\D{0,20}\b4\d\d\b", re.I
)

# RFC 7504 section 3 in its own words: "Host does not accept mail". The host is the server, not we, unless they say so.
_HOST_TAKES_NO_MAIL = re.compile(
    r"\b(?:host|server|system|machine)\b(?: \S+)? (?:does not|doesn't|do not|will not|never) "
    r"(?:accept|receive|take)s? (?:any )?e?-?mail", re.I,
)  # fmt: skip
_OF_US = re.compile(r"\b(?:your|client|from)\b", re.I)

SHORT = 32  # words of a reply that is remembered
SHORT_TEXT = 512  # characters of one
REMEMBERED = 512  # replies of the hosts under one policy

_AS_RCPT = frozenset({Stage.RCPT, Stage.DATA, Stage.UNKNOWN})
_BEFORE_RCPT = {  # what a reply that says nothing more means there: 4yz, 5yz
    Stage.CONNECT: ("server_busy", "greeting_rejected"),
    Stage.EHLO: ("smtp_tempfail", "helo_rejected"),
    Stage.TLS: ("tls_handshake_failed", "tls_handshake_failed"),
    Stage.MAIL: ("smtp_tempfail", "sender_rejected"),
}
# Codes that speak of something else than the recipient, whatever words follow (design section 3, rule 4).
_NOT_OF_A_USER = frozenset({521, 530, 535, 552, 556})
_SOURCE_FAULTS = frozenset({Fault.US, Fault.POLICY, Fault.DOMAIN})


def _bits(family: Sequence[rules.Rule], classes: str = "45") -> int:
    return sum(
        1 << place for place, rule in enumerate(rules.RULES) if rule in family and set(classes) & set(rule.classes)
    )


_OF_CLASS = {True: _bits(rules.RULES, "5"), False: _bits(rules.RULES, "4"), None: _bits(rules.RULES)}
_EXCUSES, _MAILBOX, _DOMAIN = _bits(rules.EXCUSES), _bits(rules.MAILBOX), _bits(rules.DOMAIN)
_BLOCKED = _bits(rules.POLICY[:1])
_STATE, _POLICY = _bits(rules.STATE), _bits(rules.POLICY)
_GENERIC, _UNSERVED = _bits(rules.GENERIC), _bits(rules.GENERIC[:1])


class Judgement(NamedTuple):
    """What a reply means.

    `rule` names what decided: `provider[0]`, `words:block_list`, `enhanced:5.1.1`, `code:550`, `stage:mail`.
    `detail` adds what the reason can't say, such as the block list's name. `delay_s` is a delay that the reply asks
    for. `reach` is who is refused. `backed`: an invalid that rests on a provider row, or on what the reply says of
    the recipient or its domain.
    """

    reason: Reason
    rule: str
    detail: str = ""
    delay_s: float | None = None
    reach: Reach = Reach.NONE
    backed: bool = False


class Classifier:
    """Judges the replies of the hosts under one policy. Most are the same few, but for whom they were to: read once."""

    __slots__ = ("_again", "rows")

    def __init__(self, rows: Sequence[ReplyRow] = ()) -> None:
        self.rows = rows
        self._again = lru_cache(maxsize=REMEMBERED)(self._read)

    def judge(self, code: int, enhanced: str, text: str, stage: Stage, recipient: str = "") -> Judgement:
        """`classify`, where a reply may quote the recipient that it answers."""
        text = to_anybody(text, recipient)
        if len(text) > SHORT_TEXT or may_name(text, recipient):
            return classify(code, enhanced, text, stage, self.rows, echoed=(recipient,) if recipient else ())
        return self._again(code, enhanced, text, stage)

    def _read(self, code: int, enhanced: str, text: str, stage: Stage) -> Judgement:
        return classify(code, enhanced, text, stage, self.rows)


class _Reply(NamedTuple):
    """A reply made ready: `status` is the enhanced code without its class, `hits` the bits of the rules that apply."""

    code: int | None
    final: bool | None  # a 5yz; None: nothing says
    enhanced: str
    status: str
    text: str  # unfolded, without the codes in front
    words: tuple[str, ...]
    hits: int
    stage: Stage  # RCPT for all that is read so


def classify(
    code: int | None,
    enhanced: str,
    text: str,
    stage: Stage,
    rows: Sequence[ReplyRow] = (),
    *,
    echoed: Sequence[str] = (),
) -> Judgement:
    """Judge one reply; any input gives a Judgement.

    `rows` are the replies of the policy that claims the host. `echoed` are names that the reply may quote from us
    (the recipient, our sender, our HELO name): they are no evidence. Without a code the enhanced code's class serves.
    """
    reply = _prepare(code, enhanced, text, stage, echoed)
    reason_code, rule = _provider(reply, rows) or _gate(reply, *_find(reply))
    reason = REASONS[reason_code]
    invalid = reason.category is Category.INVALID
    return Judgement(
        reason,
        rule,
        detail=list_name(reply.text) if reason_code == "ip_blocklisted" else "",
        delay_s=None if reason.retry is Retry.NONE else named_delay(reply.text),
        reach=_reach(reply, reason),
        backed=invalid
        and (rule.startswith("provider") or (reason_code != "rcpt_rejected" and not rule.startswith("code"))),
    )


def _prepare(code: int | None, enhanced: str, text: str, stage: Stage, echoed: Sequence[str]) -> _Reply:
    for name in echoed:
        text = to_anybody(text, name)
    text = unfold(text)
    if (found := _CODE.match(text)) and code in (None, int(found[1])):
        code, text = int(found[1]), text[found.end() :]
    given = _ENHANCED.fullmatch(enhanced.strip()) if enhanced else None
    front = _ENHANCED.match(text)
    if front and (given is None or given[1] == front[1]):
        given, text = front, text[front.end() :]
    found_words = tuple(words(text, echoed))
    hits = (_phrases_again if len(found_words) <= SHORT else _phrases)(found_words)
    first = code // 100 if code is not None else int(given[2]) if given else 0
    final = first == 5 if first in (4, 5) else None
    return _Reply(
        code,
        final,
        given[1] if given else "",
        given[3] if given else "",
        text,
        found_words,
        hits & (_OF_CLASS[final] | rules.SOURCE_BIT | rules.FOR_NOW_BIT),
        Stage.RCPT if stage in _AS_RCPT else stage,
    )


_phrases = rules.PHRASES.find
_phrases_again = lru_cache(maxsize=2048)(_phrases)  # what is echoed is gone: most replies are the same few words


def _provider(reply: _Reply, rows: Sequence[ReplyRow]) -> tuple[str, str] | None:
    if not rows:
        return None
    text = without_addresses(reply.text)
    for place, row in enumerate(rows):
        if row.matches(reply.code, reply.enhanced, text, reply.stage):
            return row.reason, f"provider[{place}]"
    return None


def _find(reply: _Reply) -> tuple[str, str]:
    """The first answer in the lookup order, before the gate."""
    if reply.final is None:
        return _neither(reply)
    return (
        _words(reply, _EXCUSES)
        or _enhanced(reply)
        or (_final_words(reply) if reply.final else _temporary_words(reply))
        or _code(reply)
    )


def _neither(reply: _Reply) -> tuple[str, str]:
    """A reply that is no refusal, or of which no code is known: only words that can't make an invalid are read."""
    if reply.code is None and not reply.enhanced:
        return _words(reply, _EXCUSES) or ("unclassified_reply", "code:none")
    if reply.code is not None and not 200 <= reply.code <= 299:
        return "protocol_error", f"code:{reply.code}"
    reason = "accepted_unconfirmed" if reply.stage is Stage.RCPT else "mailbox_unchecked"
    return reason, f"code:{reply.code or reply.enhanced}"


def _words(reply: _Reply, family: int) -> tuple[str, str] | None:
    if not (hits := reply.hits & family):
        return None
    rule = rules.RULES[(hits & -hits).bit_length() - 1]
    return rule.reason, f"words:{rule.name}"


def _enhanced(reply: _Reply) -> tuple[str, str] | None:
    """What the enhanced code says; None where it says too little and the words or the code decide."""
    if not reply.enhanced or reply.code == 503:  # a wrong order of commands stays one, whatever code stands beside it
        return None
    subject, _, detail = reply.status.partition(".")
    pair = codes.ENHANCED.get(reply.status) or codes.SUBJECTS.get(subject)
    if subject == "7" and reply.status not in codes.ENHANCED and len(detail) == 3:
        pair = codes.EXCHANGE_ONLINE.get(detail[0], pair)
    reason = pair[reply.final is True] if pair else ""
    if reason.startswith("~") and (better := _words(reply, _MAILBOX | _DOMAIN)):
        return better
    return (reason.lstrip("~"), f"enhanced:{reply.enhanced}") if reason else None


def _final_words(reply: _Reply) -> tuple[str, str] | None:
    found = _words(reply, _MAILBOX) or _words(reply, _DOMAIN) or _words(reply, _STATE) or _words(reply, _POLICY)
    if found is None and reply.code in codes.UNEXPLAINED:
        return _words(reply, _GENERIC if _says_no_more(reply) else _UNSERVED)
    return found


def _says_no_more(reply: _Reply) -> bool:
    """Whether a refusal is made of nothing but generic words and identifiers."""
    return all(word in rules.GENERIC_WORDS or not word.isalpha() for word in reply.words)


def _temporary_words(reply: _Reply) -> tuple[str, str] | None:
    if (found := _words(reply, _STATE)) or (found := _words(reply, _POLICY)):
        return found
    if reply.hits & (_MAILBOX | _GENERIC) or reply.status.startswith(("1.", "2.")):
        return "mailbox_temporarily_unavailable", "words:mailbox" if reply.hits & _MAILBOX else "code:4yz"
    return None


def _code(reply: _Reply) -> tuple[str, str]:
    if reply.stage in _BEFORE_RCPT and reply.code != 556:
        return _BEFORE_RCPT[reply.stage][reply.final is True], f"stage:{reply.stage}"
    reason = codes.CODES.get(reply.code or 0, "unclassified_reply" if reply.final else "smtp_tempfail")
    if reply.code in codes.UNEXPLAINED and not _says_no_more(reply):
        reason = "unclassified_reply"  # it does explain itself, in words that no rule knows
    return reason, f"code:{reply.code or reply.enhanced}"


def _gate(reply: _Reply, reason: str, rule: str) -> tuple[str, str]:  # noqa: PLR0911 - one return a rule
    """Let a reason through, or give the one that the hard rules leave of it."""
    row = REASONS[reason]
    if reply.stage is not Stage.RCPT:
        return _before_rcpt(reply, row, rule)
    if row.category is not Category.INVALID:
        return reason, rule
    recipient = row.fault is Fault.RECIPIENT
    if not reply.final or (" 4" in reply.text and _INNER_TEMPORARY.search(reply.text)):
        return ("mailbox_temporarily_unavailable" if recipient else "smtp_tempfail"), rule
    if reply.code == 556 or (reply.code in _NOT_OF_A_USER and reason in {"mailbox_not_found", "rcpt_rejected"}):
        return codes.CODES[reply.code], f"code:{reply.code}"
    if reply.hits & rules.FOR_NOW_BIT:
        return ("mailbox_temporarily_unavailable" if recipient else "smtp_tempfail"), "words:for_now"
    if reply.hits & rules.SOURCE_BIT:
        return "policy_rejected", "words:source"
    subject = reply.status.partition(".")[0]
    account_disabled = reply.status == "7.13" or rule == "words:disabled"
    if subject == "3" or (subject == "7" and not account_disabled):
        return ("policy_rejected" if subject == "7" else "server_busy"), f"enhanced:{reply.enhanced}"
    if recipient and not reply.hits & _MAILBOX and reply.hits & _BLOCKED:
        return "policy_rejected", "words:blocked"
    return reason, rule


def _before_rcpt(reply: _Reply, row: Reason, rule: str) -> tuple[str, str]:
    """Before RCPT nobody spoke of a recipient: such words are about our sender, or about us."""
    takes_no_mail = row.code == "host_accepts_no_mail"
    if reply.code in (521, 556) and _HOST_TAKES_NO_MAIL.search(reply.text) and not _OF_US.search(reply.text):
        takes_no_mail, row, rule = True, REASONS["host_accepts_no_mail"], "words:no_mail"
    if takes_no_mail and (reply.code == 556 or (reply.code == 521 and reply.stage is Stage.CONNECT)):
        return row.code, rule
    if reply.code == 521 and reply.stage is Stage.CONNECT and rule.startswith(("enhanced", "code")):
        return "greeting_rejected", "code:521"
    if row.category is Category.INVALID or row.fault is Fault.RECIPIENT:
        default = _BEFORE_RCPT.get(reply.stage, ("unclassified_reply", "unclassified_reply"))
        return default[reply.final is True], f"stage:{reply.stage}"
    if row.code == "greylisted" and rule.startswith("enhanced"):
        return "rate_limited", rule  # nobody was named yet: it is our source that shall wait
    if rule == "words:blocked" and reply.stage is Stage.CONNECT:
        return "ip_blocked", rule
    return row.code, rule


def _reach(reply: _Reply, reason: Reason) -> Reach:
    """The reason's own reach, widened to the source where the reply's words speak of our host."""
    if reason.code == "server_busy" and reply.final and reply.status == "3.2":
        return (
            Reach.DOMAIN
        )  # unavailable for good, whoever is asked for: postscreen's words for a client it will not have
    widens = reason.reach is Reach.DOMAIN and reason.fault in _SOURCE_FAULTS
    return Reach.SOURCE if widens and reply.hits & rules.SOURCE_BIT else reason.reach
