"""Writes the dashboards: `python grafana/dashboards.py` makes dashboards/*.json, which Grafana loads, of panels/*.yaml.

1. A dashboard answers an operator's questions in the order in which he asks them; each row is one question.
2. Every panel says in `about` what it shows and what to make of it; `unit` is one of Grafana's names, `steps` colour
   the value from a number on, those of the alert rules where there is one.
3. rate() for what flows; for what is rare and matters the recording rules of prometheus/recording.yml, or their form:
   increase() does not see the first count of a series.
4. No data is never shown as zero: where nobody watches, a panel says so.
5. `link` names the dashboard that a click leads to, `hand_on` the label whose value it takes along.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
SIZES = {"stat": (4, 4)}  # width and height in Grafana's grid; (8, 8) for the rest
PALETTE = {
    "valid": "green", "invalid": "red", "risky": "orange",
    "closed": "green", "half_open": "orange", "open": "red", "waiting_rate": "blue", "waiting_budget": "purple",
    "enabled": "green", "draining": "orange", "disabled": "blue", "quarantined": "red",
}  # fmt: skip
OPTIONS = {
    "stat": {"colorMode": "value", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "table": {"cellHeight": "sm", "footer": {"show": False}},
    "state-timeline": {"showValue": "never", "legend": {"displayMode": "list", "placement": "bottom"}},
}
# Marks on every panel: (name, where the expression is 1 or more, title, text, colour).
MARKS = [
    ("Breaker", 'provider:engine_breaker_transitions:increase5m{to=~"open|closed"} > 0',
     "{{provider}} {{to}}", "A lane's breaker moved to {{to}} for {{identity}}", "red"),
    ("Identity", "changes(engine_identity_state[2m]) > 0 and engine_identity_state == 1",
     "{{identity}} {{state}}", "The identity is {{state}} now", "purple"),
    ("Listed", "engine_rbl_listed == 1 unless engine_rbl_listed offset 2m == 1",
     "{{list}} lists {{target}}", "A block list began to name this target, or to tell of it again", "red"),
    ("Off a list", "engine_rbl_listed offset 2m == 1 and engine_rbl_listed == 0",
     "{{target}} is off {{list}}", "The list names this target no more", "green"),
]  # fmt: skip


def dashboard(uid: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """A whole dashboard as Grafana stores it."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}
    others = {"type": "dashboards", "tags": ["engine"], "title": "Engine", "asDropdown": True, "keepTime": True}
    variables = [variable(name, **each) for name, each in told.get("variables", {}).items()]
    return {
        "uid": f"engine-{uid}", "title": told["title"], "description": told["about"], "tags": ["engine"],
        "schemaVersion": 39, "version": 1, "editable": False, "graphTooltip": 1, "timezone": "browser",
        "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "links": [others],
        "annotations": {"list": [mark(*each) for each in MARKS]}, "templating": {"list": [source, *variables]},
        "panels": list(laid_out(told["rows"])),
    }  # fmt: skip


