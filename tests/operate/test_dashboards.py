"""Dashboards, rules, documentation and code speak of the same metrics; every alert leads to its page."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from engine.families import FAMILIES, PROCESS, Kind

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
EXPORTED = {family.name: family for family in FAMILIES}
PROMETHEUS_OWN = {"up": (), "scrape_duration_seconds": ()}  # of any target
TARGET = {"job", "instance"}  # labels that every scraped series has
# What no panel shows, and why.
UNSEEN = {"process_virtual_memory_bytes"}  # address space says nothing of memory used
WORDS = frozenset(
    """
    sum by on max min count rate increase histogram_quantile topk vector or unless and offset changes ignoring without
    group_left bool time clamp_max
    """.split()  # noqa: SIM905
)
_QUOTED = re.compile(r'"[^"]*"')
_NAME = re.compile(r"(?<![\w$:.])[a-zA-Z_][\w:]*")
_SELECTOR = re.compile(r"([a-zA-Z_][\w:]*)\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
_LEGEND = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def boards() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def rules() -> list[dict]:
    files = (GRAFANA / "prometheus" / "recording.yml", GRAFANA / "prometheus" / "alerts.yml")
    return [
        rule for file in files for group in yaml.safe_load(file.read_text("utf-8"))["groups"] for rule in group["rules"]
    ]


ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDED = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def expressions() -> Iterator[tuple[str, str, str]]:
    """(place, expression, legend) of every panel, annotation, variable and rule."""
    for name, board in boards().items():
        for each in board["annotations"]["list"]:
            yield f"{name}: {each['name']}", each["expr"], each["titleFormat"] + each["textFormat"]
        for each in board["templating"]["list"]:
            if each["type"] == "query":
                yield (
                    f"{name}: ${each['name']}",
                    re.sub(r"label_values\((.*), (\w+)\)", r"sum by (\2) (\1)", each["definition"]),
                    "",
                )
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{name}: {panel['title']}", target["expr"], target["legendFormat"]
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"], str(rule.get("annotations", {}).get("summary", ""))


def series(expr: str) -> set[str]:
    """The names of all metrics and recorded series in an expression."""
    bare = _GROUPING.sub(" ", re.sub(r"\{[^}]*\}", "", _QUOTED.sub("", expr)))
    bare = re.sub(r"\[[^\]]*\]|\$\w+|offset \w+", " ", bare)
    return {name for name in _NAME.findall(bare) if name not in WORDS and not name.isdigit()}


def family_of(name: str) -> str:
    """`engine_dns_seconds` of `engine_dns_seconds_bucket`."""
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return stem if stem in EXPORTED and EXPORTED[stem].kind is Kind.HISTOGRAM else name


def labels_of(name: str) -> set[str]:
    """The labels that a series has; of a recorded one, those that its expression keeps."""
    if name in RECORDED:
        kept = set(filter(None, re.split(r"[,\s]+", ",".join(_GROUPING.findall(RECORDED[name])))))
        return (kept or set().union(*(labels_of(each) for each in series(RECORDED[name])))) - {"le"}
    family = family_of(name)
    labels = EXPORTED[family].labels if family in EXPORTED else PROMETHEUS_OWN.get(name, ())
    return {*labels, *TARGET} | ({"le"} if name.endswith("_bucket") else set())


def runbook_of(rule: dict) -> Path:
    """The page that an alert's link leads to, in the site of mkdocs.yml: a page is a file there."""
    found = re.fullmatch(r"\{\{ \$externalLabels\.docs }}/(runbooks/[\w-]+)\.html", rule["annotations"]["runbook_url"])
    assert found, rule["alert"]
    return ROOT / "docs" / f"{found[1]}.md"


def dashboard_of(rule: dict) -> str:
    """The dashboard that an alert's link leads to; that of providers is opened at the alert's own."""
    link = r"\{\{ \$externalLabels\.grafana }}/d/([\w-]+)(\?var-provider=\{\{ \$labels\.provider }})?"
    found = re.fullmatch(link, rule["annotations"]["dashboard_url"])
    assert found, rule["alert"]
    assert bool(found[2]) == (found[1] == "engine-provider"), rule["alert"]
    return found[1]


USED = {family_of(name) for _, expr, _ in expressions() for name in series(expr)}


def test_the_dashboards_are_those_of_their_sources() -> None:
    """What `python grafana/dashboards.py` writes is what is committed."""
    made = runpy.run_path(str(GRAFANA / "dashboards.py"))["dashboards"]()
    kept = {path.name: path.read_text("utf-8") for path in (GRAFANA / "dashboards").glob("*.json")}
    assert made == kept, "run `python grafana/dashboards.py` and commit what it writes"


def test_every_series_that_is_read_is_there() -> None:
    """No panel and no rule asks for a metric that nobody exports or records."""
    known = {*EXPORTED, *PROCESS, *RECORDED, *PROMETHEUS_OWN}
    wrong = {
        place: found - known
        for place, expr, _ in expressions()
        if (found := {family_of(n) for n in series(expr)}) - known
    }
    assert wrong == {}


