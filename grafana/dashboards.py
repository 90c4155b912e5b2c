"""Writes the dashboards: `python grafana/dashboards.py` makes grafana/dashboards/*.json, which Grafana provisions.

1. A dashboard answers an operator's questions in the order in which he asks them; each row is one question.
2. Every panel says in its description what it shows and what to make of it; units are set, thresholds are those of the
   alert rules in grafana/prometheus/alerts.yml.
3. rate() for what flows; the recording rules of grafana/prometheus/recording.yml for what is rare and matters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
GREEN, YELLOW, RED = "green", "orange", "red"
PALETTE = {"valid": GREEN, "invalid": RED, "risky": YELLOW, "closed": GREEN, "open": RED, "half_open": YELLOW}


@dataclass(frozen=True)
class Panel:
    """One panel: `asks` are (PromQL, legend) pairs, `steps` the thresholds that colour it, `wide` of 24 columns."""

    title: str
    about: str
    asks: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    unit: str = "short"
    wide: int = 8
    high: int = 8
    steps: Sequence[tuple[float | None, str]] = ()
    stacked: bool = False
    link: str = ""  # uid of the dashboard that a click leads to
    by_label: str = ""  # the label whose value the link hands on
    options: dict[str, Any] = field(default_factory=dict)
    most: float | None = None


def stat(title: str, about: str, expr: str, **more: Any) -> Panel:
    """One large number."""
    return replace(Panel(title, about, [(expr, "")], kind="stat", wide=4, high=4), **more)


@dataclass(frozen=True)
class Row:
    """A question, and the panels that answer it."""

    question: str
    panels: Sequence[Panel]


def link_url(uid: str, label: str = "") -> str:
    """Where a click leads; the dashboard keeps the time range."""
    handed = f"&var-{label}=${{__field.labels.{label}}}" if label else ""
    return f"/d/engine-{uid}?${{__url_time_range}}&${{datasource:queryparam}}{handed}"


def panel(made: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel as Grafana stores it."""
    instant = made.kind in ("stat", "table")
    targets = [
        {
            "refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto",
            "instant": instant, "range": not instant, "format": "table" if made.kind == "table" else "time_series",
        }
        for place, (expr, legend) in enumerate(made.asks)
    ]  # fmt: skip
    custom: dict[str, Any] = {}
    if made.kind == "timeseries":
        custom = {"lineWidth": 1, "fillOpacity": 25 if made.stacked else 8, "showPoints": "never",
                  "stacking": {"mode": "normal" if made.stacked else "none"}}  # fmt: skip
        if made.steps:
            custom["thresholdsStyle"] = {"mode": "line"}
    steps = made.steps or [(None, GREEN)]
    defaults: dict[str, Any] = {
        "unit": made.unit, "custom": custom, "noValue": "no data",
        "color": {"mode": "thresholds" if instant or made.kind == "state-timeline" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]},
    }  # fmt: skip
    if made.unit != "s" and made.kind == "timeseries":
        defaults["min"] = 0
    if made.most is not None:
        defaults["max"] = made.most
    if made.link:
        defaults["links"] = [{"title": f"Open {made.link}", "url": link_url(made.link, made.by_label)}]
    overrides = [
        {"matcher": {"id": "byName", "options": name},
         "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}]}
        for name, colour in PALETTE.items()
        if any(legend in ("{{category}}", "{{state}}", "{{to}}") for _, legend in made.asks)
    ]  # fmt: skip
    options: dict[str, Any] = {
        "stat": {"colorMode": "value", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}},
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "table": {"cellHeight": "sm", "footer": {"show": False}},
        "state-timeline": {"showValue": "never", "legend": {"displayMode": "list", "placement": "bottom"}},
    }[made.kind]  # fmt: skip
    shown = {
        "id": number, "type": made.kind, "title": made.title, "description": made.about, "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": made.wide, "h": made.high}, "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": overrides}, "options": options | made.options,
    }  # fmt: skip
    if made.kind == "table":
        shown["transformations"] = [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True, "job": True}}},
        ]
        if len(made.asks) > 1:
            names = {f"Value #{chr(ord('A') + place)}": legend for place, (_, legend) in enumerate(made.asks)}
            shown["transformations"][1]["options"]["renameByName"] = names
    return shown


