"""The registry: the shipped lists, files over them, and what opens a list."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.listing import Severity
from engine.reputation.blocklist import METHODS, Effect, Family, Kind
from engine.reputation.question import target
from engine.reputation.registry import SHIPPED, load_registry
from engine.settings import SettingsError, load_configuration

REGISTRY = load_registry()
MINE = "lists:\n  mine: {zone: bl.mine.example, kind: ip, severity: low, codes: [{code: 127.0.0.2, means: listed}]}\n"


def settings(tmp_path: Path, text: str = "", **environ: str):
    path = tmp_path / "engine.yaml"
    path.write_text(text)
    return load_configuration(path, environ)


# --- what is shipped


@pytest.mark.parametrize("each", REGISTRY.lists.values(), ids=lambda each: each.name)
def test_a_shipped_list_is_whole(each) -> None:
    """What it lists, where the facts come from and when they were read; codes in order, a way off or none."""
    assert each.lists
    assert each.source
    assert each.verified_on == "2026-11-22"
    assert each.delist.method in METHODS
    assert each.delist.how or each.kind is Kind.WHITE or each.name == "senderscore-score"
    assert each.rate.per_s <= 5
    effects = {code.effect for code in each.codes}
    assert Effect.LISTING not in effects if each.kind is Kind.WHITE else effects
    worst = max((code.severity for code in each.codes if code.effect is Effect.LISTING), default=each.severity)
    assert each.severity >= worst


def test_zones_and_names_are_there_once() -> None:
    """No list is asked twice under two names."""
    zones = [each.zone for each in REGISTRY.lists.values() if each.zone]
    assert len(zones) == len(set(zones))


def test_no_shipped_list_is_denied() -> None:
    """And the dead ones that others still ship are."""
    for zone in ("dnsbl.sorbs.net", "rhsbl.sorbs.net", "ix.dnsbl.manitu.net", "cbl.abuseat.org", "bl.nszones.com"):
        assert any(row.covers(zone) for row in REGISTRY.denied), zone
    assert not any(row.covers(each.zone) for row in REGISTRY.denied for each in REGISTRY.lists.values())


def test_every_interval_suits_its_severity() -> None:
    """A critical list every 15 min, a regional one once a day."""
    assert REGISTRY.named("spamhaus-zen").interval_s == 900
    assert REGISTRY.named("psbl").interval_s == 3600
    assert REGISTRY.named("uceprotect-1").interval_s == 21_600
    assert REGISTRY.named("ttk").interval_s == 86_400


def test_sublists_have_their_own_way_off_and_expiry() -> None:
    """CSS expires, SBL is a matter of the provider."""
    zen = REGISTRY.named("spamhaus-zen")
    assert zen.expires_s("css") == 3 * 86_400
    assert zen.expires_s("sbl") is None
    assert "provider" in zen.how_to_delist("sbl")
    assert zen.how_to_delist("nothing") == zen.delist.how


# --- terms


def test_lists_with_terms_are_off_and_named() -> None:
    """By default nothing is asked that wants a key, a registration or a statement; each says what opens it."""
    why = {each.name: each.why for each in REGISTRY.unchecked}
    assert "rbl.spamhaus.dqs_key" in why["spamhaus-zen"]
    assert 'rbl.spamhaus.public_mirror: "I am entitled"' in why["spamhaus-zen"]
    assert why["abusix"] == "needs a key; set rbl.abusix.api_key"
    assert why["barracuda"] == "needs your registration; set rbl.barracuda.registered: yes"
    assert "subscribers" in why["ivmsip"]
    assert "no test entry" in why["zapbl-domains"]
    assert REGISTRY.unchecked[0].severity is Severity.CRITICAL
    assert not {each.name for each in REGISTRY.enabled} & set(why)


def test_only_lists_that_take_such_a_target_are_missed() -> None:
    """A domain is not the less checked for an address list that is off."""
    assert {each.name for each in REGISTRY.unchecked_for(target("example.org"))} >= {"spamhaus-dbl", "ivmuri"}
    assert "spamhaus-zen" not in {each.name for each in REGISTRY.unchecked_for(target("example.org"))}
    assert all(each.takes(Family.IPV6) for each in REGISTRY.asked_about(target("2001:db8::1")))


def test_a_key_opens_the_keyed_zones(tmp_path: Path) -> None:
    """ZEN, DBL, AUTHBL and ZRD with one key."""
    found = load_registry(settings(tmp_path, "rbl: {spamhaus: {dqs_key: abc123}}"))
    assert found.named("spamhaus-zen").asked_zone == "abc123.zen.dq.spamhaus.net"
    assert found.named("spamhaus-authbl").asked_zone == "abc123.authbl.dq.spamhaus.net"
    assert not [each for each in found.unchecked if each.name.startswith("spamhaus")]


def test_a_statement_opens_the_public_mirror_and_no_keyed_zone(tmp_path: Path) -> None:
    """Who says that he is entitled asks the public zones."""
    found = load_registry(settings(tmp_path, 'rbl: {spamhaus: {public_mirror: "I am entitled"}}'))
    assert found.named("spamhaus-zen").asked_zone == "zen.spamhaus.org"
    assert "spamhaus-zen" not in found.off
    assert "needs a key" in found.off["spamhaus-zrd"]


@pytest.mark.parametrize(("text", "opens"), [("registered: yes", True), ("registered: no", False), ("", False)])
def test_a_registration_is_a_yes(tmp_path: Path, text: str, opens: bool) -> None:
    """YAML's yes is the word yes."""
    found = load_registry(settings(tmp_path, f"rbl: {{barracuda: {{{text}}}}}" if text else ""))
    assert ("barracuda" not in found.off) is opens


