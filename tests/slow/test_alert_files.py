"""What Prometheus and Alertmanager are given: their own programs take it, and rules hold at their own speed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from rigs.daemon import or_skip
from rigs.prometheus import ROOT, RULES, program, rules

pytestmark = pytest.mark.slow

ALERTMANAGER = ROOT / "grafana/alertmanager/alertmanager.yml"


def test_rules_hold_at_their_own_speed() -> None:
    """`promtool` evaluates each alert over hours of made-up series."""
    done = subprocess.run(
        [or_skip(lambda: program("promtool")), "test", "rules", RULES / "tests.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_to_fire_and_to_keep_quiet() -> None:
    """tests.yml expects each alert at some moment, and none at another of the same group."""
    text = (RULES / "tests.yml").read_text("utf-8")
    for group in yaml.safe_load(text)["tests"]:
        name = group["name"].split()[0]
        expected = [str(case["exp_samples"]) for case in group["promql_expr_test"]]
        assert any(f'alertname="{name}"' in each for each in expected), name
        assert "[]" in expected, name
    named = {group["name"].split()[0] for group in yaml.safe_load(text)["tests"]}
    assert named == {rule["alert"] for rule in rules() if "alert" in rule}


@pytest.mark.parametrize(
    ("tool", "arguments", "file"),
    [
        ("promtool", ("check", "config"), "prometheus/prometheus.yml"),
        ("amtool", ("check-config",), "alertmanager/alertmanager.yml"),
    ],
)
def test_configurations_load(tool: str, arguments: tuple[str, ...], file: str) -> None:
    """Prometheus and Alertmanager take what compose.yaml mounts."""
    done = subprocess.run(
        [or_skip(lambda: program(tool)), *arguments, ROOT / "grafana" / file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "chat-and-mail"), ("warning", "chat"), ("info", "mail")]
)
def test_an_alert_reaches_who_is_meant(severity: str, receiver: str) -> None:
    """By Alertmanager's own reading of its routes: critical to both channels, warnings to Slack, notes by mail."""
    assert amtool("config", "routes", "test", f"--config.file={ALERTMANAGER}", f"severity={severity}") == receiver


def test_slack_is_told_where_to_click(tmp_path: Path) -> None:
    """Summary, description and both links of each alert, as Alertmanager renders what the rules annotate."""
    for rule in (rule for rule in rules() if "alert" in rule):
        told = {name: f"https://{name}.example.org/" for name in rule["annotations"]}
        data = {"status": "firing", "alerts": [{"labels": {"alertname": rule["alert"]}, "annotations": told}]}
        (tmp_path / "data.json").write_text(json.dumps(data))
        (slack,) = yaml.safe_load(ALERTMANAGER.read_text("utf-8"))["receivers"][0]["slack_configs"]
        shown = amtool(
            "template", "render", "--template.glob=/dev/null", f"--template.data={tmp_path}/data.json",
            f"--template.text={slack['text']}",
        )  # fmt: skip
        assert shown.splitlines() == [
            told["summary"], told["description"],
            f"<{told['runbook_url']}|Runbook>, <{told['dashboard_url']}|dashboard>",
        ]  # fmt: skip


def amtool(*words: str) -> str:
    """What it prints."""
    command = [or_skip(lambda: program("amtool")), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