def laid_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Panels from left to right, a heading over each row."""
    shown: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        grid = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        shown.append({"id": len(shown) + 1, "type": "row", "title": row.question, "collapsed": False, "gridPos": grid, "panels": []})
        y, x, tallest = y + 1, 0, 0
        for each in row.panels:
            if x + each.wide > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            shown.append(panel(each, len(shown) + 1, x, y))
            x, tallest = x + each.wide, max(tallest, each.high)
        y += tallest
    return shown


def annotation(name: str, expr: str, title: str, text: str, colour: str) -> dict[str, Any]:
    """Marks on every panel, at the moments where the expression has a value."""
    return {
        "name": name, "enable": True, "datasource": SOURCE, "iconColor": colour, "expr": expr, "step": "60s",
        "titleFormat": title, "textFormat": text, "useValueForTime": False,
    }  # fmt: skip


ANNOTATIONS = [
    {"builtIn": 1, "datasource": {"type": "grafana", "uid": "-- Grafana --"}, "enable": True, "hide": True,
     "iconColor": "rgba(0, 211, 255, 1)", "name": "Annotations & Alerts", "type": "dashboard"},
    annotation(
        "Breaker", 'provider:engine_breaker_transitions:increase5m{to=~"open|closed"} > 0',
        "{{provider}} {{to}}", "A lane's breaker moved to {{to}} for {{identity}}", RED,
    ),
    annotation(
        "Identity", "changes(engine_identity_state[2m]) > 0 and engine_identity_state == 1",
        "{{identity}} {{state}}", "The identity is {{state}} now", "purple",
    ),
    annotation(
        "Listing", "changes(engine_rbl_listed[2m]) > 0",
        "{{list}}: {{target}}", "The list changed its answer about this target", "purple",
    ),
]  # fmt: skip


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice of label values, all of them at first."""
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def dashboard(uid: str, title: str, about: str, rows: Sequence[Row], variables: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A whole dashboard as Grafana stores it."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}
    others = {"type": "dashboards", "tags": ["engine"], "title": "Engine", "asDropdown": True, "keepTime": True}
    return {
        "uid": f"engine-{uid}", "title": title, "description": about, "tags": ["engine"], "schemaVersion": 39,
        "version": 1, "editable": False, "graphTooltip": 1, "timezone": "browser", "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"}, "links": [others], "annotations": {"list": ANNOTATIONS},
        "templating": {"list": [source, *variables]}, "panels": laid_out(rows),
    }  # fmt: skip


def warn(at: float, bad: float | None = None) -> list[tuple[float | None, str]]:
    """Green below `at`, then orange, and red from `bad` on."""
    return [(None, GREEN), (at, YELLOW), *([(bad, RED)] if bad is not None else [])]


