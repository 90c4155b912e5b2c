"""What the engine counts and shows: names and labels of the design, and numbers that mean what their help says."""

from __future__ import annotations

import re
import timeit
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import gevent
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine.core.breaker import BreakerState
from engine.core.identity import Status
from engine.core.listing import Check
from engine.core.listing import Status as Answer
from engine.core.reasons import REASONS, Stage
from engine.families import FAMILIES, PROCESS, Kind, LaneState, reference
from engine.metrics import Metrics, watch_hub
from engine.scrape import SLICE, page
from engine.views import LaneView, Live, View

ROOT = Path(__file__).parent.parent

# Design section 11, and what was added.
DESIGNED = """
engine_probes_total{provider,category,reason} engine_smtp_replies_total{provider,stage,code_class}
engine_tempfails_total{provider,identity,reason} engine_rejects_total{provider,identity,reason}
engine_refusals_total{provider,identity} engine_refusal_budget_used_ratio{provider,identity}
engine_sessions_open{provider} engine_session_seconds{provider} engine_session_recipients{provider}
engine_lanes{provider,identity,state} engine_lane_queue{provider,identity}
engine_lane_wait_seconds{provider,identity} engine_breaker_transitions_total{provider,identity,to}
engine_identity_state{identity,state} engine_dns_seconds{type,outcome} engine_hub_lag_seconds
engine_unclassified_replies_total{provider} engine_lane_pace{provider,identity} engine_journal_lag_seconds
engine_rbl_listed{list,target} engine_rbl_checks_total{list,outcome} engine_rbl_list_usable{list,reason}
engine_rbl_check_age_seconds{target} engine_build_info
engine_addresses_left engine_identity_breaker_open{identity} engine_policy_reloads_total{outcome}
engine_alerts_total{channel,outcome} engine_alerts_waiting{channel}
engine_push_records_total{outcome} engine_push_posts_total{outcome} engine_push_waiting engine_push_stalled_seconds
"""


