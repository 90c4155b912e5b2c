"""Settings: what wins over what, and how a mistake is told."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from engine.core.grammar import Range, Rate
from engine.core.identity import Status
from engine.identity_file import (
    consent_from_flags,
    enabled,
    find_identities,
    identity_from_flags,
    load_consent,
    load_identity,
)
from engine.settings import SettingsError, config_paths, load_configuration

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NODE = """name: node1
helo_name: Probe1.example.net
mail_from_address: probe@Example.net
public_address: 93.184.216.34
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file and gives its path."""

    def put(text, name="node.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return put


# Precedence


def test_flag_beats_environment_beats_file_beats_default(write):
    """The nearest to the caller wins."""
    path = write("concurrency: 100\n")
    assert load_configuration(path, {}).option("concurrency", None, 500) == 100
    settings = load_configuration(path, {"ENGINE_CONCURRENCY": "200"})
    assert settings.option("concurrency", None, 500) == "200"
    assert settings.option("concurrency", 300, 500) == 300
    assert settings.option("deadline", None, "none") == "none"
    assert settings.option("allow_private", False) is False  # a flag that says no is said


def test_the_users_file_comes_before_the_machines(tmp_path):
    """`$XDG_CONFIG_HOME/engine/engine.yaml`, else ~/.config, else /etc."""
    assert config_paths({"XDG_CONFIG_HOME": "/x"}) == (Path("/x/engine/engine.yaml"), Path("/etc/engine/engine.yaml"))
    assert config_paths({"HOME": "/home/ann"})[0] == Path("/home/ann/.config/engine/engine.yaml")
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "engine.yaml").write_text("concurrency: 7")
    assert load_configuration(None, {"XDG_CONFIG_HOME": str(tmp_path)}).option("concurrency") == 7


def test_no_file_is_no_mistake_unless_it_was_named(tmp_path):
    """Only a file that somebody named has to be there."""
    assert load_configuration(None, {"XDG_CONFIG_HOME": str(tmp_path)}).option("concurrency") is None
    with pytest.raises(SettingsError, match=r"gone\.yaml: no such file"):
        load_configuration(tmp_path / "gone.yaml", {})


def test_a_secret_may_stand_in_a_file(write):
    """`ENGINE_X` or the file of `ENGINE_X_FILE`, without its last line end."""
    path = write("s3cret\n", "token")
    assert load_configuration(None, {"ENGINE_TOKEN_FILE": str(path)}).secret("token") == "s3cret"
    both = {"ENGINE_TOKEN": "nearer", "ENGINE_TOKEN_FILE": str(path)}
    assert load_configuration(None, both).secret("token") == "nearer"
    assert load_configuration(None, {}).secret("token") is None
    with pytest.raises(SettingsError, match="ENGINE_TOKEN_FILE"):
        load_configuration(None, {"ENGINE_TOKEN_FILE": "/nowhere/token"}).secret("token")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nconcurency: 5\n", ":2: concurency: there is no such field (did you mean concurrency?)"),
        ("- 1\n", ":1: a mapping is expected"),
        ("a: [\n", ": this is not YAML"),
        ("dns: a\ndns: b\n", "line 2: dns is given twice"),
    ],
)
def test_a_bad_file_names_line_field_and_expectation(write, text, said):
    """One sentence: where, what, and what would be right."""
    with pytest.raises(SettingsError) as caught:
        load_configuration(write(text), {})
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(write(text)))


# Identity


def test_an_identity_is_read_and_its_defaults_follow(write):
    """Names in lower case; the identity's domain is that of its sender; status enabled; our guess of limits."""
    (node,) = load_identity(write(NODE))
    assert (node.helo_name, node.mail_from, node.identity_domain) == (
        "probe1.example.net",
        "probe@example.net",
        "example.net",
    )
    assert (node.key, node.bind_v4, node.status) == ("93.184.216.34", "", Status.ENABLED)
    assert node.limits.sessions == Range(Rate(60, 60.0), Rate(1200, 60.0))