def test_a_half_statement_opens_nothing(tmp_path: Path) -> None:
    """`yes` is not the sentence that the terms are about."""
    with pytest.raises(
        SettingsError, match=r"engine\.yaml:3: rbl\.spamhaus\.public_mirror: 'yes' is not the statement"
    ):
        load_registry(settings(tmp_path, "rbl:\n  spamhaus:\n    public_mirror: yes\n"))


def test_keys_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """The environment outweighs the settings file."""
    (tmp_path / "key").write_text("fromfile\n")
    for environ in (
        {"ENGINE_RBL_SPAMHAUS_DQS_KEY": "fromfile"},
        {"ENGINE_RBL_SPAMHAUS_DQS_KEY_FILE": str(tmp_path / "key")},
    ):
        found = load_registry(settings(tmp_path, "rbl: {spamhaus: {dqs_key: other}}", **environ))
        assert found.named("spamhaus-zen").key == "fromfile"


def test_a_key_is_shown_nowhere(tmp_path: Path) -> None:
    """Not by the registry, not by the list, not by an error about it, not out of a text that comes back."""
    found = load_registry(settings(tmp_path, "rbl: {spamhaus: {dqs_key: s3cret}}"))
    zen = found.named("spamhaus-zen")
    assert "s3cret" not in repr(found) + repr(zen) + str(zen)
    assert zen.hide_key("see S3CRET.zen.dq.spamhaus.net") == "see {key}.zen.dq.spamhaus.net"
    with pytest.raises(SettingsError) as wrong:
        load_registry(settings(tmp_path, "rbl: {spamhaus: {dqs_key: 's3cret with blanks'}}"))
    assert "s3cret" not in str(wrong.value)
    with pytest.raises(SettingsError) as wrong:
        load_registry(settings(tmp_path, "rbl: {spamhaus: {dqs_key: [s3cret]}}"))
    assert "s3cret" not in str(wrong.value)


def test_a_list_can_be_left_out_and_is_still_named(tmp_path: Path) -> None:
    """What the operator doesn't want asked is not checked, and said to be so."""
    found = load_registry(settings(tmp_path, "rbl: {skip: [spamcop]}"))
    assert {each.name: each.why for each in found.unchecked}["spamcop"] == "left out by the settings (rbl.skip)"
    with pytest.raises(SettingsError, match="there is no list 'spamcob'"):
        load_registry(settings(tmp_path, "rbl: {skip: [spamcob]}"))


def test_an_unknown_setting_is_an_error(tmp_path: Path) -> None:
    """A mistyped key would leave a critical list off."""
    with pytest.raises(SettingsError, match=r"rbl\.spamhouse: there is no such field \(did you mean spamhaus"):
        load_registry(settings(tmp_path, "rbl: {spamhouse: {dqs_key: x}}"))
    with pytest.raises(SettingsError, match=r"dqskey: there is no such field \(did you mean dqs_key"):
        load_registry(settings(tmp_path, "rbl: {spamhaus: {dqskey: x}}"))


# --- files


def test_a_file_adds_a_list(file) -> None:
    """With the usual test points and an interval by severity."""
    found = load_registry(files=[file(MINE)]).named("mine")
    assert (found.asked_zone, found.interval_s, found.tests[0][1].listed) == ("bl.mine.example", 21_600, "127.0.0.2")


def test_a_file_changes_a_list_key_by_key(file) -> None:
    """What it doesn't speak of stays; maps inside merge too."""
    path = file("lists:\n  spamcop: {severity: low, delist: {cooldown: 1d}}\n")
    found, shipped = load_registry(files=[path]).named("spamcop"), REGISTRY.named("spamcop")
    assert (found.severity, found.delist.cooldown_s) == (Severity.LOW, 86_400)
    assert (found.zone, found.delist.url) == (shipped.zone, shipped.delist.url)


def test_later_files_outweigh_and_the_settings_name_some(file, tmp_path: Path) -> None:
    """Shipped, then `rbl.lists`, then --lists."""
    first, second = file(MINE, "one.yaml"), file("lists: {mine: {severity: high}}\n", "two.yaml")
    found = load_registry(settings(tmp_path, f"rbl: {{lists: [{first}]}}"), [second])
    assert found.named("mine").severity is Severity.HIGH