def overview() -> dict[str, Any]:
    working = Row("Is it working?", [
        stat("Engines", "Monitors and jobs that answer Prometheus.", 'sum(up{job=~"engine|engine-jobs"})',
             steps=[(None, RED), (1, GREEN)]),
        stat("Verdicts", "Settled verdicts, over five minutes.", "sum(instance:engine_probes:rate5m)", unit="cps"),
        stat("Sessions", "SMTP sessions open now, those still dialling included.", "sum(engine_sessions_open)"),
        stat("Answered in 1 h", "Share of verdicts that are valid or invalid. The rest is risky: catch-all domains, "
             "providers that tell nothing, and whoever refused us.",
             'sum(increase(engine_probes_total{category!="risky"}[1h])) / sum(increase(engine_probes_total[1h]))',
             unit="percentunit"),
        stat("Identity", "The state that each identity is in.", "engine_identity_state == 1",
             wide=8, unit="none", options={"textMode": "name", "graphMode": "none"},
             link="reputation"),
        Panel("Verdicts by category", "Settled verdicts. A sudden shift to risky means that servers stopped answering.",
              [("sum by (category) (rate(engine_probes_total[$__rate_interval]))", "{{category}}")],
              unit="cps", wide=12, stacked=True),
        Panel("Verdicts by reason", "The ten most frequent reasons; docs/reasons.md has the table.",
              [("topk(10, sum by (reason) (rate(engine_probes_total[$__rate_interval])))", "{{reason}}")],
              unit="cps", wide=12),
    ])  # fmt: skip
    refused = Row("Is anyone refusing us?", [
        stat("Lanes closed to us", "Lanes whose breaker is open or half-open. A few sites in a hundred are normal.",
             'sum(engine_lanes{state=~"open|half_open"})', steps=warn(1), link="provider"),
        stat("Refused in 15 min", "Replies that refuse us and not a recipient.",
             "sum(provider:engine_rejects:increase15m) or vector(0)", steps=warn(1, 50)),
        Panel("Refusals of us by provider", "Share of a provider's replies that refuse us, over 15 minutes. Alert: 5 %. "
              "Click for the provider.",
              [("provider:engine_rejects:share15m", "{{provider}}")],
              unit="percentunit", wide=16, steps=[(None, "transparent"), (0.05, RED)], link="provider", by_label="provider"),
        Panel("Providers", "One line a provider: what it said in 15 minutes, what is closed to us, what waits. Click for the "
              "provider.", [
                  ("provider:engine_smtp_replies:increase15m", "replies in 15 min"),
                  ("sum by (provider) (provider:engine_rejects:increase15m)", "refused us"),
                  ('sum by (provider) (engine_lanes{state=~"open|half_open"})', "lanes closed to us"),
                  ("sum by (provider) (engine_lane_queue)", "addresses waiting"),
                  ("max by (provider) (engine_refusal_budget_used_ratio)", "budget used (share)"),
              ], kind="table", wide=24, link="provider"),
    ])  # fmt: skip
    listed = Row("Are we listed?", [
        stat("Listings", "Block lists that name an address or a name of ours.", "sum(engine_rbl_listed)",
             steps=[(None, GREEN), (1, RED)], link="reputation"),
        stat("Lists unusable", "Lists that are switched on and give no usable answer; nothing is known from them.",
             "count(min by (list) (engine_rbl_list_usable) == 0) or vector(0)", steps=warn(1), link="reputation"),
        stat("Oldest check", "How long ago the target checked longest ago was checked. Alert: 2 h.",
             "max(engine_rbl_check_age_seconds)", unit="s", steps=warn(3600, 7200), link="reputation"),
        Panel("Refusals for reputation", "Refusals whose words blame our address, name or reputation: a receiver often "
              "knows before a list says so.",
              [('sum by (provider, reason) (provider:engine_rejects:increase15m{reason=~"ip_.*|ptr_missing|helo_rejected"})',
                "{{provider}} {{reason}}")], wide=12, high=6, link="reputation"),
    ])  # fmt: skip
    waiting = Row("What waits, and why?", [
        Panel("Addresses waiting by provider", "In the lanes in memory; what is still on disk only is not in it.",
              [("sum by (provider) (engine_lane_queue)", "{{provider}}")], stacked=True, link="provider", by_label="provider"),
        Panel("Lanes by state", "closed: at work, or nothing keeps it; waiting_rate and waiting_budget: its policy allows no "
              "more yet; open and half_open: closed to us.",
              [("sum by (state) (engine_lanes)", "{{state}}")], stacked=True),
        Panel("Refusal budget used", "The fullest lane of each provider. At 1 it waits until old refusals leave the window.",
              [("max by (provider) (engine_refusal_budget_used_ratio)", "{{provider}}")],
              unit="percentunit", most=1, link="provider", by_label="provider"),
    ])  # fmt: skip
    until = Row("How long until it is done?", [
        stat("Addresses left", "Of all jobs that run: addresses without a settled verdict.", "sum(engine_addresses_left)"),
        stat("At this rate", "What is left, divided by the verdicts of the last hour. `engine policy simulate` tells more.",
             "sum(engine_addresses_left) / sum(rate(engine_probes_total[1h]))", unit="s"),
        Panel("Addresses left", "It falls while the job lives; a level stretch is a run that waits. Alert: 30 minutes "
              "without a verdict.", [("engine_addresses_left", "{{instance}}")], wide=16),
    ])  # fmt: skip
    machine = Row("Is the machine the limit?", [
        stat("Hub lag p99", "How late timers fire. Alert: 100 ms.", "max(instance:engine_hub_lag_seconds:p99_5m)", unit="s",
             steps=warn(0.05, 0.1), link="internals"),
        stat("CPU", "Of one core: an engine process uses one.", 'max(rate(process_cpu_seconds_total{job=~"engine|engine-jobs"}[5m]))',
             unit="percentunit", steps=warn(0.7, 0.9), link="internals"),
        stat("Journal lag", "How long the oldest write waits for its commit. Alert: 5 s.", "max(engine_journal_lag_seconds)",
             unit="s", steps=warn(1, 5), link="internals"),
        stat("Files open", "Of those that the process may open.",
             'max(process_open_fds{job=~"engine|engine-jobs"} / process_max_fds{job=~"engine|engine-jobs"})',
             unit="percentunit", steps=warn(0.7, 0.9), link="internals"),
        stat("Look-ups that fail", "Share of the questions to name servers without an answer, over 15 minutes. Alert: 10 %.",
             "max(instance:engine_dns_failures:share15m or 0 * instance:engine_hub_lag_seconds:p99_5m)",
             unit="percentunit", steps=warn(0.05, 0.1), link="internals"),
        stat("Memory", "Resident, of the largest process.", 'max(process_resident_memory_bytes{job=~"engine|engine-jobs"})',
             unit="bytes", link="internals"),
    ])  # fmt: skip
    about = "Is it working, is anyone refusing us, are we listed, what waits and why, how long yet, is the machine the limit?"
    return dashboard("overview", "Engine: overview", about, [working, refused, listed, waiting, until, machine])