def test_every_field_of_an_identity_is_taken(write):
    """Two address families, tags, status, warm-up, limits; a limit that is null is lifted."""
    node, _ = load_identity(
        write(
            """
- name: a
  helo_name: a.example.net
  mail_from_address: p@example.net
  identity_domain: example.org
  public_address: {v4: 93.184.216.34, v6: "2606:4700::0:1111"}
  bind_address: {v4: 10.0.0.2}
  pool_tags: [outlook-safe, eu]
  status: draining
  warmup: {since: 2026-11-01, per_day: [50, 100]}
  limits: {sessions: 30/min..60/min, refusals: null}
- {name: b, helo_name: b.example.net, mail_from_address: p@example.net, public_address: 93.184.216.35}
"""
        )
    )
    assert (node.public_v4, node.public_v6, node.bind_v4) == ("93.184.216.34", "2606:4700::1111", "10.0.0.2")
    assert (node.pool_tags, node.status) == (frozenset({"outlook-safe", "eu"}), Status.DRAINING)
    assert node.warmup is not None
    assert (node.warmup.since, node.warmup.per_day) == (date(2026, 11, 1), (50, 100))
    assert (node.limits.sessions, node.limits.refusals) == (Range(Rate(30, 60.0), Rate(60, 60.0)), None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("probe@Example.net", "probe"), ":3: mail_from_address: probe is not a mail address (missing_at)"),
        (("mail_from_address: probe@Example.net\n", ""), "--mail-from"),
        (("helo_name: Probe1.example.net\n", ""), "--helo"),
        (("93.184.216.34", "93.184.216"), ":4: public_address: '93.184.216' is not an IP address"),
        (("93.184.216.34", "{v4: '::1'}"), ":4: public_address.v4: ::1 is not an IPv4 address"),
        (("name: node1", "nam: node1"), ":1: nam: there is no such field (did you mean name?)"),
        (("name: node1", "status: on_holiday"), "enabled, draining, disabled, quarantined"),
        (("name: node1", "limits: {sessions: 30}"), "limits.sessions: 30 is not a rate"),
        (("name: node1", "warmup: {since: soon, per_day: [1]}"), "warmup.since: 'soon' is not a date"),
        (("name: node1", "warmup: {since: 2026-01-01, per_day: 5}"), "per_day: a list of numbers"),
        (("Probe1.example.net", '"a\\r\\nb"'), "is not one line of text"),
    ],
)
def test_a_bad_identity_names_what_is_expected(write, change, said):
    """File, line, field, expectation; and the flag where one is missing."""
    with pytest.raises(SettingsError) as caught:
        load_identity(write(NODE.replace(*change)))
    assert said in str(caught.value)
    assert "node.yaml" in str(caught.value)


def test_two_identities_share_no_address(write):
    """Budgets and locks are kept by address: one file can't give it twice."""
    second = NODE.replace("node1", "node2")
    items = "".join("- " + text.replace("\n", "\n  ").rstrip() + "\n" for text in (NODE, second))
    with pytest.raises(SettingsError, match="public_address"):
        load_identity(write(items))


def test_flags_make_an_identity_and_name_what_they_lack():
    """`--helo --mail-from --public-ip` together are one."""
    made = identity_from_flags("a.example.net", "p@example.net", "93.184.216.34", "", ["eu"])
    assert (made.name, made.pool_tags) == ("a.example.net", frozenset({"eu"}))
    with pytest.raises(SettingsError, match=r"lacks --mail-from and --public-ip \(or give --identity FILE\)"):
        identity_from_flags("a.example.net", "", "")