class Page:
    """A scrape, read as Prometheus reads it."""

    def __init__(self, metrics: Metrics) -> None:
        self.text = page(metrics).decode()
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self.values = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}

    def value(self, name: str, **labels: str) -> float | None:
        """The value of one series, None where there is none."""
        return self.values.get((name, *sorted(labels.items())))

    def total(self, name: str) -> float:
        """The sum over all series of that name."""
        return sum(value for key, value in self.values.items() if key[0] == name)


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of their own, with one of everything counted."""
    return Metrics()


def judged(metrics: Metrics, stage: Stage, code: int | None, reason: str, *, refusal: bool = False) -> None:
    metrics.judged("gmail", "node-1", stage, code, REASONS[reason], refusal=refusal)


def lane(state: LaneState = LaneState.CLOSED, provider: str = "gmail", **changes: float) -> LaneView:
    values = {"queue": 3, "sessions": 1, "budget_used": 0.25, "pace_per_s": 2.0} | changes
    return LaneView(provider, "node-1", state, **values)  # type: ignore[arg-type]


def test_names_and_labels_are_those_of_the_design() -> None:
    """A dashboard written for the design reads this engine."""
    designed = {}
    for entry in DESIGNED.split():
        name, _, labels = entry.rstrip("}").partition("{")
        designed[name] = tuple(filter(None, labels.split(",")))
    labels_of = {family.name: family.labels for family in FAMILIES}
    assert designed.pop("engine_build_info") == ()  # the design leaves its labels open
    assert labels_of.pop("engine_build_info") == ("version", "classifier", "python")
    assert labels_of == designed


def test_a_histogram_is_what_the_client_would_make_of_the_same_values(metrics: Metrics) -> None:
    """Bounds included, with every label set that was met, and zeros where there are no labels."""
    registry = CollectorRegistry()
    client = {
        family.name: Histogram(family.name, family.help, family.labels, registry=registry, buckets=family.buckets)
        for family in FAMILIES
        if family.kind is Kind.HISTOGRAM
    }
    for name, family in ((each.name, each) for each in FAMILIES if each.name in client):
        values = [0.0, 1e9, *family.buckets, *(bound * 1.01 for bound in family.buckets)]
        for place, value in enumerate(values):
            provider = ("gmail", "default")[place % 2]
            match name:
                case "engine_session_seconds":
                    metrics.session_closed(provider, value, 0)
                    client["engine_session_recipients"].labels(provider).observe(0)
                    client[name].labels(provider).observe(value)
                case "engine_lane_wait_seconds":
                    metrics.lane_waited(provider, "node-1", value)
                    client[name].labels(provider, "node-1").observe(value)
                case "engine_dns_seconds":
                    metrics.dns("mx", provider, value)
                    client[name].labels("mx", provider).observe(value)
    text = page(metrics).decode()
    expected = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    assert len(expected) > 100
    assert set(expected) <= set(text.splitlines())


def test_the_page_says_what_the_table_says(metrics: Metrics) -> None:
    """Each family is on the page with the type, help and labels of the table, and nothing else is."""
    judged(metrics, Stage.RCPT, 451, "rate_limited")
    judged(metrics, Stage.RCPT, 550, "unclassified_reply", refusal=True)
    metrics.settled("gmail", "rcpt_ok")
    metrics.session_closed("gmail", 1.5, 3)
    metrics.lane_waited("gmail", "node-1", 2.0)
    metrics.breaker_moved("gmail", "node-1", BreakerState.OPEN)
    metrics.dns("mx", "found", 0.02)
    metrics.hub_lagged(0.001)
    metrics.reloaded("loaded")
    metrics.rbl_checked("zen", "clean")
    metrics.alerted("slack", "sent")
    metrics.pushed("sent", 2)
    metrics.posted("taken")
    metrics.watch(lambda: Live([lane()], {"node-1": Status.ENABLED}, 0.5, 3, {"node-1": False}))
    check = Check("192.0.2.1", "zen", Answer.LISTED, 40.0)
    metrics.watch_reputation(
        lambda: View(
            100.0,
            {("192.0.2.1", "zen"): check},
            {"192.0.2.1": 40.0},
            [("zen", True, "good")],
            {"slack": 2},
            [],
            5,
            60.0,
        )
    )
    page = Page(metrics)
    assert page.value("engine_rbl_check_age_seconds", target="192.0.2.1") == 60.0
    names = {*(family.name for family in FAMILIES), *PROCESS}
    assert {name.removesuffix("_total") for name in page.families} == {name.removesuffix("_total") for name in names}
    for family in FAMILIES:
        shown = page.families[family.name.removesuffix("_total")]
        assert (shown.type, shown.documentation) == (family.kind, family.help), family.name
        assert shown.samples, family.name
        for sample in shown.samples:
            assert set(sample.labels) - {"le"} == set(family.labels), sample.name
    assert "_created" not in page.text


def test_one_reply_moves_each_counter_it_belongs_to_once(metrics: Metrics) -> None:
    """A 4yz is a tempfail, fault us a reject, what the budget pays a refusal; an acceptance is a reply only."""
    judged(metrics, Stage.RCPT, 250, "rcpt_ok")
    judged(metrics, Stage.RCPT, 550, "mailbox_not_found", refusal=True)
    judged(metrics, Stage.RCPT, 451, "greylisted")
    judged(metrics, Stage.CONNECT, 421, "rate_limited")
    judged(metrics, Stage.MAIL, 554, "ip_blocklisted")
    judged(metrics, Stage.RCPT, 550, "unclassified_reply", refusal=True)
    page = Page(metrics)
    replies = {
        (Stage.RCPT, "2xx"): 1, (Stage.RCPT, "5xx"): 2, (Stage.RCPT, "4xx"): 1, (Stage.CONNECT, "4xx"): 1,
        (Stage.MAIL, "5xx"): 1,
    }  # fmt: skip
    for (stage, code_class), count in replies.items():
        labels = {"provider": "gmail", "stage": stage.value, "code_class": code_class}
        assert page.value("engine_smtp_replies_total", **labels) == count
    here = {"provider": "gmail", "identity": "node-1"}
    assert page.total("engine_smtp_replies_total") == 6
    assert page.value("engine_tempfails_total", **here, reason="greylisted") == 1
    assert page.value("engine_tempfails_total", **here, reason="rate_limited") == 1
    assert page.value("engine_rejects_total", **here, reason="rate_limited") == 1
    assert page.value("engine_rejects_total", **here, reason="ip_blocklisted") == 1
    assert page.total("engine_tempfails_total") == page.total("engine_rejects_total") == 2
    assert page.value("engine_refusals_total", **here) == 2
    assert page.value("engine_unclassified_replies_total", provider="gmail") == 1


def test_silence_is_no_reply_but_a_spent_token(metrics: Metrics) -> None:
    """A recipient left without an answer counts with the server, though there is no code to count."""
    judged(metrics, Stage.RCPT, None, "read_timeout", refusal=True)
    judged(metrics, Stage.CONNECT, None, "connect_timeout")
    page = Page(metrics)
    assert page.total("engine_smtp_replies_total") == 0
    assert page.value("engine_refusals_total", provider="gmail", identity="node-1") == 1


def test_verdicts_count_under_their_category(metrics: Metrics) -> None:
    """The category is that of the table of reasons, and what found no provider counts as default."""
    metrics.settled("gmail", "rcpt_ok", 40)
    metrics.settled("gmail", "rcpt_ok")
    metrics.settled("", "syntax_invalid", 2)
    page = Page(metrics)
    assert page.value("engine_probes_total", provider="gmail", category="valid", reason="rcpt_ok") == 41
    assert page.value("engine_probes_total", provider="default", category="invalid", reason="syntax_invalid") == 2


def test_lanes_are_summed_by_provider_and_the_worst_of_them_shows(metrics: Metrics) -> None:
    """However many lanes a provider has, its series are as many as with one: the fullest budget, the slowest pace."""
    worst = lane(LaneState.OPEN, sessions=0, budget_used=0.9, pace_per_s=0.5)
    lanes = [lane(), worst, lane(), lane(provider="default", queue=7)]
    metrics.watch(lambda: Live(lanes, {"node-1": Status.QUARANTINED}, 0.0))
    page = Page(metrics)
    here = {"provider": "gmail", "identity": "node-1"}
    states = {state: page.value("engine_lanes", **here, state=state.value) for state in LaneState}
    assert states == dict.fromkeys(LaneState, 0) | {LaneState.CLOSED: 2, LaneState.OPEN: 1}
    assert page.value("engine_lane_queue", **here) == 9
    assert page.value("engine_lane_queue", provider="default", identity="node-1") == 7
    assert page.value("engine_sessions_open", provider="gmail") == 2
    assert page.value("engine_refusal_budget_used_ratio", **here) == 0.9
    assert page.value("engine_lane_pace", **here) == 0.5
    assert page.value("engine_identity_state", identity="node-1", state="quarantined") == 1
    assert page.value("engine_identity_state", identity="node-1", state="enabled") == 0


def test_the_state_is_that_of_the_scrape(metrics: Metrics) -> None:
    """Gauges are read when asked for; without a run there are none, and no old number stays."""
    queue = {"queue": 1.0}
    metrics.watch(lambda: Live([lane(queue=queue["queue"])], {}, 0.25))
    assert Page(metrics).total("engine_lane_queue") == 1
    queue["queue"] = 5
    page = Page(metrics)
    assert (page.total("engine_lane_queue"), page.total("engine_journal_lag_seconds")) == (5, 0.25)
    metrics.watch(None)
    assert "engine_lane_queue" not in Page(metrics).text
    assert "engine_journal_lag_seconds" not in Page(metrics).text


def test_a_scrape_of_many_lanes_lets_others_run(metrics: Metrics) -> None:
    """Walking the lanes of a large run doesn't hold up the sessions."""
    turns: list[int] = []

    def lanes() -> Iterator[LaneView]:
        for number, each in enumerate(repeat(lane(), 5 * SLICE)):
            seen.append(number)
            yield each

    def other() -> None:
        while True:
            turns.append(len(seen))
            gevent.sleep(0)

    seen: list[int] = []
    metrics.watch(lambda: Live(lanes(), {}, 0.0))
    beside = gevent.spawn(other)
    assert Page(metrics).value("engine_lane_queue", provider="gmail", identity="node-1") == 15 * SLICE
    beside.kill()
    assert {SLICE, 2 * SLICE, 3 * SLICE, 4 * SLICE} <= set(turns)


