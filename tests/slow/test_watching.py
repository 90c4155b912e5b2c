"""Dashboards and alerts on real parts: Prometheus watches a monitor and two runs through trouble, and through its end.

All durations of rules and panels are divided by FASTER; `promtool test rules` proves the rules at their own speed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rigs.daemon import free_port, or_skip
from rigs.plane import PlaneRig
from rigs.prometheus import LINKS, ROOT, PrometheusRig, rules, sped_up

from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.reputation.registry import load_registry

pytestmark = pytest.mark.slow

LAB = SHIPPED.parent
ADDRESS = "127.30.20.1"
FASTER = 60
# Alerts that this scenario can't bring about; promtool holds them.
NOT_HERE = {"EngineJournalLag"}  # a database that is locked for 5 s ends the run
# What the run beside is there for: it stops as a whole, which is not what the first run's alerts are to tell of.
BESIDE = {"EngineDnsFailing", "EngineIdentityRefused"}
TARGET = "203.0.113.9"  # whom the lab's lists shall list
LISTED = "554 5.7.1 Service unavailable; Client host [{client}] blocked using zen.spamhaus.org"
SILENT = [f"silent-{n}.lab" for n in range(1000)]  # four times as many as are asked at once, and 8 s each
SPEC = {
    "personas": {
        "edge": {},
        "strange": {"replies": {"rcpt": "550 flurb gork wibble"}},
        "strict": {"replies": {"rcpt": "550 5.1.1 no such user"}},
        "turning": {"replies": {"rcpt": LISTED}},
    },
    "hosts": {"aspmx.google.lab": "edge", "mx.microsoft.lab": "strict"},
    "domains": {
        "gmail-like.lab": {"mx": ["aspmx.google.lab"], "mailboxes": [f"u{n:03}" for n in range(300)]},
        "strict.lab": {"mx": ["mx.microsoft.lab"]},
        "strange.lab": {"persona": "strange"},
        "grey.lab": {"persona": "greylisting", "mailboxes": ["ada"]},
        "normal.lab": {"mailboxes": ["ada", "grace"]},
        "sick.lab": {"faults": {"sick.lab": "servfail"}},
        "turn-{1..4}.lab": {"persona": "turning"},  # four organisations, each in a network of its own
        **{name: {"mx": ["mx.normal.lab"], "faults": {name: "silent"}} for name in SILENT},
    },
    "blocklists": {"dying.lab": {}, "refuser.lab": {}, "parked.lab": {}, "emptied.lab": {}},  # well, unlike the shipped
}
LISTS = ("bl.lab", "zen.lab", "uri.lab", "wildcard.lab", "white.lab", *SPEC["blocklists"])
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

ROWS_BESIDE = [*(f"ada@turn-{n}.lab" for n in range(1, 5)), *(f"ada@{name}" for name in SILENT)]
# Who is greylisted waits for longer than the test, so the run outlives its alerts.
POLICIES_BESIDE = {"default": {"retry": {"greylist": ["10m"], "tempfail": ["1s"], "give_up": "1h"}}}
# An engine whose identity's breaker opens for as much shorter as the alert waits.
HASTY = f"""
from engine.__main__ import main
from engine.core.identity_breaker import IdentityBreaker
opens = IdentityBreaker.__init__
opens.__defaults__ = tuple(each / {FASTER} for each in opens.__defaults__)
main()
"""


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

    def __init__(self, prometheus: PrometheusRig, beside: str) -> None:
        self._prometheus = prometheus
        self._beside = beside
        self.unseen = every_expression()
        self.fired: dict[str, dict[str, str]] = {}  # alert -> its annotations
        self.firing: set[str] = set()

    def look(self) -> None:
        for place, expr in list(self.unseen.items()):
            if self._prometheus.query(expr):
                del self.unseen[place]
        found = [alert for alert in self._prometheus.alerts() if alert["state"] == "firing" and self._counts(alert)]
        self.firing = {alert["labels"]["alertname"] for alert in found}
        self.fired |= {alert["labels"]["alertname"]: alert["annotations"] for alert in found}

    def _counts(self, alert: dict[str, Any]) -> bool:
        return alert["labels"].get("instance") != self._beside or alert["labels"]["alertname"] in BESIDE

    def until(self, what: Callable[[], bool], limit_s: float, why: str) -> None:
        """Look each half second until it holds."""
        ends = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < ends, f"{why}: firing {self.firing}, fired {set(self.fired)}"
            time.sleep(0.5)
            self.look()


@contextmanager
def running(
    command: list[object], folder: Path, says: Path, engine: Sequence[str] = ("-m", "engine")
) -> Iterator[subprocess.Popen[bytes]]:
    """`engine` with these words, until the context ends."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ENGINE_", "XDG_"))}
    words = [sys.executable, *engine, *map(str, command)]
    with says.open("ab") as said:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=said, stderr=said)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def job(
    lab: LabProcess, folder: Path, port: int, rows: Sequence[str], policies: Mapping[str, Mapping[str, Any]]
) -> list[object]:
    """`engine verify` over the rows, metrics at this port."""
    (folder / "policies").mkdir(parents=True)
    (folder / "list.txt").write_text("".join(f"{row}\n" for row in rows))
    for name, fields in policies.items():
        (folder / "policies" / f"{name}.yaml").write_text(yaml.safe_dump({"provider": name, **fields}))
    return [
        "verify", "list.txt", "-o", "out.csv", "--mode", "enhanced",
        "--consent", "TICKET-7", "--consent-by", "A. Owner", "--identity", LAB / "identity.yaml",
        "--policies", LAB / "policies", "--policies", "policies", "--dns", f"127.0.0.1:{lab.dns_port}",
        "--smtp-port", lab.smtp_port, "--allow-private", "--state", "state.db", "--metrics", f"{ADDRESS}:{port}",
    ]  # fmt: skip