def provider() -> dict[str, Any]:
    here, mine = '{provider=~"$provider"}', '{provider=~"$provider", identity=~"$identity"}'
    answers = Row("What does it answer?", [
        Panel("Replies by stage and code", "SMTP replies that were judged.",
              [(f"sum by (stage, code_class) (rate(engine_smtp_replies_total{here}[$__rate_interval]))", "{{stage}} {{code_class}}")],
              unit="cps", stacked=True),
        Panel("Verdicts by reason", "Settled verdicts of its addresses.",
              [(f"sum by (reason) (rate(engine_probes_total{here}[$__rate_interval]))", "{{reason}}")], unit="cps", stacked=True),
        Panel("Replies of no known kind", "Share that matches no rule, over an hour. Alert: 1 %. "
              "`engine classify --journal FILE` shows their words.",
              [(f"provider:engine_unclassified_replies:share1h{here}", "{{provider}}")],
              unit="percentunit", steps=[(None, "transparent"), (0.01, RED)]),
    ])  # fmt: skip
    refusing = Row("Does it refuse us?", [
        Panel("Refusals of us by reason", "In 15 minutes. docs/reasons.md says what each means.",
              [(f"sum by (reason) (provider:engine_rejects:increase15m{mine})", "{{reason}}")]),
        Panel("Breaker", "Moves of its lanes' breakers in 5 minutes.",
              [(f"sum by (to) (provider:engine_breaker_transitions:increase5m{mine})", "{{to}}")]),
        Panel("Share of lanes closed to us", "Open or half-open. Alert: a fifth for 2 hours.",
              [(f"provider:engine_lanes_closed_to_us:share{mine}", "{{provider}} {{identity}}")],
              unit="percentunit", most=1, steps=[(None, "transparent"), (0.2, RED)]),
        Panel("Tempfails by reason", "4yz replies, greylisting included: later, please.",
              [(f"sum by (reason) (rate(engine_tempfails_total{mine}[$__rate_interval]))", "{{reason}}")], unit="cps", wide=12),
        Panel("Unknown recipients", "Refused recipients, controls included: what a provider holds against us.",
              [(f"sum by (provider) (rate(engine_refusals_total{mine}[$__rate_interval]))", "{{provider}}")], unit="cps", wide=12),
    ])  # fmt: skip
    waits = Row("What waits there, and why?", [
        Panel("Addresses waiting", "In its lanes in memory.", [(f"sum by (provider) (engine_lane_queue{mine})", "{{provider}}")]),
        Panel("Lanes by state", "See the overview for what each state means.",
              [(f"sum by (state) (engine_lanes{mine})", "{{state}}")], stacked=True),
        Panel("Refusal budget used", "The fullest lane. Alert: more than half of the lanes wait for it, for 2 hours.",
              [(f"max by (provider) (engine_refusal_budget_used_ratio{mine})", "{{provider}}"),
               (f"provider:engine_lanes_waiting_budget:share{mine}", "lanes waiting {{provider}}")], unit="percentunit", most=1),
        Panel("Pace", "Recipients that the slowest lane asks for at most: complaints cut it, peace raises it.",
              [(f"min by (provider) (engine_lane_pace{mine})", "{{provider}}")], unit="cps"),
        Panel("Wait for a turn", "How long a domain with something to ask had waited when its session began.",
              [(f"histogram_quantile({q}, sum by (le) (rate(engine_lane_wait_seconds_bucket{mine}[$__rate_interval])))", f"p{q * 100:g}")
               for q in (0.5, 0.9)], unit="s"),
        Panel("Sessions", "Open now.", [(f"sum by (provider) (engine_sessions_open{here})", "{{provider}}")]),
        Panel("Session length", "From dialling to the end.",
              [(f"histogram_quantile({q}, sum by (le) (rate(engine_session_seconds_bucket{here}[$__rate_interval])))", f"p{q * 100:g}")
               for q in (0.5, 0.9)], unit="s", wide=12),
        Panel("Recipients a session", "Mean; controls included. A session costs a server more than a recipient.",
              [(f"sum by (provider) (rate(engine_session_recipients_sum{here}[$__rate_interval])) / "
                f"sum by (provider) (rate(engine_session_recipients_count{here}[$__rate_interval]))", "{{provider}}")], wide=12),
    ])  # fmt: skip
    return dashboard(
        "provider", "Engine: provider", "One provider, or several: what it answers, whether it refuses us, what waits there.",
        [answers, refusing, waits],
        [variable("provider", "Provider", "label_values(engine_smtp_replies_total, provider)"),
         variable("identity", "Identity", "label_values(engine_identity_state, identity)")],
    )  # fmt: skip