def laid_out(rows: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Panels from left to right, a heading over each row."""
    number = y = 0
    for row in rows:
        number += 1
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {
            "id": number, "type": "row", "title": row["question"], "collapsed": False, "gridPos": place, "panels": []
        }  # fmt: skip
        y, x, tallest = y + 1, 0, 0
        for told in row["panels"]:
            wide, high = SIZES.get(told.get("kind"), (8, 8))
            wide, high = told.get("wide", wide), told.get("high", high)
            if x + wide > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            yield {"id": number, "gridPos": {"x": x, "y": y, "w": wide, "h": high}, **panel(**told)}
            x, tallest = x + wide, max(tallest, high)
        y += tallest


def panel(
    title: str,
    about: str,
    asks: list[dict[str, Any]],
    kind: str = "timeseries",
    unit: str = "short",
    steps: Mapping[str, float | None] | None = None,
    *,
    stacked: bool = False,
    most: float | None = None,
    link: str = "",
    hand_on: str = "",
    options: Mapping[str, Any] | None = None,
    **_size: int,
) -> dict[str, Any]:
    """A panel as Grafana stores it; the arguments are the keys of panels/*.yaml."""
    return {
        "type": kind, "title": title, "description": about, "datasource": SOURCE,
        "targets": [target(number, kind, **ask) for number, ask in enumerate(asks)],
        "fieldConfig": {
            "defaults": defaults(kind, unit, steps or {"green": None}, stacked=stacked, most=most)
            | ({"links": [{"title": f"Open {link}", "url": url(link, hand_on, kind)}]} if link else {}),
            "overrides": [*colours(asks), *units(asks)],
        },
        "options": OPTIONS[kind] | (options or {}),
        **({"transformations": columns(asks)} if kind == "table" else {}),
    }  # fmt: skip


def target(number: int, kind: str, expr: str, **legend: Any) -> dict[str, Any]:
    """One query: of this moment for a number or a table, else over the time range."""
    now = kind in ("stat", "table")
    return {
        "refId": chr(ord("A") + number), "datasource": SOURCE, "expr": expr, "instant": now, "range": not now,
        "legendFormat": legend.get("as", "__auto"), "format": "table" if kind == "table" else "time_series",
    }  # fmt: skip


def defaults(
    kind: str, unit: str, steps: Mapping[str, float | None], *, stacked: bool, most: float | None
) -> dict[str, Any]:
    """How values are drawn. A threshold of a curve is a line, and its base has no colour."""
    drawn: dict[str, Any] = {}
    if kind == "timeseries":
        drawn = {
            "lineWidth": 1, "fillOpacity": 25 if stacked else 8, "showPoints": "never",
            "stacking": {"mode": "normal" if stacked else "none"},
            "thresholdsStyle": {"mode": "line" if len(steps) > 1 else "off"},
        }  # fmt: skip
    found = {
        "unit": unit, "custom": drawn, "noValue": "no data",
        "color": {"mode": "palette-classic" if kind == "timeseries" else "thresholds"},
        "thresholds": {"mode": "absolute", "steps": [{"color": key, "value": at} for key, at in steps.items()]},
    }  # fmt: skip
    limits = {"min": 0 if kind == "timeseries" else None, "max": most}
    return found | {key: value for key, value in limits.items() if value is not None}


def colours(asks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What has a meaning has the same colour on every panel; a series is known by the last word of its name."""
    if not any(ask.get("as", "").endswith(("{{category}}", "{{state}}", "{{to}}")) for ask in asks):
        return []
    return [
        {"matcher": {"id": "byRegexp", "options": f"/(^| ){name}$/"},
         "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}]}
        for name, colour in PALETTE.items()
    ]  # fmt: skip


def units(asks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The units of a table's columns, where one is not the panel's."""
    return [
        {"matcher": {"id": "byName", "options": ask["as"]}, "properties": [{"id": "unit", "value": ask["unit"]}]}
        for ask in asks if "unit" in ask
    ]  # fmt: skip


def columns(asks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One table of all queries, its columns named after them; a query without `as` is there for its labels."""
    named = [("Value" if len(asks) == 1 else f"Value #{chr(ord('A') + n)}", ask) for n, ask in enumerate(asks)]
    hidden = dict.fromkeys(("Time", "__name__", "job", "role"), True)
    hidden |= {column: True for column, ask in named if "as" not in ask}
    names = {column: ask["as"] for column, ask in named if "as" in ask}
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "renameByName": names}},
    ]


def url(uid: str, label: str, kind: str) -> str:
    """Where a click leads; it takes time range, data source and the label's value along."""
    value = f"__data.fields.{label}" if kind == "table" else f"__field.labels.{label}"
    handed = f"&var-{label}=${{{value}}}" if label else ""
    return f"/d/engine-{uid}?${{__url_time_range}}&${{datasource:queryparam}}{handed}"


def mark(name: str, expr: str, title: str, text: str, colour: str) -> dict[str, Any]:
    """An annotation at the moments where the expression has a value."""
    return {
        "name": name, "enable": True, "datasource": SOURCE, "iconColor": colour, "expr": expr, "step": "60s",
        "titleFormat": title, "textFormat": text, "useValueForTime": False,
    }  # fmt: skip


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice of label values, all of them at first."""
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def dashboards() -> dict[str, str]:
    """File name -> text of every dashboard."""
    sources = sorted((HERE / "panels").glob("*.yaml"))
    made = {path.stem: dashboard(path.stem, yaml.safe_load(path.read_text("utf-8"))) for path in sources}
    return {f"{name}.json": json.dumps(each, indent=2) + "\n" for name, each in made.items()}


if __name__ == "__main__":
    for file, text in dashboards().items():
        (HERE / "dashboards" / file).write_text(text, encoding="utf-8")