def monitor(lab: LabProcess, plane: PlaneRig, folder: Path, port: int) -> list[object]:
    """`engine monitor` over the lab's lists, each asked every two seconds, with a mail relay that is not there."""
    settings = {
        "rbl": {"skip": list(load_registry(None, ()).lists)},  # the world's lists are not in the lab
        "monitor": {"targets": [TARGET]},
        "push": plane.settings,
        "alerts": {
            "email": {"host": "127.0.0.1", "port": 1, "tls": "none", "from": "a@probe.lab", "to": "b@probe.lab"},
            "digest": f"{datetime.now(UTC):%H:%M}",
        },
    }
    often = {"lists": {name: {"interval": "2s"} for name in yaml.safe_load((LAB / "lists.yaml").read_text())["lists"]}}
    (folder / "engine.yaml").write_text(yaml.safe_dump(settings))
    (folder / "lists.yaml").write_text(yaml.safe_dump(often))
    return [
        "monitor", "--config", "engine.yaml", "--identity", LAB / "identity.yaml", "--state", "state.db",
        "--lists", LAB / "lists.yaml", "--lists", "lists.yaml", "--dns", f"127.0.0.1:{lab.dns_port}",
        "--metrics", f"{ADDRESS}:{port}",
    ]  # fmt: skip


def order(folder: Path, *words: str) -> None:
    """An operator's order about the identity."""
    command = [
        sys.executable,
        "-m",
        "engine",
        "identity",
        *words,
        "--state",
        "state.db",
        "--by",
        "Ann",
        "--why",
        "test",
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)


def starve(process: subprocess.Popen[bytes]) -> None:
    """Keep the process from the processor for most of a second, twice over."""
    for _ in range(2):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)


