"""The page that a scraper reads: what was counted, and how a run and a monitor stand at this moment.

1. A state is read when somebody scrapes, by way of `Live` and `View`; nobody keeps a gauge up to date.
2. Many lanes are walked in slices, between which others run.
3. Only who is scraped loads this file, and with it the client library and its HTTP server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from platform import python_version

import gevent
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.core.classify import VERSION as CLASSIFIER
from engine.core.identity import Status
from engine.core.listing import Status as Answer
from engine.families import FAMILIES, LaneState
from engine.metrics import Metrics
from engine.version import VERSION
from engine.views import LaneView, View

CONTENT_TYPE = CONTENT_TYPE_LATEST
SLICE = 1000  # lanes that a scrape walks before it lets others run; 50,000 in one piece would hold up every session

_FAMILY = {family.name: family for family in FAMILIES}


def page(metrics: Metrics) -> bytes:
    """The page, as CONTENT_TYPE says. It lets other greenlets run while it walks many lanes."""
    registry = CollectorRegistry()
    registry.register(_Counted(metrics))
    registry.register(_AtScrape(metrics))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Counted(Collector):
    """Counters and histograms."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for name, counts in self._metrics.counts().items():
            counter = CounterMetricFamily(name, _FAMILY[name].help, labels=_FAMILY[name].labels)
            for labels, count in counts.items():
                counter.add_metric(labels, count)
            yield counter
        for name, spread in self._metrics.spreads.items():
            histogram = HistogramMetricFamily(name, _FAMILY[name].help, labels=_FAMILY[name].labels)
            bounds = [*(str(float(bound)) for bound in spread.bounds), "+Inf"]
            for labels, between in spread.counts.items():
                buckets = list(zip(bounds, accumulate(between), strict=True))
                histogram.add_metric(labels, buckets, spread.sums[labels])
            yield histogram


class _AtScrape(Collector):
    """The state gauges, read from the run when they are asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        build = _gauge("engine_build_info")
        build.add_metric([VERSION, CLASSIFIER, python_version()], 1)
        yield build
        if self._metrics.view is not None:
            yield from _reputation(self._metrics.view())
        if self._metrics.read is None:
            return
        live = self._metrics.read()
        lag, left = _gauge("engine_journal_lag_seconds"), _gauge("engine_addresses_left")
        states = _gauge("engine_identity_state")
        lag.add_metric([], live.journal_lag_s)
        left.add_metric([], live.left)
        for name, status in live.identities.items():
            for each in Status:
                states.add_metric([name, each.value], float(each is status))
        refused = _gauge("engine_identity_breaker_open")
        for name, is_open in live.refused.items():
            refused.add_metric([name], float(is_open))
        yield from (lag, left, states, refused)
        yield from _lanes(live.lanes)


def _reputation(view: View) -> Iterator[Metric]:
    listed, usable = _gauge("engine_rbl_listed"), _gauge("engine_rbl_list_usable")
    age, waiting = _gauge("engine_rbl_check_age_seconds"), _gauge("engine_alerts_waiting")
    for (target, name), check in view.checks.items():
        if check.tells:
            listed.add_metric([name, target], float(check.status is Answer.LISTED))
    for target, at in view.answered.items():
        age.add_metric([target], max(0.0, view.now - at))
    for name, works, why in view.lists:
        usable.add_metric([name, why], float(works))
    for channel, count in view.waiting.items():
        waiting.add_metric([channel], count)
    yield from (listed, usable, age, waiting)
    if view.to_push is not None:
        left, stalled = _gauge("engine_push_waiting"), _gauge("engine_push_stalled_seconds")
        left.add_metric([], view.to_push)
        stalled.add_metric([], view.push_stalled_s)
        yield from (left, stalled)


class _Sum:
    """The lanes of one provider and identity, added up."""

    __slots__ = ("budget_used", "pace_per_s", "queue", "sessions", "states")

    def __init__(self) -> None:
        self.states = dict.fromkeys(LaneState, 0)
        self.queue = self.sessions = 0
        self.budget_used = 0.0
        self.pace_per_s = float("inf")


def _lanes(lanes: Iterable[LaneView]) -> Iterator[Metric]:
    sums: dict[tuple[str, str], _Sum] = {}
    for number, lane in enumerate(lanes, 1):
        group = sums.setdefault((lane.provider, lane.identity), _Sum())
        group.states[lane.state] += 1
        group.queue += lane.queue
        group.sessions += lane.sessions
        group.budget_used = max(group.budget_used, lane.budget_used)
        group.pace_per_s = min(group.pace_per_s, lane.pace_per_s)
        if number % SLICE == 0:
            gevent.sleep(0)
    count, queue, used = map(_gauge, ("engine_lanes", "engine_lane_queue", "engine_refusal_budget_used_ratio"))
    sessions, pace = map(_gauge, ("engine_sessions_open", "engine_lane_pace"))
    open_at: dict[str, int] = {}
    for (provider, identity), group in sums.items():
        for state, lanes_in_it in group.states.items():
            count.add_metric([provider, identity, state.value], lanes_in_it)
        queue.add_metric([provider, identity], group.queue)
        used.add_metric([provider, identity], group.budget_used)
        pace.add_metric([provider, identity], group.pace_per_s)
        open_at[provider] = open_at.get(provider, 0) + group.sessions
    for provider, number in open_at.items():
        sessions.add_metric([provider], number)
    yield from (sessions, count, queue, used, pace)


def _gauge(name: str) -> GaugeMetricFamily:
    family = _FAMILY[name]
    return GaugeMetricFamily(name, family.help, labels=family.labels)
