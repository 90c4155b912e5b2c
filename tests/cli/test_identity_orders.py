"""Laws of `engine identity drain|disable|quarantine|enable|status` and `check`: each says what holds now, and why."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.cli.main import cli
from engine.store.lock import holders
from engine.store.state import Grant, State
from engine.store.writer import Writer

WHY = "listed, ticket 4711"
NOBODY = "No engine is at work here; the next one is bound by what is in force when it starts.\n"
NODE = """
name: node-1
helo_name: probe.example.net
mail_from_address: probe@example.net
public_address: 203.0.113.7
"""


@pytest.fixture(autouse=True)
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account whose environment names one identity, and that has never run the engine."""
    for name in [name for name in os.environ if name.startswith(("ENGINE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ENGINE_STATE", str(tmp_path / "state" / "state.db"))
    (tmp_path / "node.yaml").write_text(NODE)
    monkeypatch.setenv("ENGINE_IDENTITY", str(tmp_path / "node.yaml"))


def engine(*words: str) -> Result:
    return CliRunner().invoke(cli, ["identity", *words])


def standing() -> list[dict[str, object]]:
    return [json.loads(line) for line in engine("status", "--json").output.splitlines()]


# --- orders


def test_an_order_is_placed_shown_and_lifted() -> None:
    """By name or address; each step says what holds now."""
    assert engine("status").output == "node-1 (203.0.113.7)\n  status  enabled\n"
    placed = engine("quarantine", "203.0.113.7", "--by", "Ann", "--why", WHY, "--until", "2030-01-02T03:04:05Z")
    assert placed.output == f"identity order 1: 203.0.113.7 is quarantined, until 2030-01-02T03:04:05Z.\n{NOBODY}"
    drained = engine("drain", "node-1", "--by", "Ben", "--why", "kernel update").output
    assert drained.startswith("identity order 2: node-1 is drained, until `engine identity enable node-1` lifts it.\n")
    table = engine("status").output.splitlines()
    assert table[1] == "  status   quarantined (its file says enabled)"
    assert table[2].startswith("  order 1  quarantined by Ann since 2")
    assert table[2].endswith(f", until 2030-01-02T03:04:05Z: {WHY}")
    assert table[3].endswith(", until it is lifted: kernel update")
    lifted = engine("enable", "node-1", "--why", "settled").output
    assert [line.split(" lifted: ")[0] for line in lifted.splitlines()[:2]] == ["identity order 1", "identity order 2"]
    assert lifted.endswith(NOBODY)
    assert standing()[0]["status"] == "enabled"
    assert engine("enable", "node-1", "--why", "settled").output == "No order about node-1 is in force.\n"


def test_an_identity_that_no_file_names_is_held_and_shown_too() -> None:
    """A fleet's state may know others; a slip of the pen is told."""
    told = engine("disable", "nod-1", "--why", WHY).output
    assert "No identity of the settings is named 'nod-1': there is node-1 (203.0.113.7)." in told
    assert [(each["identity"], each["status"], each["configured"]) for each in standing()] == [
        ("node-1", "enabled", "enabled"), ("nod-1", "disabled", None),
    ]  # fmt: skip
    assert "identity order 1 lifted" in engine("enable", "nod-1", "--why", "a slip").output
    assert len(standing()) == 1


def test_an_order_needs_its_reason_and_a_moment_to_come() -> None:
    """Wrong use is one sentence and exit 2, and leaves no order behind."""
    for words in (("drain", "node-1"), ("drain", " ", "--why", WHY), ("drain", "node-1", "--why", WHY, "--until", "x")):
        found = engine(*words)
        assert found.exit_code == 2
        assert len(found.stderr.splitlines()) == 1
    assert standing()[0]["orders"] == []


def test_what_the_state_knows_is_shown() -> None:
    """Who refuses it, for how long it is closed, what lists it, what it has spent; a missing table is no fault."""
    now = time.time()
    answers = [["a.lab", "a", "1", True, ""], ["b.lab", "b", "2", False, ""]]
    with Writer() as writer:
        kept = State(writer, Path(os.environ["ENGINE_STATE"]))
        kept.save_breaker("203.0.113.7", {"answers": answers, "at": now, "until": now + 99})
        kept.grant([Grant("203.0.113.7 identity", "x", now - 60, 12)]).wait()
    assert "  breaker  closed; 1 of the last 2 sites refuse it" in engine("status").output
    assert standing()[0]["spent"] == {"refusals": 12}
    with closing(sqlite3.connect(os.environ["ENGINE_STATE"])) as connection:
        memory = {"breaker": {"left": 900.0, "next": 1800.0, "cause": "ip_blocklisted"}, "at": now - 300}
        connection.execute("UPDATE breakers SET state = ?", (json.dumps(memory),))
        connection.execute("DROP TABLE IF EXISTS engine_server_blacklist_events")
        connection.execute(
            "CREATE TABLE engine_server_blacklist_events "
            "(ip, rbl, sublist, severity, first_seen, confirmed_at, closed_at)"
        )
        rows = [("203.0.113.7", "zen", "sbl", 4, 0.0, 1.0, None), ("203.0.113.7", "old", "x", 4, 0.0, 1.0, 2.0),
                ("203.0.113.8", "zen", "sbl", 4, 0.0, 1.0, None)]  # fmt: skip
        connection.executemany("INSERT INTO engine_server_blacklist_events VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    told = engine("status").output
    assert "  breaker  open for 10 min more after ip_blocklisted" in told
    assert told.count("  listed   zen/sbl, critical, since 1970-01-01T00:00:00Z") == 1
    assert "old" not in told


def test_a_running_engine_says_that_it_obeys(tmp_path: Path) -> None:
    """`disable` waits for it, and tells which job; the run then ends by itself."""
    listed, slow = tmp_path / "list.txt", tmp_path / "slow"
    listed.write_text("".join(f"u{number:04}@normal.lab\n" for number in range(60)))
    slow.mkdir()
    (slow / "default.yaml").write_text("provider: default\nrecipients: {rate: 3/s, per_transaction: 1}\n")
    command = [sys.executable, "-m", "engine", "verify", str(listed), "-o", str(tmp_path / "out.csv"), "--mode",
               "enhanced", "--lab", "--policies", str(slow), "--state", os.environ["ENGINE_STATE"]]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        ends = time.monotonic() + 15
        while not holders(tmp_path / "state"):
            assert time.monotonic() < ends
            assert process.poll() is None
            time.sleep(0.05)
        found = engine("disable", "127.0.0.1", "--why", WHY)
        out, err = process.communicate(timeout=20)
    assert "Obeyed by the job " in found.output, out + err
    assert "under 127.0.0.1; open sessions: " in found.output
    assert process.returncode == 0, out + err
    assert "identity_paused" in (tmp_path / "out.csv").read_text()
    assert '"event": "identity_held"' in err
    refused = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode == 2
    assert "The identity lab is disabled by " in refused.stderr


# --- check


def test_the_labs_identity_passes_every_check() -> None:
    """An aligned table, and exit 0."""
    found = engine("check", "--lab")
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert lines[0] == "lab (127.0.0.1), probe@probe.lab"
    assert all(line.startswith("  pass  ") for line in lines[1:-1])
    assert lines[-1].endswith("0 failed, 0 unknown. DKIM is not checked: the identity names no dkim_selectors.")


@pytest.mark.parametrize(("port", "exit_code", "outcome"), [("1", 3, "unknown"), (None, 1, "fail")])
def test_the_exit_code_tells_failed_from_unknown(lab_dns: str, port: str | None, exit_code: int, outcome: str) -> None:
    """1 where something failed, 3 where it could only not be looked up."""
    server = f"127.0.0.1:{port}" if port else lab_dns
    found = engine("check", "--helo", "absent.lab", "--mail-from", "probe@absent.lab", "--public-ip", "127.0.0.9",
                   "--allow-private", "--json", "--dns", server)  # fmt: skip
    assert found.exit_code == exit_code, found.output
    rows = {row["check"]: row for row in map(json.loads, found.output.splitlines())}
    assert rows["dmarc"]["outcome"] == rows["spf_helo"]["outcome"] == outcome
    assert rows["spf_helo"]["seen"]["result"] == ("none" if outcome == "fail" else "temperror")


@pytest.fixture
def lab_dns():
    """A name server that knows the lab."""
    from engine.lab.process import LabProcess

    with LabProcess(log=False) as lab:
        host, port = lab.dns
        yield f"{host}:{port}"


def test_nobody_to_look_at_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to name one."""
    monkeypatch.delenv("ENGINE_IDENTITY")
    found = engine("check")
    assert found.exit_code == 2
    assert "There is no identity to look at: give --identity FILE" in found.stderr
    assert engine("status").output.startswith("No identity is set up here")
