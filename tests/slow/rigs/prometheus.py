"""Prometheus on loopback, with the shipped rules at any speed.

1. Its configuration is the shipped rule files with every duration divided by `faster`, the shipped beginnings of links,
   filled in from its environment (LINKS), and a scrape target for each job.
2. It is asked over its HTTP interface, as Grafana asks it.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rigs.daemon import CACHE, AbsentError, Daemon, own_folder, unpacked

ROOT = CACHE.parents[1]
RULES = ROOT / "grafana" / "prometheus"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LINKS = {"DOCS_URL": "https://docs.example.org", "GRAFANA_URL": "https://grafana.example.org"}
_AGE = re.compile(r"(?<=_seconds\) > )(\d+)")  # how long ago: a duration that is written as a number
_DURATION = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])|(?<=offset )(\d+)([smhd])\b")


def program(name: str) -> Path:
    """`prometheus`, `promtool` or `amtool`; raises AbsentError."""
    found = unpacked("alertmanager" if name == "amtool" else "prometheus") / "usr" / "bin" / name
    if not found.exists():
        raise AbsentError(f"{name} is not here: run .ci/fetch-mtas as root")
    return found


def shorter(text: str, faster: float) -> str:
    """A duration (`15m`) divided."""
    return f"{max(1, round(int(text[:-1]) * _UNITS[text[-1]] * 1000 / faster))}ms"


def sped_up(expr: str, faster: float) -> str:
    """An expression with its windows, offsets and ages divided."""
    aged = _AGE.sub(lambda match: f"{int(match[1]) / faster:g}", expr)
    return _DURATION.sub(lambda match: shorter((match[1] or match[3]) + (match[2] or match[4]), faster), aged)


def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule that is shipped."""
    files = (RULES / "recording.yml", RULES / "alerts.yml")
    groups = [group for file in files for group in yaml.safe_load(file.read_text("utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"]]


class PrometheusRig:
    """Prometheus that scrapes `targets` (job -> HOST:PORT of each) each second, and evaluates the rules as often."""

    def __init__(self, address: str, port: int, targets: Mapping[str, Sequence[str]], faster: float) -> None:
        self._url = f"http://{address}:{port}"
        self._daemon = Daemon("prometheus", own_folder("prometheus"))
        folder = self._daemon.folder
        fast = [
            rule
            | {"expr": sped_up(rule["expr"], faster)}
            | ({"for": shorter(rule["for"], faster)} if "for" in rule else {})
            for rule in rules()
        ]
        groups = {"groups": [{"name": "engine", "rules": fast}]}
        (folder / "rules.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
        shipped = yaml.safe_load((RULES / "prometheus.yml").read_text("utf-8"))["global"]["external_labels"]
        each_second = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = {
            "global": each_second | {"external_labels": shipped},
            "rule_files": [str(folder / "rules.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(each)}]} for job, each in targets.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._daemon.start(
            [
                program("prometheus"), f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}:{port}",
                "--query.lookback-delta=5s", "--log.level=warn", "--enable-feature=expand-external-labels",
            ],
            [(address, port)], env=LINKS,
        )  # fmt: skip

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series that an expression gives now; raises ValueError with Prometheus's words where it is wrong."""
        found: list[dict[str, Any]] = self._get("query", query=expr)["result"]
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Pending and firing alerts."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def _get(self, what: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(f"{parameters}: {error.read().decode()}") from None

    @property
    def log(self) -> str:
        return self._daemon.log

    def close(self) -> None:
        self._daemon.close()
