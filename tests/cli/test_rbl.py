"""`engine rbl`: what it prints, and the exit codes that a script goes by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.cli.main import cli
from engine.cli.rbl import LISTED, UNCHECKED
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.reputation.registry import load_registry

LAB_LISTS = SHIPPED.with_name("lists.yaml")
STRICT = "lists: {refuser-lab: {severity: critical}}\n"


def run(*words: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, ["rbl", *words], env=environ)


@pytest.fixture(scope="module")
def lab() -> Iterator[LabProcess]:
    with LabProcess(log=False) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file that opens nothing; the machine's own is out of sight."""
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    path = tmp_path / "engine.yaml"
    path.write_text("rbl: {}\n")
    return path


def test_a_listed_address_exits_3_and_is_told_with_the_way_off() -> None:
    """Sublists, codes, what the list itself says, and where to go."""
    result = run("check", "203.0.113.67", "--lab")
    assert result.exit_code == LISTED == 3, result.output
    assert "203.0.113.67: LISTED on 1 of 2 lists checked, critical at worst" in result.output
    assert "zen-lab  xbl      critical  127.0.0.4   infected host" in result.output
    assert "zen-lab says: 203.0.113.67 is listed, see https://zen.lab/203.0.113.67" in result.output
    assert "zen-lab, to get off: look it up there (https://zen.lab/)" in result.output


def test_a_clean_address_exits_0_and_its_gaps_are_named() -> None:
    """Every critical list was asked; the lesser ones that fail are told all the same."""
    result = run("check", "203.0.113.1", "--lab")
    assert result.exit_code == 0, result.output
    assert result.output == (
        "203.0.113.1: clean: not listed on the 2 lists checked; not checked: wildcard-lab, 5 lesser ones.\n"
    )


def test_nothing_is_clean_while_a_critical_list_is_unchecked(tmp_path: Path) -> None:
    """Exit 4, and the line says which list and why."""
    (tmp_path / "strict.yaml").write_text(STRICT)
    result = run("check", "203.0.113.1", "--lab", "--lists", str(tmp_path / "strict.yaml"))
    assert result.exit_code == UNCHECKED == 4, result.output
    assert "clean" not in result.output
    assert "not listed on the 2 lists checked; NOT CHECKED: refuser-lab (does not answer this resolver" in result.output


def test_without_any_leave_the_shipped_lists_call_nobody_clean(settings: Path, lab: LabProcess, tmp_path: Path) -> None:
    """ZEN needs a key or a statement; the settings to make are in the line. (All others are left out here.)"""
    names = [each.name for each in load_registry().enabled]
    settings.write_text(f"rbl: {{skip: [{', '.join(names)}]}}\n")
    result = run("check", "203.0.113.1", "--dns", f"127.0.0.1:{lab.dns_port}", "--config", str(settings))
    assert result.exit_code == UNCHECKED, result.output
    assert "203.0.113.1: no list was checked; NOT CHECKED: spamhaus-zen (needs a key or your statement" in result.output
    assert "rbl.spamhaus.dqs_key" in result.output


def test_domains_and_addresses_go_together_and_the_gravest_counts() -> None:
    """One report, one exit code; a target given twice is one."""
    result = run("check", "203.0.113.1", "bad.example", "good.example", "203.0.113.1", "2001:db8:bad::66", "--lab")
    assert result.exit_code == LISTED
    heads = [line.split(": ")[0] for line in result.output.splitlines() if line[:1].isalnum()]
    assert heads == ["203.0.113.1", "bad.example", "good.example", "2001:db8:bad::66"]


def test_json_is_an_object_a_target() -> None:
    """With all that a program needs to act: state, listings, ways off, gaps."""
    result = run("check", "203.0.113.68", "203.0.113.70", "--lab", "--json")
    listed, praised = map(json.loads, result.output.splitlines())
    assert (listed["state"], listed["severity"]) == ("listed", "high")
    (listing,) = listed["listings"]
    assert (listing["list"], listing["sublist"], listing["answer"]) == ("zen-lab", "css", "127.0.0.3")
    assert listing["delist"]["expires_s"] == 3 * 86_400
    assert listing["delist"]["how"] == "remove it yourself"
    assert {each["list"] for each in listed["not_checked"]} >= {"members-lab", "dead-lab"}
    assert (praised["state"], praised["notes"]) == ("clean", {"white-lab": "on the white list (127.0.5.2)"})


def test_a_list_that_lists_the_fleet_is_probed_again(lab: LabProcess, settings: Path, tmp_path: Path) -> None:
    """And where its probe is good, its listings stand: a whole network can be listed."""
    targets = [f"198.51.100.{number}" for number in range(1, 5)]
    lab.set("bl.lab", listed=targets)
    before = lab.stats()["queries"]
    result = run("check", *targets, "--lists", str(LAB_LISTS), *_only(settings, lab, "bl-lab"))
    lab.reset()
    assert result.exit_code == LISTED
    assert result.output.count("LISTED on 1 of 1") == 4
    assert lab.stats()["queries"] - before == 6 + 4 * 2 + 6  # a probe, checks with their texts, a probe again


