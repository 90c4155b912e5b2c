"""What the engine counts, and the page that shows it; `engine.families` lists every metric.

1. Flow calls a method for what happened. Each finds its children in a dict: no `labels()` twice for one set.
2. Everything here runs on the hub, never on the store's thread: plain numbers need no lock.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NoReturn

import gevent
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.core.breaker import BreakerState
from engine.core.reasons import REASONS, Fault, Reason, Stage
from engine.families import FAMILIES, Family, Kind
from engine.scrape import AtScrape, Live, View

CONTENT_TYPE = CONTENT_TYPE_LATEST
BEAT_S = 0.05  # how often the hub's lag is looked at


class Metrics:
    """The counters of one process, and the page that shows them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        spreads: dict[str, _Spread] = {}
        for family in FAMILIES:
            if family.kind is Kind.COUNTER:
                self._counters[family.name] = Counter(family.name, family.help, family.labels, registry=self._registry)
            elif family.kind is Kind.HISTOGRAM:
                spreads[family.name] = _Spread(family)
                self._registry.register(spreads[family.name])
        self._judged: dict[tuple[object, ...], _Tally] = {}
        self._children: dict[tuple[str, ...], Counter] = {}
        self._session_seconds = spreads["engine_session_seconds"]
        self._session_recipients = spreads["engine_session_recipients"]
        self._lane_wait = spreads["engine_lane_wait_seconds"]
        self._dns = spreads["engine_dns_seconds"]
        self._hub_lag = spreads["engine_hub_lag_seconds"]
        self._at_scrape = AtScrape()
        self._registry.register(self._at_scrape)
        ProcessCollector(registry=self._registry)

    # --- what happened ----------------------------------------------------------------------------------------

    def judged(
        self, provider: str, identity: str, stage: Stage, code: int | None, reason: Reason, *, refusal: bool
    ) -> None:
        """One answer was judged; `code` None: there was no reply. `refusal`: the refusal budget pays for it."""
        key = (provider, identity, stage, code // 100 if code else 0, reason.code, refusal)
        known = self._judged.get(key)
        if known is None:
            known = self._judged[key] = _Tally(self._counters_of(provider, identity, stage, code, reason, refusal))
        known.count += 1

    def settled(self, provider: str, reason: str, count: int = 1) -> None:
        """So many addresses got their final verdict; `provider` is empty where none was found."""
        category = REASONS[reason].category.value
        self._counter("engine_probes_total", provider or "default", category, reason).inc(count)

    def session_closed(self, provider: str, seconds: float, recipients: int) -> None:
        """A session that was open ended."""
        self._session_seconds.observe(seconds, provider)
        self._session_recipients.observe(recipients, provider)

    def lane_waited(self, provider: str, identity: str, seconds: float) -> None:
        """A session started for a domain that had waited so long for its turn."""
        self._lane_wait.observe(seconds, provider, identity)

    def breaker_moved(self, provider: str, identity: str, to: BreakerState) -> None:
        """A lane's breaker opened, closed, or lets one session through."""
        self._counter("engine_breaker_transitions_total", provider, identity, to.value).inc()

    def dns(self, kind: str, outcome: str, seconds: float) -> None:
        """A question went to a name server: what `Resolver` records."""
        self._dns.observe(seconds, kind, outcome)

    def reloaded(self, outcome: str) -> None:
        """Policies were read anew: `loaded` or `refused`."""
        self._counter("engine_policy_reloads_total", outcome).inc()

    def rbl_checked(self, name: str, outcome: str) -> None:
        """A block list was asked about a target."""
        self._counter("engine_rbl_checks_total", name, outcome).inc()

    def alerted(self, channel: str, outcome: str) -> None:
        """A message was tried at a channel."""
        self._counter("engine_alerts_total", channel, outcome).inc()

    def pushed(self, outcome: str, count: int) -> None:
        """Records left the spool, or never came into it."""
        self._counter("engine_push_records_total", outcome).inc(count)

    def posted(self, outcome: str) -> None:
        """A batch was tried at the control plane."""
        self._counter("engine_push_posts_total", outcome).inc()

    def hub_lagged(self, seconds: float) -> None:
        """A timer fired so late."""
        self._hub_lag.observe(seconds)

    # --- what is ----------------------------------------------------------------------------------------------

    def watch(self, read: Callable[[], Live] | None) -> None:
        """Where scrapes read the run's state from now on; None when there is no run."""
        self._at_scrape.read = read

    def watch_reputation(self, read: Callable[[], View] | None) -> None:
        """Where scrapes read how block lists see us from now on; None when nobody watches."""
        self._at_scrape.view = read

    def render(self) -> bytes:
        """The page, as CONTENT_TYPE says. It lets other greenlets run while it walks many lanes."""
        for tally in self._judged.values():
            count, tally.count = tally.count, 0
            for counter in tally.counters:
                counter.inc(count)
        return generate_latest(_WithoutCreated(self._registry))

    # --- inside -----------------------------------------------------------------------------------------------

    def _counters_of(
        self, provider: str, identity: str, stage: Stage, code: int | None, reason: Reason, refusal: bool
    ) -> list[Counter]:
        """The counters that such an answer moves."""
        found = []
        if code is not None:
            found.append(self._counter("engine_smtp_replies_total", provider, stage.value, f"{code // 100}xx"))
            if code // 100 == 4:
                found.append(self._counter("engine_tempfails_total", provider, identity, reason.code))
            if reason.fault is Fault.US:
                found.append(self._counter("engine_rejects_total", provider, identity, reason.code))
            if reason.code == "unclassified_reply":
                found.append(self._counter("engine_unclassified_replies_total", provider))
        if refusal:
            found.append(self._counter("engine_refusals_total", provider, identity))
        return found

    def _counter(self, name: str, *labels: str) -> Counter:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._counters[name].labels(*labels)
        return child


class _Tally:
    """Answers of one kind since the last scrape: a counter's lock costs more than the rest of counting one."""

    __slots__ = ("count", "counters")

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.count = 0
        self.counters = counters


class _Spread(Collector):
    """A histogram: how many values lie at or below each bound, and their sum, by labels."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._counts: dict[tuple[str, ...], list[int]] = {}  # of values between two bounds
        self._sums: dict[tuple[str, ...], float] = {}
        if not family.labels:
            self._begin(())

    def observe(self, value: float, *labels: str) -> None:
        counts = self._counts.get(labels) or self._begin(labels)
        counts[bisect_left(self._family.buckets, value)] += 1
        self._sums[labels] += value

    def collect(self) -> Iterator[Metric]:
        family = self._family
        found = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        bounds = [*(str(float(bound)) for bound in family.buckets), "+Inf"]
        for labels, counts in self._counts.items():
            found.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), self._sums[labels])
        yield found

    def _begin(self, labels: tuple[str, ...]) -> list[int]:
        self._sums[labels] = 0.0
        counts = self._counts[labels] = [0] * (len(self._family.buckets) + 1)
        return counts


class _WithoutCreated(Collector):
    """A registry without the `_created` series, which double the page and tell nothing that a scraper needs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def watch_hub(lagged: Callable[[float], None], *, clock: Callable[[], float] = time.monotonic) -> NoReturn:
    """Sleep BEAT_S over and over and say by how much each sleep was too long; runs until it is killed."""
    while True:
        due = clock() + BEAT_S
        gevent.sleep(BEAT_S)
        lagged(max(0.0, clock() - due))
