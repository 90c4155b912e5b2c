"""The keys of a policy file: one table from which reading, writing, checking and the JSON Schema are made.

1. A key stands once in KEYS: its dotted path in YAML, the attribute of core.policy.Policy that holds it, how its
   value is read and written, and what it means.
2. `texts` and `build` are each other's inverse: what a policy means can always be written down as a file.
3. A kind reads one value alone; what several values mean together is flow.policies' matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from operator import attrgetter
from typing import Any

from engine.core.grammar import (
    GrammarError,
    duration,
    duration_text,
    range_text,
    rate,
    rate_range,
    rate_text,
)
from engine.core.policy import (
    BreakerLimits,
    Control,
    Ladders,
    PaceRange,
    Policy,
    Recipients,
    Refusals,
    ReplyRow,
    Sessions,
    Source,
    Terms,
    Timeouts,
    plain_host,
)
from engine.core.reasons import ENDINGS, REASONS, Category, Fault, Stage

MAX_BURST = 10  # burst is small: a bucket that fires dozens at once is no rate


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read from what YAML gives (raises GrammarError), written again, and described to an editor."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """One key: `path` in the file, `attribute` of Policy."""

    path: str
    attribute: str
    kind: Kind
    meaning: str


def _same(value: Any) -> Any:
    return value


def whole(low: int, high: int) -> Kind:
    """A whole number in a range."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise GrammarError(f"{value!r} is not a whole number from {low} to {high}")
        return value

    return Kind(read, _same, {"type": "integer", "minimum": low, "maximum": high})


