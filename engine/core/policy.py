"""What a provider lets us do: the effective values of one policy, and which policy claims a mail host.

1. A policy claims hosts, never domains: MX decides. A domain whose hosts are claimed by different policies, or by
   none in part, gets the default policy.
2. A leading `*.` in a pattern stands for one or more labels, any other `*` stays within one label. The pattern with
   most literal labels wins; on a tie the policy that stands later in the set (the later layer).
3. A reply row that says an invalid reason matches 5yz replies at RCPT only. Stages `data` and `unknown` (replies out
   of logs) are read as RCPT.
4. Values here are parsed and final: seconds as float, rates as Rate. Files, layers and lines are flow.policies' work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from engine.core.grammar import Range, Rate
from engine.core.reasons import REASONS, Category, Stage

DEFAULT_NAME = "default"
REMEMBERED = 4096  # hosts whose policy was looked up last: a survey, a lane and each dial ask for the same

Scope = Literal["site", "provider"]
Informative = Literal["informative", "uninformative", "never"]
Tls = Literal["opportunistic", "require", "never"]

# What the model lets through where no file says anything: as good as nothing, so that a missing file does no harm.
_SLOW = Rate(6, 60.0)
_SLOWEST = Rate(1, 60.0)
_FEW = Rate(5, 3600.0)


@dataclass(frozen=True, slots=True)
class Terms:
    """The provider's own rule about probing: what it says, where, and the day on which it was read there."""

    say: str
    see: str = ""
    read: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the values of some keys come from; `file` is the policy file whose values it speaks of.

    `keys` are sections (`sessions`) or single keys (`recipients.rate`); `say` is the fact, or `our guess`.
    """

    keys: tuple[str, ...]
    say: str
    see: str = ""
    read: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Sessions:
    """Open sessions at once, and starts of new ones; `burst` starts may come without a gap."""

    concurrency: int = 1
    rate: Rate = _SLOW
    burst: int = 1


@dataclass(frozen=True, slots=True)
class Recipients:
    """RCPT commands: their adaptive rate, and how many a session and a transaction carry."""

    rate: Range = field(default=Range(_SLOW, _SLOW))
    per_session: int = 5
    per_transaction: int = 1


@dataclass(frozen=True, slots=True)
class Refusals:
    """The budget of unknown recipients: in one session, and in a sliding window (a count, not a spacing)."""

    per_session: int = 2
    rate: Range = field(default=Range(_FEW, _FEW))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Absolute deadlines in seconds: TCP connect, greeting, each command, the whole session."""

    connect_s: float = 10.0
    greeting_s: float = 60.0
    command_s: float = 60.0
    session_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Control:
    """The made-up recipient that tells whether a domain refuses anybody.

    Facts hold `ttl_s`, inconclusive ones `inconclusive_ttl_s`. `own_session` asks it on a connection of its own.
    `refuses_unknown_domains` are known to refuse unknown recipients and need no control.
    """

    when: Literal["after_accept"] = "after_accept"
    ttl_s: float = 7 * 86_400.0
    inconclusive_ttl_s: float = 3 * 3600.0
    own_session: bool = False
    refuses_unknown_domains: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ladders:
    """Gaps between attempts in seconds, and how long an address is tried at all."""

    greylist_s: tuple[float, ...] = (300.0, 900.0, 3600.0)
    tempfail_s: tuple[float, ...] = (900.0, 3600.0)
    give_up_s: float = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class PaceRange:
    """How the recipient rate adapts: times `cut` on trouble, down to `floor`; up by `step` every `every_s`."""

    floor: Rate = _SLOWEST
    cut: float = 0.5
    step: Rate = _SLOWEST
    every_s: float = 600.0


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a lane's breaker opens by its tempfail ratio, and for how long."""

    window_s: float = 600.0
    min_samples: int = 20
    tempfail_ratio: float = 0.5
    open_s: float = 900.0
    max_open_s: float = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class ReplyRow:
    """One of a provider's replies and the reason that it means.

    What is None or empty is not asked. `text` is a substring, `pattern` a compiled expression searched in the
    unfolded text; both match case-insensitively.
    """

    reason: str
    code: int | None = None
    enhanced: str = ""
    text: str = ""
    pattern: re.Pattern[str] | None = None
    stage: Stage | None = None
    examples: tuple[str, ...] = ()
    see: str = ""
    read: str = ""

    def matches(self, code: int | None, enhanced: str, text: str, stage: Stage) -> bool:
        """Whether this row speaks of the reply; `text` is unfolded and without the codes."""
        at = Stage.RCPT if stage in (Stage.DATA, Stage.UNKNOWN) else stage
        if self.stage is not None and self.stage is not at:
            return False
        if REASONS[self.reason].category is Category.INVALID and (at is not Stage.RCPT or (code or 0) // 100 != 5):
            return False
        if self.code is not None and self.code != code:
            return False
        if self.enhanced and self.enhanced != enhanced:
            return False
        if self.text and self.text.casefold() not in text.casefold():
            return False
        return self.pattern is None or self.pattern.search(text) is not None


@dataclass(frozen=True, slots=True)
class Policy:
    """All effective values of one provider. The defaults here are the model's own, below every file.

    With scope `site` the numbers hold for each site and `across_sites` caps their sum; with scope `provider` the
    provider's edge counts a source once. `origin` names the file that each dotted key came from.
    """

    name: str
    aliases: tuple[str, ...] = ()
    match_mx: tuple[str, ...] = ()
    match_domains: tuple[str, ...] = ()
    scope: Scope = "site"
    pools: tuple[str, ...] = ()
    rcpt: Informative = "informative"
    terms: Terms | None = None
    sessions: Sessions = Sessions()
    across_sites: Sessions | None = None
    recipients: Recipients = Recipients()
    refusals: Refusals = Refusals()
    timeouts: Timeouts = Timeouts()
    tls: Tls = "opportunistic"
    control: Control = Control()
    retry: Ladders = Ladders()
    pace: PaceRange = PaceRange()
    breaker: BreakerLimits = BreakerLimits()
    replies: tuple[ReplyRow, ...] = ()
    sources: tuple[Source, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


class HostPattern:
    """One compiled pattern of `match.mx`."""

    __slots__ = ("_expression", "literal_labels", "tail", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        labels = text.split(".")
        self.literal_labels = sum("*" not in label for label in labels)
        self.tail = _tail(text) if len(labels) > 1 and "*" not in _tail(text) else ""
        leading = labels[0] == "*" and len(labels) > 1
        expression = r"\.".join(_label_expression(label) for label in labels[leading:])
        self._expression = re.compile((r"(?:[^.]+\.)+" if leading else "") + expression)

    def matches(self, host: str) -> bool:
        """Whether it stands for the host, a lower-case name without a trailing dot."""
        return self._expression.fullmatch(host) is not None


def _label_expression(label: str) -> str:
    return "[^.]+" if label == "*" else "[^.]*".join(re.escape(piece) for piece in label.split("*"))


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def plain_host(name: str) -> str:
    """A host name as patterns see it: lower case, no trailing dot."""
    return name.strip().rstrip(".").lower()


@dataclass(frozen=True, slots=True)
class PolicySet:
    """All policies in force. They stand in the order of their layers; `etag` tells one set of files from another."""

    policies: tuple[Policy, ...]
    default: Policy
    etag: str = ""
    _by_tail: dict[str, list[tuple[HostPattern, Policy]]] = field(init=False, repr=False, compare=False)
    _by_name: dict[str, Policy] = field(init=False, repr=False, compare=False)
    _by_domain: dict[str, Policy] = field(init=False, repr=False, compare=False)
    _claiming: Callable[[str], Policy | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Indexed by a host's last two labels, so that a million domains don't try every pattern each.
        ranked = [
            ((pattern.literal_labels, place, len(text)), pattern, policy)
            for place, policy in enumerate(self.policies)
            for text in policy.match_mx
            for pattern in (HostPattern(text),)
        ]
        by_tail: dict[str, list[tuple[HostPattern, Policy]]] = {"": []}
        tails = {pattern.tail for _, pattern, _ in ranked}
        for _, pattern, policy in sorted(ranked, key=lambda row: row[0], reverse=True):
            for tail in [pattern.tail] if pattern.tail else tails | {""}:
                by_tail.setdefault(tail, []).append((pattern, policy))
        names = {alias: policy for policy in self.policies for alias in policy.aliases}
        names |= {policy.name: policy for policy in (self.default, *self.policies)}
        object.__setattr__(self, "_by_tail", by_tail)
        object.__setattr__(self, "_by_name", names)
        domains = {domain: policy for policy in self.policies for domain in policy.match_domains}
        object.__setattr__(self, "_by_domain", domains)
        object.__setattr__(self, "_claiming", lru_cache(maxsize=REMEMBERED)(self._find_claiming))

    def claim(self, host: str) -> tuple[Policy, str] | None:
        """The policy that claims a mail host and the pattern by which it does, or None: only the default is left."""
        name = plain_host(host)
        for pattern, policy in self._by_tail.get(_tail(name), self._by_tail[""]):
            if pattern.matches(name):
                return policy, pattern.text
        return None

    def claiming(self, host: str) -> Policy | None:
        """The policy that claims a mail host, or None."""
        return self._claiming(host)

    def for_hosts(self, names: Sequence[str]) -> Policy:
        """The policy of a domain with these mail hosts: the one that claims them all, else the default."""
        claims = {policy.name if policy else "" for policy in map(self._claiming, names)}
        return self._by_name[claims.pop()] if len(claims) == 1 and "" not in claims else self.default

    def for_domain(self, domain: str) -> Policy | None:
        """The policy that names this mail domain, for where DNS is not asked. Never used to probe."""
        return self._by_domain.get(plain_host(domain))

    def named(self, name: str) -> Policy | None:
        """The policy of this name, alias or MX host name."""
        known = self._by_name.get(name)
        if known is None:
            plain = plain_host(name)
            known = self._by_name.get(plain) or self.claiming(plain)
        return known

    def _find_claiming(self, host: str) -> Policy | None:
        found = self.claim(host)
        return found[0] if found else None