def test_every_metric_is_read() -> None:
    """Each metric of the code answers somebody's question; each recorded series is used."""
    assert sorted({*EXPORTED, *PROCESS, *RECORDED} - USED - UNSEEN) == []
    assert UNSEEN.isdisjoint(USED)


def test_every_metric_of_the_documentation_is_there() -> None:
    """No page speaks of a metric that nobody exports or records; the reference has each that is exported."""
    pages = {path: path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")}
    pages[ROOT / "README.md"] = (ROOT / "README.md").read_text("utf-8")
    told = {path: set(re.findall(r"\b(?:\w+:)?engine_[a-z_]+(?::\w+)?", text)) for path, text in pages.items()}
    wrong = {
        path.name: found
        for path, names in told.items()
        if (found := {family_of(n) for n in names} - {*EXPORTED, *RECORDED})
    }
    assert wrong == {}
    assert told[ROOT / "docs/metrics.md"] == set(EXPORTED)


def test_labels_are_those_of_the_series() -> None:
    """Selectors, groupings and legends name labels that the series in question have."""
    for place, expr, legend in expressions():
        every = set().union(*(labels_of(name) for name in series(expr)))
        for name, inside in _SELECTOR.findall(expr):
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", _QUOTED.sub("", inside)))
            assert used <= labels_of(name), f"{place}: {name} has no {used - labels_of(name)}"
        groupings = set(filter(None, re.split(r"[,\s]+", ",".join(_GROUPING.findall(expr)))))
        assert groupings <= every, f"{place}: nothing there has {groupings - every}"
        assert set(_LEGEND.findall(legend)) <= every, f"{place}: {legend}"


def test_every_panel_can_be_read() -> None:
    """A title, a description, a unit, and a place that no other panel has; a curve with several series has a legend."""
    for name, board in boards().items():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken and place["x"] + place["w"] <= 24, f"{name}: {panel['title']}"
            taken |= cells
            if panel["type"] != "row":
                assert panel["title"] and panel["description"].endswith("."), f"{name}: {panel['title']}"
                assert panel["fieldConfig"]["defaults"]["unit"], f"{name}: {panel['title']}"
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))


def test_links_lead_to_dashboards() -> None:
    """A click on a panel, and an alert's `dashboard`, name one of ours."""
    there = {board["uid"] for board in boards().values()}
    text = "\n".join(path.read_text("utf-8") for path in (GRAFANA / "dashboards").glob("*.json"))
    assert set(re.findall(r"/d/([\w-]+)", text)) <= there
    led = {dashboard_of(rule) for rule in ALERTS}
    assert led <= there
    assert "engine-provider" in json.dumps(boards()["overview"]), "the overview leads to the provider"


def test_links_of_alerts_begin_where_the_operator_says() -> None:
    """Prometheus fills in their beginnings from what compose hands on, and tells Alertmanager the links only."""
    config = yaml.safe_load((GRAFANA / "prometheus/prometheus.yml").read_text("utf-8"))
    labels = config["global"]["external_labels"]
    handed = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["prometheus"]["environment"]
    assert {value.strip("${}") for value in labels.values()} == set(handed)
    (dropped,) = config["alerting"]["alert_relabel_configs"]
    assert dropped == {"action": "labeldrop", "regex": "|".join(labels)}
    assert "use_directory_urls: false" in (ROOT / "mkdocs.yml").read_text("utf-8"), "a page is a file, as links say"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_has_its_page(rule: dict) -> None:
    """The page is named after the alert, says what it means, what to look at and what to do; the index leads to it."""
    page = runbook_of(rule)
    text = page.read_text("utf-8")
    assert text.startswith(f"# {rule['alert']}\n")
    assert f"Severity: {rule['labels']['severity']}." in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## What it means", "## What to look at", "## What to do",
    ]  # fmt: skip
    row = f"| [{rule['alert']}](runbooks/{page.name}) | {rule['labels']['severity']} | "
    assert row in (ROOT / "docs" / "operate.md").read_text("utf-8")


def test_no_page_is_left_of_an_alert_that_went() -> None:
    """Each runbook belongs to an alert."""
    there = set((ROOT / "docs" / "runbooks").glob("*.md"))
    assert there == {runbook_of(rule) for rule in ALERTS}


def test_a_threshold_is_that_of_its_alert() -> None:
    """What a panel draws as `Alert: ...` is what the rule says: the red line is the rule's number."""
    numbers = {str(float(n)) for rule in ALERTS for n in re.findall(r"[>=]=? ?([\d.]+)", rule["expr"])}
    for name, board in boards().items():
        for panel in board["panels"]:
            steps = panel.get("fieldConfig", {}).get("defaults", {}).get("thresholds", {}).get("steps", [])
            reds = {str(float(step["value"])) for step in steps if step["color"] == "red" and step["value"] is not None}
            if "Alert:" in panel.get("description", ""):
                assert reds <= numbers, f"{name}: {panel['title']} draws {reds - numbers}"


def test_what_grafana_loads_is_what_compose_mounts() -> None:
    """Data source and dashboards are provisioned from the folders that the container has."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/engine.yaml").read_text("utf-8"))["providers"][0]
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text("utf-8"))["datasources"][0]
    mounts = dict(each.split(":")[:2] for each in compose["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (GRAFANA / "dashboards" / Path(home).name).exists()
