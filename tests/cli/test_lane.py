"""Laws of `engine lane`: who narrows a provider is told what holds, and a running engine obeys within seconds."""

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
from engine.store.lock import IdentityLock, holders

WHY = "complaint, ticket 4711"
NOBODY = "No engine is at work here; the next one is bound by what is in force when it starts.\n"


@pytest.fixture(autouse=True)
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account that has never seen the engine."""
    for name in [name for name in os.environ if name.startswith(("ENGINE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ENGINE_STATE", str(tmp_path / "state" / "state.db"))


def engine(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def limits() -> list[dict[str, object]]:
    return [json.loads(line) for line in engine("lane", "limits", "--json").output.splitlines()]


def test_a_limit_is_placed_listed_and_lifted() -> None:
    """By a policy's name, alias or mail host; each step says what holds now."""
    assert engine("lane", "limits").output == "No limit is in force: the policies' own numbers hold.\n"
    placed = engine("lane", "limit", "google", "--rate", "6/min", "--concurrency", "1", "--by", "Ann", "--why", WHY,
                    "--until", "2030-01-02T03:04:05Z")  # fmt: skip
    assert placed.output == (
        "lane limit 1: gmail at most 6/min and 1 session at once, until 2030-01-02T03:04:05Z, under every identity.\n"
        + NOBODY
    )
    engine("lane", "limit", "mx.zoho.com", "--concurrency", "1", "--identity", "node-1", "--by", "Ben", "--why", "x")
    table = engine("lane", "limits").output.splitlines()
    assert table[0].split() == ["limit", "provider", "identity", "rate", "sessions", "since", "until", "by", "why"]
    assert table[1].split()[:5] == ["1", "gmail", "all", "6/min", "1"]
    assert table[1].endswith(f"2030-01-02T03:04:05Z  Ann  {WHY}")
    assert table[2].split()[:5] == ["2", "zoho", "node-1", "-", "1"]
    assert len({row.index(each) for row, each in zip(table, ("by", "Ann", "Ben"), strict=True)}) == 1
    lifted = engine("lane", "reset", "gmail")
    assert lifted.output == f"lane limit 1 lifted: gmail at most 6/min and 1 session at once.\n{NOBODY}"
    assert engine("lane", "reset", "gmail").output == "No limit of gmail is in force.\n"
    assert engine("lane", "reset", "zoho", "--identity", "node-2").output == (
        "No limit of zoho is in force for node-2.\n"
    )
    assert [row["limit"] for row in limits()] == [2]


def test_a_duration_counts_from_now_and_by_is_the_user() -> None:
    """`--until 2h` is two hours from now; who is not named is the user at the keyboard."""
    before = time.time()
    engine("lane", "limit", "gmail", "--rate", "6/min", "--until", "2h", "--why", WHY)
    (row,) = limits()
    with closing(sqlite3.connect(os.environ["ENGINE_STATE"])) as connection:
        ((until, by),) = connection.execute("SELECT until, by FROM orders").fetchall()
    assert before + 7200 <= until <= time.time() + 7200
    assert by == row["by"] != ""
    assert (row["rate"], row["concurrency"], row["identity"], row["obeyed"]) == ("6/min", None, "", None)


