"""Every Prometheus metric of the engine.

1. FAMILIES is the one list of names, types, labels and help; `docs/metrics.md` is made from it.
2. Labels come from closed sets: `provider` is a policy's name (`default` for the rest), never a domain or an address.
3. Flow calls a method for what happened. Each finds its children in a dict: no `labels()` twice for one set.
4. A state is read when somebody scrapes, by way of `Live`; nobody keeps a gauge up to date.
5. Everything here runs on the hub, never on the store's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from platform import python_version
from typing import Any, NoReturn

import gevent
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.core.breaker import BreakerState
from engine.core.classify import VERSION as CLASSIFIER
from engine.core.identity import Status
from engine.core.listing import Check
from engine.core.listing import Status as Answer
from engine.core.reasons import REASONS, Fault, Reason, Stage
from engine.version import VERSION

CONTENT_TYPE = CONTENT_TYPE_LATEST
# What the client library tells of any process, where there is a /proc: is the machine the limit?
PROCESS = (
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
)
BEAT_S = 0.05  # how often the hub's lag is looked at
SLICE = 1000  # lanes that a scrape walks before it lets others run; 50,000 in one piece would hold up every session


class Kind(StrEnum):
    """The types of the exposition format that are used here."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as scraped, type, labels and help; `buckets` are upper bounds in the metric's unit."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


class LaneState(StrEnum):
    """How a lane stands: its breaker, or else what keeps it from starting the next session."""

    CLOSED = "closed"  # nothing keeps it: it works, or waits for work
    OPEN = "open"
    HALF_OPEN = "half_open"
    WAITING_RATE = "waiting_rate"
    WAITING_BUDGET = "waiting_budget"


_PROVIDER = ("provider",)
_LANE = ("provider", "identity")

