"""Laws of `engine policy simulate`: it says how long a list takes, and asks no mail server to know it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.cli.main import cli
from engine.store.state import Fact, State
from engine.store.writer import Writer

LIST = [
    *(f"g{n}@gmail.com" for n in range(400)), *(f"o{n}@outlook.com" for n in range(30)),
    *(f"y{n}@yahoo.com" for n in range(20)), *(f"i{n}@icloud.com" for n in range(50)),
    *(f"x{n}@unheard-{n}.com" for n in range(10)), "g0@gmail.com", "no address",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No state and no settings of whoever runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("ENGINE_STATE", raising=False)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A list with two large providers, two that aren't asked, and small domains."""
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{row}\n" for row in LIST))
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["policy", "simulate", *map(str, words)])


def told(*words: object) -> dict:
    found = run(*words, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_it_says_what_it_assumed_and_what_binds(people: Path) -> None:
    """Hours at half, once and twice the share, for each provider and the list, and the limit."""
    found = run(people, "--offline")
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert "no mail server was asked" in lines[0]
    for words in ("8 % of the addresses refused", "3 % failing", "150 ms"):
        assert words in lines[0]
    table = {line.split()[0]: line for line in lines if line}
    assert "at 4 % refused  at 8 % refused  at 16 % refused" in table["provider"]
    assert table["gmail"].split()[1:3] == ["400", "1"]
    assert table["gmail"].split()[-1] in ("refusals.rate", "recipients.rate", "sessions.rate", "retry")
    assert table["the"].startswith("the list")
    assert "510 addresses at 14 domains; 1 rows are no address, 1 came before." in lines


def test_who_ends_without_a_session_is_told_and_takes_no_time(people: Path) -> None:
    """Uninformative providers, missing pool tags, and domains that are not known without DNS."""
    found = told(people, "--offline")
    assert {(each["policy"], each["reason"], each["addresses"]) for each in found["not_asked"]} == {
        ("outlook", "provider_not_probed", 30),
        ("yahoo", "provider_unverifiable", 20),
    }
    assert found["unresolved"] == {"addresses": 10, "domains": 10}
    assert {row["provider"]: row["addresses"] for row in found["providers"]} == {"gmail": 400, "icloud": 50}
    tagged = told(people, "--offline", "--pool", "outlook-safe")
    assert "outlook" in {row["provider"] for row in tagged["providers"]}


def test_stored_facts_stand_in_for_dns(people: Path, tmp_path: Path) -> None:
    """A domain whose site is known is simulated there; one that is known as a catch-all needs no session."""
    state = tmp_path / "known.db"
    now = time.time()
    with Writer() as writer:
        State(writer, state).put_facts(
            [
                Fact("unheard-1.com", "mx.small.example", "refuses", "control", now, now + 1000),
                Fact("unheard-2.com", "a.mail.protection.outlook.com", "refuses", "control", now, now + 1000),
                Fact("unheard-3.com", "[192.0.2.7]", "accepts", "control", now, now + 1000),
                Fact("unheard-4.com", "mx.small.example", "refuses", "control", now - 1000, now - 1),
            ]
        ).wait()
    found = told(people, "--offline", "--state", state)
    providers = {row["provider"]: row["addresses"] for row in found["providers"]}
    assert (providers["default"], providers["microsoft365"]) == (1, 1)
    assert ("default", "catch_all", 1) in {(r["policy"], r["reason"], r["addresses"]) for r in found["not_asked"]}
    assert found["unresolved"]["domains"] == 7


def test_shares_change_the_hours_and_the_same_list_is_told_the_same(people: Path) -> None:
    """More refusals take longer; asking twice changes nothing."""
    low, high = (told(people, "--offline", "--refused", share, "--rtt", "80ms") for share in ("1%", "0.3"))
    assert high["hours"]["1"] > 2 * low["hours"]["1"]
    assert (low["assumed"]["rtt_s"], high["assumed"]["refused"]) == (0.08, 0.3)
    assert high == told(people, "--offline", "--refused", "30 %", "--rtt", "80ms")
    assert list(high["hours"]) == ["0.5", "1", "2"]


def test_policies_of_ones_own_are_simulated(people: Path, tmp_path: Path) -> None:
    """A tighter file makes the list longer, and its limit is the one that binds."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "gmail.yaml").write_text("provider: gmail\nrecipients: {rate: 1/min, per_transaction: 1}\n")
    (row,) = (r for r in told(people, "--offline", "--policies", own)["providers"] if r["provider"] == "gmail")
    assert row["binding"] == "recipients.rate"
    assert row["hours"]["1"] == pytest.approx(400 / 60, rel=0.2)


def test_a_column_can_be_named(tmp_path: Path) -> None:
    """As for `verify`."""
    path = tmp_path / "list.csv"
    path.write_text("work,home\nann@gmail.com,bob@icloud.com\n")
    assert [row["provider"] for row in told(path, "--offline", "--column", "home")["providers"]] == ["icloud"]


def test_mail_hosts_come_from_dns(tmp_path: Path) -> None:
    """Without --offline the name server is asked, and only it."""
    from engine.lab.process import LabProcess

    spec = {"hosts": {"mx.shared.lab": "normal"}, "domains": {f"d{n}.lab": {"mx": ["mx.shared.lab"]} for n in range(3)}}
    path = tmp_path / "list.txt"
    path.write_text("a@d0.lab\nb@d1.lab\nc@d2.lab\nd@nowhere.lab\n")
    with LabProcess(spec) as lab:
        found = told(path, "--dns", f"127.0.0.1:{lab.dns[1]}")
        assert lab.log() == []
    (row,) = found["providers"]
    assert (row["provider"], row["addresses"], row["sites"]) == ("default", 3, 1)
    assert [(each["reason"], each["addresses"]) for each in found["not_asked"]] == [("domain_not_found", 1)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--refused", "108%"], "--refused 108%: expected a share"),
        (["--refused", "80%", "--tempfail", "30%"], "together they are more"),
        (["--rtt", "150"], "--rtt: '150' is not a duration"),
        (["--state", "missing.db"], "missing.db"),
        (["--column", "nobody"], "--column"),
    ],
)
def test_wrong_use_is_one_sentence(people: Path, words: list[str], says: str) -> None:
    """Exit 2, and what to write instead."""
    found = run(people, "--offline", *words)
    assert found.exit_code == 2
    assert says in found.output
    assert "Traceback" not in found.output


def test_verify_prints_the_short_form_before_its_first_probe(tmp_path: Path) -> None:
    """Per provider the time and the limit, and that it was simulated."""
    (tmp_path / "list.txt").write_text("ada@normal.lab\nada@catch-all.lab\n")
    words = ["verify", "list.txt", "-o", "out.csv", "--mode", "enhanced", "--lab", "--state", "state.db"]
    done = subprocess.run(
        [sys.executable, "-m", "engine", *words], cwd=tmp_path, capture_output=True, text=True, timeout=40, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["provider", "addresses", "sites", "about", "bound", "by"]
    assert lines[1].split()[:3] == ["default", "2", "2"]
    assert lines[2].startswith("Simulated with 8 % of the addresses refused")