def one_of(*words: str) -> Kind:
    """One of a few words."""

    def read(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            raise GrammarError(f"{value!r} is unknown here (expected {' or '.join(words)})")
        return value

    return Kind(read, _same, {"enum": list(words)})


def _share(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise GrammarError(f"{value!r} is not a share (expected a number between 0 and 1, for example 0.5)")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise GrammarError(f"{value!r} is neither true nor false")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise GrammarError(f"{value!r} is not a text (quote it, for example {str(value or '...')!r})")
    return value


def matched(expression: str, expected: str, fold: Callable[[str], str] = str.lower) -> Kind:
    """A text that an expression describes; `expected` says it in words."""

    def read(value: Any) -> str:
        text = fold(value) if isinstance(value, str) else ""
        if not re.fullmatch(expression, text):
            raise GrammarError(f"{value!r} is not {expected}")
        return text

    return Kind(read, _same, {"type": "string", "pattern": f"^(?:{expression})$"})


def many(kind: Kind, collect: Callable[[Iterable[Any]], Any] = tuple, *, at_least: int = 0) -> Kind:
    """A list of such values."""

    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise GrammarError(f"{value!r} is not a list (write [a, b], or one `- a` a line)")
        if len(value) < at_least:
            raise GrammarError(f"the list is empty (expected at least {at_least})")
        found, problems = [], []
        for item in value:
            try:
                found.append(kind.read(item))
            except GrammarError as error:
                problems.append(str(error))
        if problems:
            raise GrammarError("; ".join(problems))
        return collect(found)

    def write(value: Any) -> list[Any]:
        return [kind.write(item) for item in (sorted(value) if isinstance(value, frozenset) else value)]

    return Kind(read, write, {"type": "array", "items": dict(kind.schema), "minItems": at_least})


def _day(value: Any) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        raise GrammarError(f"{value!r} is not a day (expected YYYY-MM-DD, for example 2026-11-22)") from None


def _reason(value: Any) -> str:
    row = REASONS.get(value) if isinstance(value, str) else None
    if row is None:
        raise GrammarError(f"{value!r} is no reason code (`engine reasons` lists them)")
    if row.category is Category.VALID or row.code in ENDINGS or row.fault in (Fault.NONE, Fault.INPUT, Fault.DNS):
        raise GrammarError(f"{value!r} is nothing that a refusal can mean (expected one that blames somebody)")
    return row.code


def _pattern(value: Any) -> re.Pattern[str]:
    text = _string(value)
    if re.search(r"(?<!\\)(?:\\\\)*(?:\\[1-9]|\(\?P=|\(\?\()", text):
        raise GrammarError(f"{value!r} refers back to a group (expected an expression without back-references)")
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise GrammarError(f"{value!r} is not a regular expression: {error}") from None


def _host_pattern(value: Any) -> str:
    text = plain_host(value) if isinstance(value, str) else ""
    labels = text.split(".")
    if not all(re.fullmatch(r"[a-z0-9_*-]{1,63}", label) for label in labels) or all("*" in label for label in labels):
        raise GrammarError(f'{value!r} is not a pattern of host names (expected for example "*.google.com")')
    return text


_DURATION_SCHEMA = {"type": "string", "pattern": r"^(\d+d)?(\d+h)?(\d+m)?(\d+(\.\d+)?s)?$", "examples": ["1h30m"]}
_ONE_RATE = r"\d+/\d*(s|min|h|day)"

TEXT = Kind(_string, _same, {"type": "string", "minLength": 1})
FLAG = Kind(_flag, _same, {"type": "boolean"})
SHARE = Kind(_share, _same, {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})
DURATION = Kind(duration, duration_text, _DURATION_SCHEMA)
RATE = Kind(rate, rate_text, {"type": "string", "pattern": f"^{_ONE_RATE}$", "examples": ["20/min"]})
RANGE = Kind(
    rate_range,
    range_text,
    {"type": "string", "pattern": rf"^{_ONE_RATE}(\.\.{_ONE_RATE})?$", "examples": ["20/min..120/min"]},
)
DAY = Kind(_day, _same, {"type": "string", "format": "date"})
LINK = matched(r"https?://\S+", "an address (expected https://...)", fold=str.strip)
NAME = matched(r"[a-z0-9][a-z0-9._-]*", "a name (expected lower-case letters, digits, hyphens)", fold=_same)
DOMAIN = matched(r"[a-z0-9-]+(\.[a-z0-9-]+)+", "a domain (expected for example gmail.com)", fold=plain_host)
HOST_PATTERN = Kind(_host_pattern, _same, {"type": "string", "examples": ["*.google.com"]})
REASON = Kind(_reason, _same, {"enum": sorted(REASONS)})
PATTERN = Kind(_pattern, lambda value: value.pattern, {"type": "string", "format": "regex"})
STAGE = Kind(
    lambda value: Stage(one_of("connect", "ehlo", "tls", "mail", "rcpt").read(value)),
    lambda value: value.value,
    {"enum": ["connect", "ehlo", "tls", "mail", "rcpt"]},
)

_BURST = whole(1, MAX_BURST)
_COUNT = whole(1, 1000)

KEYS: tuple[Key, ...] = (
    Key("aliases", "aliases", many(NAME), "other names by which `engine classify` and logs know the provider"),
    Key("match.mx", "match_mx", many(HOST_PATTERN), "mail host names that this policy claims"),
    Key("match.domains", "match_domains", many(DOMAIN), "its best-known mail domains, for where DNS is not asked"),
    Key("scope", "scope", one_of("site", "provider"), "whether the numbers hold for each site or for all in one"),
    Key("pools", "pools", many(NAME), "only identities that carry one of these tags may probe"),
    Key("rcpt", "rcpt", one_of("informative", "uninformative", "never"), "what a RCPT reply is worth, or never to ask"),
    Key("terms.say", "terms.say", TEXT, "the provider's own rule about probing"),
    Key("terms.see", "terms.see", LINK, "where the rule stands"),
    Key("terms.read", "terms.read", DAY, "the day on which it was read there"),
    Key("sessions.concurrency", "sessions.concurrency", _COUNT, "open sessions at once"),
    Key("sessions.rate", "sessions.rate", RATE, "new sessions"),
    Key("sessions.burst", "sessions.burst", _BURST, "new sessions without a gap"),
    Key("across_sites.concurrency", "across_sites.concurrency", _COUNT, "the same over all sites of the provider"),
    Key("across_sites.rate", "across_sites.rate", RATE, "the same over all sites of the provider"),
    Key("across_sites.burst", "across_sites.burst", _BURST, "the same over all sites of the provider"),
    Key("recipients.rate", "recipients.rate", RANGE, "RCPT commands, from start to ceiling"),
    Key("recipients.per_session", "recipients.per_session", _COUNT, "RCPT commands a session carries"),
    Key("recipients.per_transaction", "recipients.per_transaction", whole(1, 100), "RCPT commands after one MAIL FROM"),
    Key("refusals.per_session", "refusals.per_session", whole(2, 100), "unknown recipients in one session"),
    Key("refusals.rate", "refusals.rate", RANGE, "unknown recipients in a sliding window, from start to ceiling"),
    Key("timeouts.connect", "timeouts.connect_s", DURATION, "until TCP is connected"),
    Key("timeouts.greeting", "timeouts.greeting_s", DURATION, "until the greeting is complete"),
    Key("timeouts.command", "timeouts.command_s", DURATION, "until the reply to a command is complete"),
    Key("timeouts.session", "timeouts.session_s", DURATION, "a whole session"),
    Key("tls", "tls", one_of("opportunistic", "require", "never"), "STARTTLS"),
    Key("control_rcpt.when", "control.when", one_of("after_accept"), "when a made-up recipient is asked"),
    Key("control_rcpt.ttl", "control.ttl_s", DURATION, "how long its answer holds"),
    Key("control_rcpt.inconclusive_ttl", "control.inconclusive_ttl_s", DURATION, "how long an unclear one holds"),
    Key("control_rcpt.own_session", "control.own_session", FLAG, "whether it needs a connection of its own"),
    Key(
        "control_rcpt.refuses_unknown_domains",
        "control.refuses_unknown_domains",
        many(DOMAIN, frozenset),
        "domains known to refuse unknown recipients, which need no control",
    ),
    Key("retry.greylist", "retry.greylist_s", many(DURATION, at_least=1), "gaps between attempts when greylisted"),
    Key("retry.tempfail", "retry.tempfail_s", many(DURATION, at_least=1), "gaps between attempts after other 4yz"),
    Key("retry.give_up", "retry.give_up_s", DURATION, "how long an address is tried, and a closed lane waited for"),
    Key("pace.floor", "pace.floor", RATE, "the slowest that trouble makes the recipient rate"),
    Key("pace.cut", "pace.cut", SHARE, "what trouble multiplies the rate by"),
    Key("pace.recover.step", "pace.step", RATE, "what quiet adds to the rate"),
    Key("pace.recover.every", "pace.every_s", DURATION, "how often it does"),
    Key("breaker.window", "breaker.window_s", DURATION, "what the breaker looks back on"),
    Key("breaker.min_samples", "breaker.min_samples", _COUNT, "replies below which it draws no conclusion"),
    Key("breaker.tempfail_ratio", "breaker.tempfail_ratio", SHARE, "share of temporary failures that opens it"),
    Key("breaker.open", "breaker.open_s", DURATION, "how long it stays open at first"),
    Key("breaker.max_open", "breaker.max_open_s", DURATION, "how long at most, after doubling"),
)

ROW_KEYS: dict[str, Kind] = {
    "code": whole(400, 599),
    "enhanced": matched(r"[245]\.\d{1,3}\.\d{1,3}", 'an enhanced code (expected for example "5.1.1", quoted)'),
    "text": TEXT,
    "pattern": PATTERN,
    "stage": STAGE,
    "reason": REASON,
    "examples": many(TEXT, at_least=1),
    "see": LINK,
    "read": DAY,
}
SOURCE_KEYS: dict[str, Kind] = {"for": many(TEXT, at_least=1), "say": TEXT, "see": LINK, "read": DAY}

NOT_INHERITED = ("aliases", "match.", "terms.", "pools")  # nor replies: what is said of one provider holds for no other

_SECTIONS = {
    "terms": Terms,
    "sessions": Sessions,
    "across_sites": Sessions,
    "recipients": Recipients,
    "refusals": Refusals,
    "timeouts": Timeouts,
    "control": Control,
    "retry": Ladders,
    "pace": PaceRange,
    "breaker": BreakerLimits,
}


def inherited(path: str) -> bool:
    """Whether a provider takes this key from default.yaml where its own files don't set it."""
    return not path.startswith(NOT_INHERITED)


def texts(policy: Policy) -> dict[str, Any]:
    """Every key of a policy, by dotted path, as its file would say it; None where there is nothing to say."""
    found = {}
    for key in KEYS:
        section, _, _ = key.attribute.partition(".")
        value = attrgetter(key.attribute)(policy) if getattr(policy, section) is not None else None
        found[key.path] = None if value in (None, "") else key.kind.write(value)
    return found


MODEL: Mapping[str, Any] = texts(Policy(""))


def build(
    name: str,
    values: Mapping[str, Any],
    *,
    replies: Sequence[ReplyRow] = (),
    sources: Sequence[Source] = (),
    origin: Mapping[str, str] | None = None,
) -> Policy:
    """The policy that these values mean. Each was checked before, as `None` or what its kind reads."""
    plain: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key in KEYS:
        if (value := values.get(key.path)) is None:
            continue
        section, dot, attribute = key.attribute.partition(".")
        target = nested.setdefault(section, {}) if dot else plain
        target[attribute or section] = key.kind.read(value)
    plain |= {section: _SECTIONS[section](**given) for section, given in nested.items()}
    return Policy(name, **plain, replies=tuple(replies), sources=tuple(sources), origin=dict(origin or {}))


def reply_row(values: Mapping[str, Any]) -> ReplyRow:
    """The row that these checked values mean."""
    return ReplyRow(**{name: kind.read(values[name]) for name, kind in ROW_KEYS.items() if name in values})


def source(values: Mapping[str, Any], file: str) -> Source:
    """The source that these checked values mean."""
    given = {name: kind.read(values[name]) for name, kind in SOURCE_KEYS.items() if name in values}
    return Source(keys=given.pop("for"), **given, file=file)


def row_values(row: ReplyRow) -> dict[str, Any]:
    """A row as its file would say it."""
    given = {name: getattr(row, name) for name in ROW_KEYS}
    return {name: ROW_KEYS[name].write(value) for name, value in given.items() if value not in (None, "", ())}
