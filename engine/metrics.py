"""What the engine counts; `engine.families` lists every metric, `engine.scrape` makes the page that shows them.

1. Flow calls a method for what happened. Here are plain numbers: no client library, until somebody scrapes.
2. Everything here runs on the hub, never on the store's thread: plain numbers need no lock.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import gevent

from engine.core.breaker import BreakerState
from engine.core.reasons import REASONS, Fault, Reason, Stage
from engine.families import FAMILIES, Kind
from engine.views import Live, View

BEAT_S = 0.05  # how often the hub's lag is looked at

Labels = tuple[str, ...]


class Metrics:
    """What one process has counted, and who says how things stand."""

    def __init__(self) -> None:
        self.spreads = {each.name: Spread(each.buckets) for each in FAMILIES if each.kind is Kind.HISTOGRAM}
        self.read: Callable[[], Live] | None = None
        self.view: Callable[[], View] | None = None
        self._counts: dict[str, dict[Labels, int]] = {each.name: {} for each in FAMILIES if each.kind is Kind.COUNTER}
        self._judged: dict[tuple[object, ...], _Tally] = {}
        self._session_seconds = self.spreads["engine_session_seconds"]
        self._session_recipients = self.spreads["engine_session_recipients"]
        self._lane_wait = self.spreads["engine_lane_wait_seconds"]
        self._dns = self.spreads["engine_dns_seconds"]
        self._hub_lag = self.spreads["engine_hub_lag_seconds"]
        self._hub_lag.begin(())  # without labels it is there from the first scrape on

    # --- what happened ----------------------------------------------------------------------------------------

    def judged(
        self, provider: str, identity: str, stage: Stage, code: int | None, reason: Reason, *, refusal: bool
    ) -> None:
        """One answer was judged; `code` None: there was no reply. `refusal`: the refusal budget pays for it."""
        key = (provider, identity, stage, code // 100 if code else 0, reason.code, refusal)
        known = self._judged.get(key)
        if known is None:
            known = self._judged[key] = _Tally(_counters_of(provider, identity, stage, code, reason, refusal))
        known.count += 1

    def settled(self, provider: str, reason: str, count: int = 1) -> None:
        """So many addresses got their final verdict; `provider` is empty where none was found."""
        category = REASONS[reason].category.value
        self._count("engine_probes_total", provider or "default", category, reason, by=count)

    def session_closed(self, provider: str, seconds: float, recipients: int) -> None:
        """A session that was open ended."""
        self._session_seconds.observe(seconds, provider)
        self._session_recipients.observe(recipients, provider)

    def lane_waited(self, provider: str, identity: str, seconds: float) -> None:
        """A session started for a domain that had waited so long for its turn."""
        self._lane_wait.observe(seconds, provider, identity)

    def breaker_moved(self, provider: str, identity: str, to: BreakerState) -> None:
        """A lane's breaker opened, closed, or lets one session through."""
        self._count("engine_breaker_transitions_total", provider, identity, to.value)

    def dns(self, kind: str, outcome: str, seconds: float) -> None:
        """A question went to a name server: what `Resolver` records."""
        self._dns.observe(seconds, kind, outcome)

    def reloaded(self, outcome: str) -> None:
        """Policies were read anew: `loaded` or `refused`."""
        self._count("engine_policy_reloads_total", outcome)

    def rbl_checked(self, name: str, outcome: str) -> None:
        """A block list was asked about a target."""
        self._count("engine_rbl_checks_total", name, outcome)

    def alerted(self, channel: str, outcome: str) -> None:
        """A message was tried at a channel."""
        self._count("engine_alerts_total", channel, outcome)

    def pushed(self, outcome: str, count: int) -> None:
        """Records left the spool, or never came into it."""
        self._count("engine_push_records_total", outcome, by=count)

    def posted(self, outcome: str) -> None:
        """A batch was tried at the control plane."""
        self._count("engine_push_posts_total", outcome)

    def hub_lagged(self, seconds: float) -> None:
        """A timer fired so late."""
        self._hub_lag.observe(seconds)

    # --- what is ----------------------------------------------------------------------------------------------

    def watch(self, read: Callable[[], Live] | None) -> None:
        """Where scrapes read the run's state from now on; None when there is no run."""
        self.read = read

    def watch_reputation(self, read: Callable[[], View] | None) -> None:
        """Where scrapes read how block lists see us from now on; None when nobody watches."""
        self.view = read

    def counts(self) -> Mapping[str, Mapping[Labels, int]]:
        """The counters by name and labels."""
        for tally in self._judged.values():
            count, tally.count = tally.count, 0
            for name, *labels in tally.counters:
                self._count(name, *labels, by=count)
        return self._counts

    def _count(self, name: str, *labels: str, by: int = 1) -> None:
        counts = self._counts[name]
        counts[labels] = counts.get(labels, 0) + by


def _counters_of(
    provider: str, identity: str, stage: Stage, code: int | None, reason: Reason, refusal: bool
) -> list[Labels]:
    """The counters that such an answer moves, by name and labels."""
    found: list[Labels] = []
    if code is not None:
        found.append(("engine_smtp_replies_total", provider, stage.value, f"{code // 100}xx"))
        if code // 100 == 4:
            found.append(("engine_tempfails_total", provider, identity, reason.code))
        if reason.fault is Fault.US:
            found.append(("engine_rejects_total", provider, identity, reason.code))
        if reason.code == "unclassified_reply":
            found.append(("engine_unclassified_replies_total", provider))
    if refusal:
        found.append(("engine_refusals_total", provider, identity))
    return found


class _Tally:
    """Answers of one kind since somebody looked: what they count is found once."""

    __slots__ = ("count", "counters")

    def __init__(self, counters: Sequence[Labels]) -> None:
        self.count = 0
        self.counters = counters


class Spread:
    """A histogram: how many values lie between two `bounds`, and their sum, by labels."""

    __slots__ = ("bounds", "counts", "sums")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts: dict[Labels, list[int]] = {}
        self.sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """One more value."""
        counts = self.counts.get(labels) or self.begin(labels)
        counts[bisect_left(self.bounds, value)] += 1
        self.sums[labels] += value

    def begin(self, labels: Labels) -> list[int]:
        """No value yet."""
        self.sums[labels] = 0.0
        counts = self.counts[labels] = [0] * (len(self.bounds) + 1)
        return counts


def watch_hub(lagged: Callable[[float], None], *, clock: Callable[[], float] = time.monotonic) -> NoReturn:
    """Sleep BEAT_S over and over and say by how much each sleep was too long; runs until it is killed."""
    while True:
        due = clock() + BEAT_S
        gevent.sleep(BEAT_S)
        lagged(max(0.0, clock() - due))