FAMILIES: tuple[Family, ...] = (
    Family(
        "engine_probes_total", Kind.COUNTER, ("provider", "category", "reason"),
        "Addresses by settled verdict. Provisional verdicts and endings of the run are not in it.",
    ),
    Family(
        "engine_smtp_replies_total", Kind.COUNTER, ("provider", "stage", "code_class"),
        "SMTP replies that were judged: each reply to RCPT, and the reply that ended an earlier stage.",
    ),
    Family(
        "engine_tempfails_total", Kind.COUNTER, ("provider", "identity", "reason"),
        "Judged replies with a 4yz code, greylisting included.",
    ),
    Family(
        "engine_rejects_total", Kind.COUNTER, ("provider", "identity", "reason"),
        "Judged replies that refuse us (fault us), for good or for now.",
    ),
    Family(
        "engine_refusals_total", Kind.COUNTER, _LANE,
        "Recipients refused with a 5yz or left without an answer, controls included: what a provider holds against us.",
    ),
    Family(
        "engine_unclassified_replies_total", Kind.COUNTER, _PROVIDER,
        "Replies that no rule knows; `engine classify` shows them out of the journal.",
    ),
    Family(
        "engine_breaker_transitions_total", Kind.COUNTER, ("provider", "identity", "to"),
        "Moves of lanes' circuit breakers, by the state moved to: closed, open, half_open.",
    ),
    Family(
        "engine_session_seconds", Kind.HISTOGRAM, _PROVIDER,
        "Length of SMTP sessions that a server let us open, from the first dialling to the end.",
        (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600),
    ),
    Family(
        "engine_session_recipients", Kind.HISTOGRAM, _PROVIDER,
        "Recipients asked in a session that a server let us open; controls included.",
        (0, 1, 2, 3, 5, 10, 20, 50, 100),
    ),
    Family(
        "engine_lane_wait_seconds", Kind.HISTOGRAM, _LANE,
        "How long a domain with something to ask had waited for its turn when its session started.",
        (0.01, 0.1, 1, 10, 60, 300, 900, 3600, 14400, 86400),
    ),
    Family(
        "engine_dns_seconds", Kind.HISTOGRAM, ("type", "outcome"),
        "Questions that went to a name server, by record type and outcome; answers from the cache are not in it.",
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    ),
    Family(
        "engine_hub_lag_seconds", Kind.HISTOGRAM, (),
        "How late a timer of 50 ms fires: what every session waits beside its peer. Alert at a p99 over 0.1.",
        (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    ),
    Family(
        "engine_sessions_open", Kind.GAUGE, _PROVIDER,
        "Sessions open now, those that are still dialling included.",
    ),
    Family(
        "engine_lanes", Kind.GAUGE, ("provider", "identity", "state"),
        "Lanes in memory by state: the breaker's, or what a lane with work waits for.",
    ),
    Family(
        "engine_lane_queue", Kind.GAUGE, _LANE,
        "Addresses that wait in the lanes in memory, summed; what is still in the journal only is not in it.",
    ),
    Family(
        "engine_addresses_left", Kind.GAUGE, (),
        "Addresses of the job that have no settled verdict yet, in memory or not.",
    ),
    Family(
        "engine_refusal_budget_used_ratio", Kind.GAUGE, _LANE,
        "Share of the refusal budget that is spent or reserved, of the fullest lane; 1 is all of it.",
    ),
    Family(
        "engine_lane_pace", Kind.GAUGE, _LANE,
        "Recipients a second that the slowest lane asks for at most: what complaints cut, and peace raises again.",
    ),
    Family(
        "engine_identity_state", Kind.GAUGE, ("identity", "state"),
        "1 at the state that the identity is in, 0 at the others.",
    ),
    Family(
        "engine_identity_breaker_open", Kind.GAUGE, ("identity",),
        "1 while so many organisations or the network refuse the identity that it starts nothing, 0 else.",
    ),
    Family(
        "engine_policy_reloads_total", Kind.COUNTER, ("outcome",),
        "Sets of policies that were read while a run was at work: loaded, or refused for a mistake.",
    ),
    Family(
        "engine_rbl_checks_total", Kind.COUNTER, ("list", "outcome"),
        "Answers of block lists about our targets: listed, clean, refused, error, suspect.",
    ),
    Family(
        "engine_rbl_listed", Kind.GAUGE, ("list", "target"),
        "1 where the newest answer that can be relied on says listed, 0 where it says clean; no series else.",
    ),
    Family(
        "engine_rbl_list_usable", Kind.GAUGE, ("list", "reason"),
        "1 for a list that passes its probes (reason good), 0 with the reason for one that fails them, or that is not "
        "asked at all (not_checked).",
    ),
    Family(
        "engine_rbl_check_age_seconds", Kind.GAUGE, ("target",),
        "How long ago any block list gave an answer about the target that can be relied on; where none did yet, for "
        "how long it has been watched.",
    ),
    Family(
        "engine_alerts_total", Kind.COUNTER, ("channel", "outcome"),
        "Attempts to tell people something by mail or Slack: sent, failed.",
    ),
    Family(
        "engine_alerts_waiting", Kind.GAUGE, ("channel",),
        "Messages that a channel did not take yet.",
    ),
    Family(
        "engine_push_records_total", Kind.COUNTER, ("outcome",),
        "Records for the control plane: sent, refused (it did not want this one), dropped (checks, when the spool was "
        "full).",
    ),
    Family(
        "engine_push_posts_total", Kind.COUNTER, ("outcome",),
        "Batches posted to the control plane: taken, failed.",
    ),
    Family(
        "engine_push_waiting", Kind.GAUGE, (),
        "Records in the spool that the control plane did not take yet; no series where nothing is pushed.",
    ),
    Family(
        "engine_push_stalled_seconds", Kind.GAUGE, (),
        "For how long the control plane has taken nothing while records wait; 0 while it takes them.",
    ),
    Family(
        "engine_journal_lag_seconds", Kind.GAUGE, (),
        "How long the oldest write has waited for its commit.",
    ),
    Family(
        "engine_build_info", Kind.GAUGE, ("version", "classifier", "python"),
        "Always 1; the labels say what runs.",
    ),
)  # fmt: skip

_FAMILY = {family.name: family for family in FAMILIES}


@dataclass(frozen=True, slots=True)
class LaneView:
    """One lane at the moment of a scrape; `budget_used` is the spent share of its refusal budget, 0 to 1."""

    provider: str
    identity: str
    state: LaneState
    queue: int
    sessions: int
    budget_used: float
    pace_per_s: float  # recipients


@dataclass(frozen=True, slots=True)
class View:
    """What a scrape reads of a monitor: newest answers, lists, alerts by channel. Times are Unix seconds."""

    now: float
    checks: Mapping[tuple[str, str], Check]  # by target and list
    answered: Mapping[str, float]  # by target: when a list last gave an answer that counts, or the watch began
    lists: Sequence[tuple[str, bool, str]]  # name, usable, why (`good` where it is)
    waiting: Mapping[str, int]
    unchecked: Sequence[str]  # critical lists that are off, with why
    to_push: int | None = None  # records in the spool; None where nothing is pushed
    push_stalled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Live:
    """What a scrape reads of the run: `lanes` is walked in slices, so it must bear lanes coming and going."""

    lanes: Iterable[LaneView]
    identities: Mapping[str, Status]  # by name
    journal_lag_s: float
    left: int = 0  # addresses of the job without a settled verdict
    refused: Mapping[str, bool] = field(default_factory=dict)  # identity -> whether its breaker is open


class Metrics:
    """The counters of one process, and the page that shows them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        for family in FAMILIES:
            if family.kind is Kind.COUNTER:
                self._counters[family.name] = Counter(family.name, family.help, family.labels, registry=self._registry)
            elif family.kind is Kind.HISTOGRAM:
                self._histograms[family.name] = Histogram(
                    family.name, family.help, family.labels, registry=self._registry, buckets=family.buckets
                )
        self._judged: dict[tuple[object, ...], _Tally] = {}
        self._children: dict[tuple[str, ...], Any] = {}
        self._hub_lag = self._histograms["engine_hub_lag_seconds"]
        self._at_scrape = _AtScrape()
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
        self._histogram("engine_session_seconds", provider).observe(seconds)
        self._histogram("engine_session_recipients", provider).observe(recipients)

    def lane_waited(self, provider: str, identity: str, seconds: float) -> None:
        """A session started for a domain that had waited so long for its turn."""
        self._histogram("engine_lane_wait_seconds", provider, identity).observe(seconds)

    def breaker_moved(self, provider: str, identity: str, to: BreakerState) -> None:
        """A lane's breaker opened, closed, or lets one session through."""
        self._counter("engine_breaker_transitions_total", provider, identity, to.value).inc()

    def dns(self, kind: str, outcome: str, seconds: float) -> None:
        """A question went to a name server: what `Resolver` records."""
        self._histogram("engine_dns_seconds", kind, outcome).observe(seconds)

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
        child: Counter | None = self._children.get(key)
        if child is None:
            child = self._children[key] = self._counters[name].labels(*labels)
        return child

    def _histogram(self, name: str, *labels: str) -> Histogram:
        key = (name, *labels)
        child: Histogram | None = self._children.get(key)
        if child is None:
            child = self._children[key] = self._histograms[name].labels(*labels)
        return child


class _Tally:
    """Answers of one kind since the last scrape: a counter's lock costs more than the rest of counting one."""

    __slots__ = ("count", "counters")

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.count = 0
        self.counters = counters


class _AtScrape(Collector):
    """The state gauges, read from the run when they are asked for."""

    def __init__(self) -> None:
        self.read: Callable[[], Live] | None = None
        self.view: Callable[[], View] | None = None

    def collect(self) -> Iterator[Metric]:
        build = _gauge("engine_build_info")
        build.add_metric([VERSION, CLASSIFIER, python_version()], 1)
        yield build
        if self.view is not None:
            yield from _reputation(self.view())
        if self.read is None:
            return
        live = self.read()
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


_HEAD = """# Metrics

Made from `engine/metrics.py` by `make docs`; don't edit it here.

`engine verify ... --metrics HOST:PORT` serves `/metrics`, `/healthz` and `/readyz`; a port alone means loopback.
`/healthz` answers 200 while the process turns; `/readyz` 200 while a run is at work and can store what it learns, else
503 with one line that says why. They answer while `verify` runs and end with it. `provider` is the name of a policy,
`default` for hosts that none claims; `identity` is an identity's name. Neither is ever a domain or an address, so the
number of series does not grow with the list.
Counters begin at 0 with the process: a resumed run counts what it settles itself. [Operating](operate.md) has the
dashboards and alerts that read all this.

| metric | type | labels | meaning |
| --- | --- | --- | --- |
"""

_STATES = """
`state` of `engine_lanes` is one of {lanes}; of `engine_identity_state` one of {identities}.

| histogram | upper bounds |
| --- | --- |
"""


def reference() -> str:
    """The page `docs/metrics.md`."""
    rows = (
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |\n"
        for family in FAMILIES
    )
    bounds = (
        f"| `{family.name}` | {', '.join(f'{bound:g}' for bound in family.buckets)} |\n"
        for family in FAMILIES
        if family.buckets
    )
    states = _STATES.format(
        lanes=", ".join(f"`{state}`" for state in LaneState), identities=", ".join(f"`{status}`" for status in Status)
    )
    process = ", ".join(f"`{name}`" for name in PROCESS)
    told = f"\nBeside them the process tells of itself, as with any Prometheus client: {process}.\n"
    return _HEAD + "".join(rows) + states + "".join(bounds) + told