def test_metrics_of_two_owners_share_nothing() -> None:
    """There is no registry of the process: a library's caller keeps his own."""
    one, other = Metrics(), Metrics()
    one.settled("gmail", "rcpt_ok")
    assert Page(other).total("engine_probes_total") == 0


def test_counting_a_reply_costs_next_to_nothing(metrics: Metrics) -> None:
    """Against 190 us for a dialogue; the bound is 20 times what it takes, so that a busy machine passes."""
    reason = REASONS["rcpt_ok"]
    once = min(
        timeit.repeat(
            lambda: metrics.judged("gmail", "node-1", Stage.RCPT, 250, reason, refusal=False), number=2000, repeat=5
        )
    )
    assert once / 2000 < 40e-6


def test_the_hub_lag_is_what_a_timer_comes_late(metrics: Metrics) -> None:
    """A greenlet that holds the hub shows in the histogram, with the length of its hold."""
    beat = gevent.spawn(watch_hub, metrics.hub_lagged)
    gevent.sleep(0)  # it is in its first sleep now
    held = timeit.timeit(lambda: sum(range(200_000)), number=1)
    while held < 0.2:
        held += timeit.timeit(lambda: sum(range(200_000)), number=1)
    while Page(metrics).total("engine_hub_lag_seconds_count") == 0:
        gevent.sleep(0)
    beat.kill()
    assert Page(metrics).total("engine_hub_lag_seconds_sum") > 0.1


def test_the_documentation_is_made_from_the_table() -> None:
    """docs/metrics.md is what `make docs` writes, and names each metric once with its labels."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == reference()
    for family in FAMILIES:
        row = re.findall(rf"^\| `{family.name}` \| {family.kind} \| (.*?) \|", page, re.MULTILINE)
        assert row == [", ".join(f"`{label}`" for label in family.labels)]
    assert all(family.buckets for family in FAMILIES if family.kind is Kind.HISTOGRAM)