def test_a_file_gives_what_only_subscribers_know(file) -> None:
    """The zone opens the list."""
    found = load_registry(files=[file("lists: {ivmsip: {zone: sip.subscriber.example}}\n")])
    assert "ivmsip" not in found.off


def test_a_file_opens_a_list_without_a_test_entry(file) -> None:
    """By naming one."""
    found = load_registry(files=[file("lists: {zapbl-domains: {tests: {domain: {listed: known.example}}}}\n")])
    assert "zapbl-domains" not in found.off


def test_a_denied_zone_needs_force(file) -> None:
    """Whatever list it stands in, with file, line, reason and date."""
    path = file(MINE.replace("bl.mine.example", "spam.dnsbl.sorbs.net"))
    with pytest.raises(SettingsError, match=r"mine\.yaml:2: .*denied zone \(.*Proofpoint.*2024-06-05\); --force"):
        load_registry(files=[path])
    assert "mine" in {each.name for each in load_registry(files=[path], force=True).enabled}


def test_a_file_may_deny_more(file) -> None:
    """An operator's own list of the dead."""
    path = file('denied: [{zones: ["*.spamcop.net"], why: we had words with them}]\n')
    with pytest.raises(SettingsError, match="had words"):
        load_registry(files=[path])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lists:\n  mine:\n    zone: nodot\n", r":3: lists\.mine\.zone: 'nodot' is not the name of a zone"),
        ("lists:\n  mine:\n    kind: ipv4\n", r":3: lists\.mine\.kind: 'ipv4' is unknown here \(expected one of ip, "),
        ("lists:\n  mine:\n    severity: worst\n", r"severity: 'worst' is no severity \(expected one of info, low"),
        (
            "lists:\n  mine:\n    codes: [{code: 128.0.0.1, means: x}]\n",
            r"codes\[1\]\.code: .*expected addresses of 127",
        ),
        ("lists:\n  mine:\n    codes: [{code: bit 3, means: x}]\n", r"'bit 3' is no bit"),
        ("lists:\n  mine:\n    codes: [{code: 127.0.0.2}]\n", r"codes\[1\]\.means: is missing"),
        ("lists:\n  mine:\n    interval: 5\n", r"interval: 5 is not a duration"),
        ("lists:\n  mine:\n    rate: fast\n", r"rate: 'fast' is not a rate"),
        ("lists:\n  mine:\n    colour: red\n", r":3: lists\.mine\.colour: there is no such field"),
        ("lists:\n  mine:\n    tests: {ipv4: {listed: test}}\n", r"tests\.ipv4\.listed: 'test' is no test address"),
        ("lists:\n  spamkop: {severity: low}\n", r":2: lists\.spamkop: kind is missing \(or is the name mistyped"),
        ("lists:\n  spamcop: {access: nobody}\n", r"access: 'nobody' is not described"),
        ("lists:\n  spamcop: {families: [domain]}\n", r"a list of kind ip knows no domains"),
        ("lists:\n  spamcop: {zone: '{key}.bl.example'}\n", r"a zone with \{key\} needs an `access`"),
        ("lists: [a]\n", r":1: lists: \['a'\] is not a map"),
        ("lists: {7: {kind: ip}}\n", r":1: lists\.7: 7 is no text \(expected a name"),
        ("lists:\n  mine:\n    severity: [high]\n", r"severity: \['high'\] is no severity"),
        ("lists:\n  mine:\n    codes:\n", r"codes: None is not a list"),
        ("lists:\n  mine:\n    codes: [7]\n", r"codes\[1\]: 7 is not a map"),
        (
            "lists:\n  mine:\n    delist: {method: fax}\n",
            r"method: 'fax' is unknown here \(expected one of form, email",
        ),
        ("denied: [{zones: [bl.example]}]\n", r"denied\[1\]\.why: is missing"),
        ("list: {}\n", r":1: list: there is no such field"),
        ("", r"the file holds nothing"),
    ],
)
def test_a_wrong_file_names_line_field_and_what_is_expected(file, text: str, says: str) -> None:
    """One sentence a fault."""
    with pytest.raises(SettingsError, match=says):
        load_registry(files=[file(text)])


def test_all_faults_of_a_file_are_told_at_once(file) -> None:
    """Nobody wants to learn them one by one."""
    with pytest.raises(SettingsError) as wrong:
        load_registry(files=[file("lists:\n  mine:\n    zone: x\n    rate: fast\n    kind: ip\n")])
    assert len(str(wrong.value).splitlines()) == 2


def test_a_mistyped_name_is_answered_with_the_near_one() -> None:
    """On the command line names are typed."""
    with pytest.raises(SettingsError, match="did you mean spamcop"):
        REGISTRY.named("spamkop")


def test_the_registry_is_package_data() -> None:
    """It is read beside the code, in a wheel too."""
    assert SHIPPED.name == "lists.yaml"
    assert SHIPPED.is_file()