def test_the_identity_nearest_to_the_caller_is_taken(write):
    """Flags or file, then the environment, then the section; the first enabled one of a list; none is None."""
    section = write("identity:\n  " + NODE.replace("\n", "\n  "), "engine.yaml")
    other = write(NODE.replace("node1", "other"), "other.yaml")
    settings = load_configuration(section, {})
    assert find_identities(load_configuration(None, {"XDG_CONFIG_HOME": "/nowhere"})) == ()
    assert find_identities(settings)[0].name == "node1"
    assert find_identities(settings, file=other)[0].name == "other"
    assert find_identities(load_configuration(section, {"ENGINE_IDENTITY": str(other)}))[0].name == "other"
    flags = {"helo": "h.example.net", "mail_from": "p@example.net", "public_ip": "93.184.216.36"}
    assert (
        find_identities(load_configuration(section, {"ENGINE_IDENTITY": str(other)}), **flags)[0].name
        == "h.example.net"
    )
    with pytest.raises(SettingsError, match="exclude each other"):
        find_identities(settings, file=other, helo="h.example.net")
    with pytest.raises(SettingsError, match="no identity is enabled"):
        enabled(find_identities(settings, file=write(NODE + "status: disabled\n")))


def test_a_mistake_in_the_section_names_its_line(write):
    """The section of a settings file is told with its place in that file."""
    with pytest.raises(SettingsError, match=r"node\.yaml:3: identity\.helo: there is no such field"):
        find_identities(load_configuration(write("dns: []\nidentity:\n  helo: x\n"), {}))


# Consent


@pytest.mark.parametrize(
    "text",
    [
        "reference: T-7\ngranted_by: A. Owner\ngranted_at: 2026-11-01\nexpires: 2026-12-31T00:00:00+01:00\n",
        '{"reference": "T-7", "granted_by": "A. Owner", "granted_at": "2026-11-01", "expires": "2026-12-30T23:00:00Z"}',
    ],
)
def test_a_consent_file_is_yaml_or_json(write, text):
    """Times come out as UTC."""
    consent = load_consent(write(text), NOW)
    assert (consent.reference, consent.granted_by, consent.purpose) == ("T-7", "A. Owner", "")
    assert consent.granted_at == datetime(2026, 11, 1, tzinfo=UTC)
    assert consent.expires == datetime(2026, 12, 30, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("granted_by: A\ngranted_at: 2026-11-01\n", "--consent"),
        ("reference: T\ngranted_at: 2026-11-01\n", "--consent-by"),
        ("reference: T\ngranted_by: A\n", "--consent-at"),
        ("reference: T\ngranted_by: A\ngranted_at: yesterday\n", ":3: granted_at: 'yesterday' is not a time"),
        ("reference: T\ngranted_by: A\ngranted_at: 2027-01-01\n", "in the future"),
        ("reference: T\ngranted_by: A\ngranted_at: 2026-01-01\nexpires: 2026-11-22T12:00:00Z\n", "is none"),
        ("reference: T\ngranted_by: A\ngranted_at: 2026-01-01\nvalid_until: 2027-01-01\n", "no such field"),
    ],
)
def test_what_a_consent_lacks_is_named(write, text, said):
    """Missing fields with the flags that give them; an expired consent is none."""
    with pytest.raises(SettingsError) as caught:
        load_consent(write(text), NOW)
    assert said in str(caught.value)


def test_flags_make_a_consent_granted_now():
    """Without --consent-at it is granted at this moment; reference and grantor are needed."""
    assert consent_from_flags("T-7", "A. Owner", "cleaning", "", NOW).granted_at == NOW
    given = consent_from_flags("T-7", "A. Owner", "", "2026-11-01T10:00:00+02:00", NOW)
    assert given.granted_at == datetime(2026, 11, 1, 8, tzinfo=UTC)
    with pytest.raises(SettingsError, match="lacks --consent-by WHO"):
        consent_from_flags("T-7", " ", "", "", NOW)
    with pytest.raises(SettingsError, match="--consent-at: 'soon' is not a time"):
        consent_from_flags("T-7", "A", "", "soon", NOW)