def reputation() -> dict[str, Any]:
    now = Row("Are we listed?", [
        stat("Listings", "Block lists that name an address or a name of ours.", "sum(engine_rbl_listed)",
             steps=[(None, GREEN), (1, RED)], wide=6),
        stat("Lists unusable", "They are switched on and give no usable answer.",
             "count(min by (list) (engine_rbl_list_usable) == 0) or vector(0)", steps=warn(1), wide=6),
        stat("Oldest check", "Alert: 2 h.", "max(engine_rbl_check_age_seconds)", unit="s", steps=warn(3600, 7200), wide=6),
        stat("Quarantined", "Identities that may not probe.", 'sum(engine_identity_state{state="quarantined"})',
             steps=[(None, GREEN), (1, RED)], wide=6),
        Panel("Who lists what", "Each list and target where the list names us.",
              [("engine_rbl_listed > 0", "")], kind="table", wide=12),
        Panel("Listings over time", "Red while a list names the target.",
              [("max by (list, target) (engine_rbl_listed) > 0", "{{list}}: {{target}}")],
              kind="state-timeline", wide=12, steps=[(None, GREEN), (1, RED)]),
    ])  # fmt: skip
    checks = Row("Can the lists be believed?", [
        Panel("Answers by outcome", "Look-ups a second. Anything but listed and not listed is no answer about us.",
              [("sum by (outcome) (rate(engine_rbl_checks_total[$__rate_interval]))", "{{outcome}}")], unit="cps", stacked=True),
        Panel("Usable lists", "0 with the reason why nothing is known from a list; it is never shown as clean.",
              [("engine_rbl_list_usable", "")], kind="table"),
        Panel("Age of checks", "By target. Alert: 2 h.", [("max by (target) (engine_rbl_check_age_seconds)", "{{target}}")],
              unit="s", steps=[(None, "transparent"), (7200, RED)]),
    ])  # fmt: skip
    seen = Row("What do receivers think of us?", [
        Panel("Refusals for reputation", "In 15 minutes, by reason: what lists and receivers hold against address and name.",
              [('sum by (reason) (provider:engine_rejects:increase15m{reason=~"ip_.*|ptr_missing|helo_rejected|sender_.*"})', "{{reason}}")],
              wide=12),
        Panel("Who refuses us", "Share of each provider's replies, over 15 minutes.",
              [("provider:engine_rejects:share15m", "{{provider}}")], unit="percentunit", wide=12,
              steps=[(None, "transparent"), (0.05, RED)], link="provider", by_label="provider"),
        Panel("State of the identities", "Which of its states an identity was in.",
              [("engine_identity_state == 1", "{{identity}} {{state}}")], kind="state-timeline", wide=24, high=6),
    ])  # fmt: skip
    return dashboard("reputation", "Engine: reputation", "Who lists us, whether lists can be believed, what receivers think.", [now, checks, seen])


