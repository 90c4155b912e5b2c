"""Dashboards and alerts on real parts: Prometheus watches a monitor and a run through a block, a listing, recoveries.

All durations of rules and panels are divided by FASTER; `promtool test rules` proves the rules at their own speed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml
from rigs.daemon import free_port, or_skip
from rigs.prometheus import ROOT, RULES, PrometheusRig, program, rules, sped_up

from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

pytestmark = pytest.mark.slow

LAB = SHIPPED.parent
ADDRESS = "127.30.20.1"
FASTER = 60
# What has no data here, because there is no control plane. One that gets data has to leave this list.
WITHOUT_DATA = ("engine_push_",)
# Alerts that this scenario can't bring about; promtool holds them.
NOT_HERE = {
    "EngineJournalLag",  # a database that is locked for 5 s ends the run
    "EngineDnsFailing",  # names are asked once, before the first probe
}  # fmt: skip
TARGET = "203.0.113.9"  # whom the lab's lists shall list
LISTED = "554 5.7.1 Service unavailable; Client host [{client}] blocked using zen.spamhaus.org"
SPEC = {
    "personas": {
        "edge": {},
        "strange": {"replies": {"rcpt": "550 flurb gork wibble"}},
        "strict": {"replies": {"rcpt": "550 5.1.1 no such user"}},
    },
    "hosts": {"aspmx.google.lab": "edge", "mx.microsoft.lab": "strict"},
    "domains": {
        "gmail-like.lab": {"mx": ["aspmx.google.lab"], "mailboxes": [f"u{n:03}" for n in range(300)]},
        "strict.lab": {"mx": ["mx.microsoft.lab"]},
        "strange.lab": {"persona": "strange"},
        "grey.lab": {"persona": "greylisting", "mailboxes": ["ada"]},
        "normal.lab": {"mailboxes": ["ada", "grace"]},
        "sick.lab": {"faults": {"sick.lab": "servfail"}},
    },
}
LISTS = ("bl.lab", "zen.lab", "uri.lab", "wildcard.lab", "white.lab")
POLICIES = {
    # Two recipients a second, one of its unknown; refused, it is tried again each second or two.
    "google-like": {
        "tls": "opportunistic",
        "recipients": {"rate": "2/s..2/s", "per_session": 8, "per_transaction": 4},
        "retry": {"give_up": "1h"},
        "breaker": {"open": "1s", "max_open": "1s"},
    },
    # Four refusals in three minutes, and twice as many unknown recipients.
    "microsoft-like": {"refusals": {"per_session": 4, "rate": "4/3min..4/3min"}, "retry": {"give_up": "1h"}},
    "default": {"retry": {"tempfail": ["1s"], "give_up": "1h"}},
}
ROWS = [
    *(f"u{n:03}@gmail-like.lab" for n in range(110)), "nobody@gmail-like.lab",
    *(f"x{n}@strict.lab" for n in range(6)),
    *(f"s{n}@strange.lab" for n in range(12)),
    "ada@grey.lab", "ada@normal.lab", "grace@normal.lab", "nix@normal.lab", "ada@sick.lab", "ada@nowhere.lab",
    "no address",
]  # fmt: skip


def panel_expressions() -> dict[str, str]:
    """Where it stands -> expression, of every panel and annotation."""
    found = {}
    for file in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        told = json.loads(file.read_text("utf-8"))
        for each in told["annotations"]["list"]:
            found[f"{file.stem}: annotation {each['name']}"] = each["expr"]
        for panel in told["panels"]:
            for target in panel.get("targets", ()):
                found[f"{file.stem}: {panel['title']} {target['refId']}"] = target["expr"]
    return found


def every_expression() -> dict[str, str]:
    """Panels, annotations, rules: what Prometheus will be asked, at this test's speed."""
    ours = {f"{rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    chosen = {"$__rate_interval": "240s", "$provider": ".*", "$identity": ".*"}
    found = {}
    for place, expr in (panel_expressions() | ours).items():
        asked = expr
        for name, value in chosen.items():
            asked = asked.replace(name, value)
        found[place] = sped_up(asked, FASTER)
    return found


class Watch:
    """What Prometheus has shown so far: expressions that had data, alerts that fired and went."""

    def __init__(self, prometheus: PrometheusRig) -> None:
        self._prometheus = prometheus
        self.unseen = every_expression()
        self.fired: dict[str, dict[str, str]] = {}  # alert -> its annotations
        self.firing: set[str] = set()

    def look(self) -> None:
        for place, expr in list(self.unseen.items()):
            if self._prometheus.query(expr):
                del self.unseen[place]
        found = [alert for alert in self._prometheus.alerts() if alert["state"] == "firing"]
        self.firing = {alert["labels"]["alertname"] for alert in found}
        self.fired |= {alert["labels"]["alertname"]: alert["annotations"] for alert in found}

    def until(self, what: Callable[[], bool], limit_s: float, why: str) -> None:
        """Look each half second until it holds."""
        ends = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < ends, f"{why}: firing {self.firing}, fired {set(self.fired)}"
            time.sleep(0.5)
            self.look()


@contextmanager
def engine(lab: LabProcess, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`engine verify` over ROWS, metrics at this port."""
    (folder / "list.txt").write_text("".join(f"{row}\n" for row in ROWS))
    (folder / "policies").mkdir()
    for name, fields in POLICIES.items():
        (folder / "policies" / f"{name}.yaml").write_text(yaml.safe_dump({"provider": name, **fields}))
    command = [
        sys.executable, "-m", "engine", "verify", "list.txt", "-o", "out.csv", "--mode", "enhanced",
        "--consent", "TICKET-7", "--consent-by", "A. Owner", "--identity", LAB / "identity.yaml",
        "--policies", LAB / "policies", "--policies", "policies", "--dns", f"127.0.0.1:{lab.dns_port}",
        "--smtp-port", lab.smtp_port, "--allow-private", "--state", "state.db", "--metrics", f"{ADDRESS}:{port}",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ENGINE_", "XDG_"))}
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, stdout=said, stderr=said)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def starve(process: subprocess.Popen[bytes]) -> None:
    """Keep the process from the processor for most of a second, twice over."""
    for _ in range(2):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)


def test_alerts_fire_and_resolve_and_every_panel_has_data(tmp_path: Path) -> None:
    """A block closes a lane and a recovery opens it; Prometheus tells of both, and of all else that is drawn."""
    port, target = free_port(), free_port()
    rig = or_skip(lambda: PrometheusRig(ADDRESS, port, f"{ADDRESS}:{target}", FASTER))
    with closing(rig) as prometheus, LabProcess(SPEC, log=False) as lab:
        watch = Watch(prometheus)
        watch.until(lambda: "EngineDown" in watch.firing, 30, "no engine, and nobody says so")
        with engine(lab, tmp_path, target) as process:
            said = tmp_path / "said.txt"
            valid = 'engine_probes_total{provider="google-like", category="valid"} > 4'
            watch.until(lambda: bool(prometheus.query(valid)), 40, f"it does not work: {said.read_text()[-2000:]}")
            watch.until(lambda: "EngineDown" not in watch.firing, 20, "it works, and is said to be down")
            lab.set("edge", replies={"rcpt": LISTED})
            blocked = {"EngineRefused", "EngineLanesClosed", "EngineNoProgress", "EngineBudgetExhausted"}
            watch.until(lambda: blocked <= watch.fired.keys(), 240, "refused, and not all is told")

            def starved() -> bool:
                starve(process)
                return "EngineHubLag" in watch.firing

            watch.until(starved, 90, "starved, and nobody notices")
            lab.reset()
            mended = {"EngineRefused", "EngineLanesClosed", "EngineNoProgress", "EngineHubLag"}
            watch.until(lambda: not mended & watch.firing, 90, "it works again, and alerts stay")
            assert process.poll() is None, said.read_text()
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert watch.fired.keys() == alerts - NOT_HERE
    for name, told in watch.fired.items():
        assert all(told.values()), name
        assert "<error" not in str(told) and "<no value>" not in str(told), (name, told)
    excused = {place for place, expr in every_expression().items() if any(name in expr for name in WITHOUT_DATA)}
    excused |= {place for place in every_expression() if place in NOT_HERE or place.endswith("annotation Identity")}
    assert sorted(watch.unseen.keys() - excused) == []
    with_data = {place for place in excused - watch.unseen.keys() if "or vector(0)" not in every_expression()[place]}
    assert sorted(with_data) == [], "these have data now: take them off the list"


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