def test_alerts_fire_and_resolve_and_every_panel_has_data(tmp_path: Path) -> None:
    """Refusals, a listing, an order, silence of lists, names and a control plane, and the end of each: all is told."""
    port, watched, worked, aside = free_port(), free_port(), free_port(), free_port()
    targets = {"engine": [f"{ADDRESS}:{watched}"], "engine-jobs": [f"{ADDRESS}:{worked}", f"{ADDRESS}:{aside}"]}
    rig = or_skip(lambda: PrometheusRig(ADDRESS, port, targets, FASTER))
    with closing(rig) as prometheus, LabProcess(SPEC, log=False) as lab, closing(PlaneRig()) as plane:
        watch = Watch(prometheus, f"{ADDRESS}:{aside}")
        watch.until(lambda: "EngineDown" in watch.firing, 30, "no monitor, and nobody says so")
        watching = monitor(lab, plane, tmp_path, watched)
        told, said = tmp_path / "monitor.txt", tmp_path / "job.txt"
        with running(job(lab, tmp_path, worked, ROWS, POLICIES), tmp_path, said) as process:
            with running(watching, tmp_path, told):
                valid = 'engine_probes_total{provider="google-like", category="valid"} > 4'
                watch.until(lambda: bool(prometheus.query(valid)), 40, f"it does not work: {said.read_text()[-2000:]}")
                watch.until(lambda: "EngineDown" not in watch.firing, 20, f"it is said to be down: {told.read_text()}")
                (tmp_path / "policies" / "wrong.yaml").write_text("recipients: many\n")
                process.send_signal(signal.SIGHUP)  # refused, and counted
                lab.set("edge", replies={"rcpt": LISTED})
                lab.set("bl.lab", listed=[TARGET])
                watch.until(lambda: "EngineListed" in watch.firing, 40, "listed, and nobody says so")
                lab.set("bl.lab", listed=[])
                watch.until(lambda: "EngineListed" not in watch.firing, 40, "off the list, and the alert stays")
                for zone in LISTS:
                    lab.set(zone, fault="servfail")
                silence_then_refusals(watch, lab, tmp_path / "beside", aside)
                blocked = {
                    "EngineRefused", "EngineLanesClosed", "EngineNoProgress", "EngineBudgetExhausted",
                    "EngineListUnusable", "EngineCheckTooOld", "EnginePushStalled",
                }  # fmt: skip
                watch.until(lambda: blocked <= watch.fired.keys(), 240, "refused, and not all is told")

                def starved() -> bool:
                    starve(process)
                    return "EngineHubLag" in watch.firing

                watch.until(starved, 90, "starved, and nobody notices")
                assert "EnginePushStalled" in watch.firing
                plane.there = True
            lab.reset()
            lab.set("wildcard.lab", always=[])
            with running(watching, tmp_path, told):  # started anew it looks at once at each list that it gave up
                mended = {
                    "EngineRefused", "EngineLanesClosed", "EngineNoProgress", "EngineHubLag", "EngineListUnusable",
                    "EngineCheckTooOld", "EnginePushStalled",
                }  # fmt: skip
                watch.until(lambda: not mended & watch.firing, 90, "it works again, and alerts stay")
                order(tmp_path, "quarantine", "lab")
                watch.until(lambda: "EngineIdentityQuarantined" in watch.firing, 20, "quarantined, and nobody says so")
                order(tmp_path, "enable", "lab")
                watch.until(lambda: "EngineIdentityQuarantined" not in watch.firing, 20, "enabled, and the alert stays")
                assert process.poll() is None, said.read_text()
                process.send_signal(signal.SIGTERM)
                process.wait(30)
                watch.until(lambda: not watch.firing, 70, "all is over, and alerts stay")
    assert watch.fired.keys() == {rule["alert"] for rule in rules() if "alert" in rule} - NOT_HERE
    for name, links in watch.fired.items():
        assert all(links.values()), name
        assert "<error" not in str(links) and "<no value>" not in str(links), (name, links)
        assert links["runbook_url"].startswith(f"{LINKS['DOCS_URL']}/runbooks/"), name
        assert links["dashboard_url"].startswith(f"{LINKS['GRAFANA_URL']}/d/engine-"), name
    assert watch.unseen.keys() == NOT_HERE, "without data, or with data and still on the list"
    numbers = [record["seq"] for record in plane.records]
    assert numbers == list(range(1, len(numbers) + 1)), "the control plane missed something, or has it in another order"
    seen = [record["status"] for record in plane.records if record["kind"] == "check" and record["ip"] == TARGET]
    assert "listed" in seen, "that was while it was away"


def silence_then_refusals(watch: Watch, lab: LabProcess, folder: Path, port: int) -> None:
    """A run beside: a thousand names get no answer, then four organisations refuse it, and at last only greylist it."""
    said = folder / "job.txt"
    with running(job(lab, folder, port, ROWS_BESIDE, POLICIES_BESIDE), folder, said, ("-c", HASTY)) as process:
        watch.until(lambda: "EngineDnsFailing" in watch.firing, 60, "names are not found, and nobody says so")
        watch.until(lambda: "EngineIdentityRefused" in watch.firing, 90, "so many refuse, and nobody says so")
        watch.until(lambda: "EngineDnsFailing" not in watch.firing, 40, "no name is asked for, and the alert stays")
        lab.set("turning", replies={"rcpt": "450 4.2.0 Greylisted, please try again later"})
        watch.until(lambda: "EngineIdentityRefused" not in watch.firing, 90, "they relent, and the alert stays")
        assert process.poll() is None, said.read_text()  # its end would have ended the alerts too