def internals() -> dict[str, Any]:
    ours = '{job=~"engine|engine-jobs"}'
    hub = Row("Is the processor the limit?", [
        Panel("Hub lag", "How late a timer of 50 ms fires. Alert: p99 over 100 ms for 10 minutes.",
              [(f"histogram_quantile({q}, sum by (instance, le) (rate(engine_hub_lag_seconds_bucket[$__rate_interval])))",
                f"p{q * 100:g} {{{{instance}}}}") for q in (0.5, 0.99)], unit="s", steps=[(None, "transparent"), (0.1, RED)]),
        Panel("CPU", "Of one core; an engine process uses one.",
              [(f"rate(process_cpu_seconds_total{ours}[$__rate_interval])", "{{instance}}")], unit="percentunit"),
        Panel("CPU a verdict", "What a settled address costs, DNS and retries included.",
              [(f"sum by (instance) (rate(process_cpu_seconds_total{ours}[5m])) / on (instance) "
                "sum by (instance) (instance:engine_probes:rate5m > 0)", "{{instance}}")], unit="s"),
    ])  # fmt: skip
    memory = Row("Memory and files?", [
        Panel("Memory", "Resident.", [(f"process_resident_memory_bytes{ours}", "{{instance}}")], unit="bytes"),
        Panel("Files open", "Sessions, databases, DNS; the second line is the limit.",
              [(f"process_open_fds{ours}", "{{instance}}"), (f"process_max_fds{ours}", "limit {{instance}}")]),
        Panel("Lanes in memory", "A lane leaves memory when it has no work.", [("sum by (instance) (engine_lanes)", "{{instance}}")]),
    ])  # fmt: skip
    dns = Row("Does DNS answer?", [
        Panel("Questions by outcome", "To name servers; what the cache answers is not in it.",
              [("sum by (outcome) (rate(engine_dns_seconds_count[$__rate_interval]))", "{{outcome}}")], unit="cps", stacked=True),
        Panel("Time of an answer", "By record type, p90.",
              [("histogram_quantile(0.9, sum by (type, le) (rate(engine_dns_seconds_bucket[$__rate_interval])))", "{{type}}")], unit="s"),
        Panel("Failures", "Share without an answer, over 15 minutes. Alert: 10 %.",
              [("instance:engine_dns_failures:share15m", "{{instance}}")], unit="percentunit",
              steps=[(None, "transparent"), (0.1, RED)]),
    ])  # fmt: skip
    disk = Row("Does the disk keep up?", [
        Panel("Journal lag", "How long the oldest write has waited for its commit. Alert: 5 s; at 10 s /readyz says no.",
              [("engine_journal_lag_seconds", "{{instance}}")], unit="s", steps=[(None, "transparent"), (5, RED)]),
        Panel("Scrapes", "How long Prometheus waits for /metrics, and how many series it gets.",
              [(f"scrape_duration_seconds{ours}", "{{instance}}")], unit="s"),
        Panel("What runs", "Version, classifier, Python; when the process began.",
              [("engine_build_info", "running"), (f"process_start_time_seconds{ours} * 1000", "started")], kind="table", unit="dateTimeAsIso"),
    ])  # fmt: skip
    return dashboard("internals", "Engine: internals", "Processor, memory, files, DNS, journal: is the machine the limit?", [hub, memory, dns, disk])


def dashboards() -> dict[str, str]:
    """File name -> text of every dashboard."""
    made = {"overview": overview(), "provider": provider(), "reputation": reputation(), "internals": internals()}
    return {f"{name}.json": json.dumps(each, indent=2) + "\n" for name, each in made.items()}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        (HERE / name).write_text(text, encoding="utf-8")