def _only(settings: Path, lab: LabProcess, *names: str) -> tuple[str, ...]:
    """Options under which these of the lab's lists alone are asked."""
    enabled = {each.name for each in load_registry(files=[LAB_LISTS]).enabled}
    settings.write_text(f"rbl: {{skip: [{', '.join(sorted(enabled - set(names)))}]}}\n")
    return "--config", str(settings), "--dns", f"127.0.0.1:{lab.dns_port}"


@pytest.mark.parametrize("target", ["10.1", "a@b.example", "localhost"])
def test_what_is_no_target_is_wrong_use(target: str) -> None:
    """Nothing is asked."""
    result = run("check", target, "--lab")
    assert (result.exit_code, result.output[:8]) == (2, "engine: ")


def test_the_lab_brings_its_own_name_server() -> None:
    """Nobody means both."""
    assert run("check", "203.0.113.1", "--lab", "--dns", "127.0.0.1:53").exit_code == 2


# --- lists


def test_lists_shows_what_is_asked_and_what_is_not(settings: Path) -> None:
    """In columns, with the reason of each that is off, without asking anybody."""
    result = run("lists", "--config", str(settings))
    assert result.exit_code == 0, result.output
    assert "bl.spamcop.net" in result.output
    off = result.output.partition("Not asked")[2]
    assert "spamhaus-zen       critical  needs a key or your statement" in off
    assert "verify-lists" in off


def test_a_key_is_not_shown(settings: Path) -> None:
    """Neither in the table nor in JSON."""
    settings.write_text("rbl: {spamhaus: {dqs_key: s3cret}, abusix: {api_key: s3cret}}\n")
    for words in ((), ("--json",)):
        result = run("lists", "--config", str(settings), *words)
        assert "{key}.zen.dq.spamhaus.net" in result.output
        assert "s3cret" not in result.output


def test_a_denied_zone_is_refused_unless_forced(settings: Path, tmp_path: Path) -> None:
    """File, line, field, why, and the way round."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "lists:\n  old: {zone: dnsbl.sorbs.net, kind: ip, severity: low, codes: [{code: 127.0.0.2, means: x}]}\n"
    )
    refused = run("lists", "--config", str(settings), "--lists", str(path))
    assert refused.exit_code == 2
    assert f"{path}:2: lists.old: dnsbl.sorbs.net is a denied zone" in refused.output
    assert "dnsbl.sorbs.net" in run("lists", "--config", str(settings), "--lists", str(path), "--force").output


def test_lists_as_json_has_the_whole_registry(settings: Path) -> None:
    """One object a list, with source and date of its facts."""
    found = {
        row["list"]: row
        for row in map(json.loads, run("lists", "--config", str(settings), "--json").output.splitlines())
    }
    assert found["spamcop"]["asked"]
    assert found["spamcop"]["verified_on"] == "2026-11-22"
    assert not found["spamhaus-zen"]["asked"]
    assert found["spamhaus-zen"]["needs"] == "noncommercial"


# --- verify-lists


def test_verify_lists_says_which_can_be_used_and_why_not() -> None:
    """Each failure in words; the resolver too."""
    result = run("verify-lists", "--lab")
    assert result.exit_code == UNCHECKED, result.output
    assert "bl-lab        critical  yes" in result.output
    assert "wildcard-lab  high      NO         answers 127.0.0.2 for" in result.output
    assert "members-lab   medium    not asked  needs your registration" in result.output
    assert "Usable: 4 of 9; not asked: 1." in result.output
    assert "The resolver: It is refused by refuser-lab, seen as 127.0.0.1" in result.output


def test_verify_lists_of_healthy_lists_exits_0() -> None:
    """Named ones alone are asked."""
    result = run("verify-lists", "bl-lab", "uri-lab", "--lab")
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "The resolver: Nothing is wrong with it.")


def test_verify_lists_as_json() -> None:
    """A finding that a program can tell apart, and the resolver's own line."""
    *rows, resolver = map(json.loads, run("verify-lists", "--lab", "--json").output.splitlines())
    assert {row["list"]: row["finding"] for row in rows}["parked-lab"] == "parked"
    assert resolver["resolver"]["seen_as"] == "127.0.0.1"


def test_a_mistyped_list_is_wrong_use() -> None:
    """With the near name."""
    result = run("verify-lists", "bl-lob", "--lab")
    assert (result.exit_code, "did you mean bl-lab" in result.output) == (2, True)