def test_what_is_not_narrower_is_said_to_change_nothing() -> None:
    """It is kept all the same: the policy may come to allow more."""
    told = engine("lane", "limit", "gmail", "--rate", "1000/s", "--why", WHY).output
    assert "It changes nothing today: the policy of gmail allows no more than that." in told
    assert len(limits()) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("gmial", "--rate", "6/min"), "No policy is named 'gmial' or claims it as a mail host"),
        (("gmail",), "Nothing to narrow: give --rate RATE, --concurrency N, or both"),
        (("gmail", "--rate", "6"), "--rate: '6' is not a rate (expected N/s"),
        (("gmail", "--rate", "6/min", "--identity", " "), "An identity is named by its name or its public address"),
        (("gmail", "--rate", "6/min", "--why", " "), "--why is empty: say for what reason"),
        (("gmail", "--rate", "6/min", "--until", "soon"), "--until soon: expected a duration"),
        (("gmail", "--rate", "6/min", "--until", "2020-01-01T00:00:00Z"), "that is over already"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_2(words: tuple[str, ...], problem: str) -> None:
    """And no order is left behind."""
    found = engine("lane", "limit", "--why", WHY, *words)
    assert found.exit_code == 2
    assert problem in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert limits() == []


def test_a_name_that_no_identity_has_is_questioned(tmp_path: Path) -> None:
    """It is kept, since the identity may come from a file yet; but a slip of the pen is seen at once."""
    settings = tmp_path / "engine.yaml"
    settings.write_text(
        "identity: {name: node-1, helo_name: mx.example.com, mail_from_address: a@example.com,"
        " identity_domain: example.com, public_address: '2001:db8::7'}\n"
    )

    def placed(name: str) -> str:
        words = ("gmail", "--rate", "6/min", "--identity", name, "--why", WHY, "--config", str(settings))
        return engine("lane", "limit", *words).output

    doubt = "No identity of the settings is named 'node-l': there is node-1 (2001:db8::7)."
    assert f"{NOBODY}{doubt} If one of these was meant: engine lane reset gmail --identity node-l\n" in placed("node-l")
    for right in ("node-1", "2001:DB8::7"):
        assert placed(right).endswith(NOBODY)
    assert [row["identity"] for row in limits()] == ["node-l", "node-1", "2001:db8::7"]


def test_a_limit_needs_its_reason() -> None:
    """Who reads the audit later wants to know why."""
    found = engine("lane", "limit", "gmail", "--rate", "6/min")
    assert (found.exit_code, limits()) == (2, [])
    assert "--why" in found.stderr


def test_explain_shows_the_limits_in_force_and_what_follows() -> None:
    """Values name the limit as their origin, the ceilings shrink; a limit for one identity is listed only."""
    engine("lane", "limit", "gmail", "--rate", "3/min", "--by", "Ann", "--why", WHY)
    engine("lane", "limit", "gmail", "--concurrency", "1", "--identity", "node-1", "--by", "Ben", "--why", "x")
    engine("lane", "limit", "zoho", "--concurrency", "1", "--by", "Ben", "--why", "x")
    text = engine("policy", "explain", "ann@gmail.com", "--offline", "--addresses", "18000").output
    assert "Limits in force" in text
    assert f"Ann  {WHY}" in text
    assert "zoho" not in text
    assert "hours for 18,000 addresses" in text
    told = json.loads(
        engine("policy", "explain", "ann@gmail.com", "--offline", "--json", "--addresses", "18000").output
    )
    assert [row["limit"] for row in told["limits"]] == [1, 2]
    assert told["values"]["recipients.rate"] == {"value": "3/min", "from": "lane limit 1"}
    assert told["values"]["sessions.concurrency"]["from"] == "gmail.yaml"
    assert told["ceilings"]["start"]["binding"] == "recipients.rate"
    assert told["ceilings"]["start"]["hours"] == {"18000": 100.0}


def test_explain_goes_on_without_a_readable_state(tmp_path: Path) -> None:
    """It says so, and explains the policies."""
    (tmp_path / "other").write_text("no database")
    found = engine("policy", "explain", "gmail.com", "--offline", "--state", str(tmp_path / "other"))
    assert found.exit_code == 0
    assert "limits of lanes are not shown" in found.stderr
    assert "falls under gmail" in found.stdout


def test_only_the_living_hold_an_identity(tmp_path: Path) -> None:
    """A lock file of somebody who died names nobody."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "identity-203.0.113.9.lock").write_text(json.dumps({"pid": dead.pid, "job": "old", "since": 0.0}))
    assert holders(tmp_path) == []
    with IdentityLock(tmp_path, "203.0.113.7", job="new", since=1.0):
        (holder,) = holders(tmp_path)
    assert (holder.address, holder.pid, holder.job) == ("203.0.113.7", os.getpid(), "new")
    assert holders(tmp_path) == []


def test_a_running_engine_says_that_it_obeys(tmp_path: Path) -> None:
    """`lane limit` waits for it, and tells under which identity and job."""
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
        found = engine("lane", "limit", "default", "--rate", "1/min", "--why", WHY)
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert "Obeyed by the job " in found.output, out + err
    assert "under 127.0.0.1; lanes at work: " in found.output
    assert limits()[0]["obeyed"] is not None
