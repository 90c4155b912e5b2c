"""lab.yaml and what ships with it: the list, the policies, the identity, the docs page."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

from engine.core.reasons import REASONS
from engine.flow.policies import load_policies
from engine.lab import spec
from engine.lab.persona import LabError
from engine.lab.process import LabProcess

FOLDER = spec.SHIPPED.parent
DOCS = Path(__file__).parents[2] / "docs" / "lab.md"


def test_expected_reasons_exist(described: spec.Spec) -> None:
    """Every verdict that the file asks for is one of the table's."""
    assert {reason for _, reasons in described.expect for reason in reasons} <= set(REASONS)


def test_the_demo_list_is_the_lab_s_addresses(described: spec.Spec) -> None:
    """Every address of the file is in the list, every row has an expectation, ids are unique."""
    with (FOLDER / "demo.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "name", "email", "city"]
    expected = {address for address, _ in described.expect}
    listed = {local + at + domain.lower() for local, at, domain in (row["email"].rpartition("@") for row in rows)}
    assert listed == expected
    assert len({row["id"] for row in rows}) == len(rows) > len(listed)  # it holds duplicates


def test_every_domain_has_a_host_that_serves_it_or_a_zone_that_says_why_not(described: spec.Spec) -> None:
    """A mailbox without a server would be a mistake of the file."""
    pointless = {name for name, domain in described.domains.items() if domain.mailboxes and not domain.servers}
    assert pointless == set()


def test_who_refuses_us_is_one_organisation(described: spec.Spec) -> None:
    """Hosts with the same last two labels share a /24, others never do."""
    networks: dict[str, set[str]] = {}
    for host in described.hosts.values():
        if host.ip.startswith("127."):
            networks.setdefault(host.ip.rpartition(".")[0], set()).add(".".join(host.name.split(".")[-2:]))
    shared = {frozenset(names) for names in networks.values() if len(names) > 1}
    vanity = {f"vanity-{number:02}.lab" for number in range(11)}
    assert shared == {frozenset(vanity)}


def test_the_policies_load_over_the_shipped_ones() -> None:
    """They claim the lab's providers, and leave no number of the default policy that takes minutes."""
    found = load_policies([FOLDER / "policies"])
    names = {
        "aspmx.google.lab": "google-like",
        "tenant-1.lab.microsoft.lab": "microsoft-like",
        "mta.yahoo.lab": "yahoo-like",
        "mx.forbidden.lab": "forbidden-like",
        "mx.pool.lab": "pool-like",
        "mx.normal.lab": "default",
    }
    assert names == {host: found.for_hosts([host]).name for host in names}
    assert found.for_hosts(["mta.yahoo.lab"]).rcpt == "uninformative"
    assert found.for_hosts(["mx.forbidden.lab"]).rcpt == "never"
    assert found.default.retry.give_up_s <= 15
    assert found.default.refusals.per_session < 10  # error-limit slows down at the 10th


def test_the_identity_is_real_in_the_lab(described: spec.Spec) -> None:
    """HELO name and reverse name agree, and its MAIL FROM is a mailbox that takes mail."""
    identity = yaml.safe_load((FOLDER / "identity.yaml").read_text())
    helo, public = identity["helo_name"], identity["public_address"]
    assert described.records[helo]["A"] == [public]
    assert described.records[".".join(reversed(public.split("."))) + ".in-addr.arpa"]["PTR"] == [helo]
    local, _, domain = identity["mail_from_address"].partition("@")
    assert described.domains[domain].mailboxes[local] == "known"
    assert described.domains[domain].servers


def test_the_docs_table_is_the_file(described: spec.Spec) -> None:
    """docs/lab.md lists each persona with its sentence, in the order of the file."""
    personas, _, lists = DOCS.read_text(encoding="utf-8").partition("## Block lists")
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", personas, re.MULTILINE)
    assert rows == [(persona.name, persona.does) for persona in described.personas.values()]
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", lists, re.MULTILINE)
    assert rows == [(each.zone, each.does) for each in described.blocklists.values()]


def test_a_thousand_domains_come_from_one_line() -> None:
    """`generate` makes domains with hosts of their own, and says what is right for each address."""
    made = {"generate": {"domains": 3000, "per_domain": 3, "known": 1, "prefix": "bulk"}}
    listed = list(spec.addresses(made))
    assert listed[:3] == [
        ("user1@bulk00001.lab", ("rcpt_ok",)),
        ("gone1@bulk00001.lab", ("mailbox_not_found",)),
        ("gone2@bulk00001.lab", ("mailbox_not_found",)),
    ]
    assert len(listed) == 9000
    assert len(spec.load(made).servers()) == 3001
    with LabProcess(made, log=False) as lab:  # more hosts than listeners
        import smtplib

        host = spec.load(made).hosts["mx.bulk03000.lab"]
        with smtplib.SMTP(host.ip, lab.smtp_port, local_hostname="probe.lab", timeout=3) as client:
            client.ehlo()
            client.mail("a@probe.lab")
            assert (client.rcpt("user1@bulk03000.lab")[0], client.rcpt("gone1@bulk03000.lab")[0]) == (250, 550)
            assert client.rcpt("user1@bulk02999.lab")[0] == 554


def test_generated_domains_can_share_hosts_and_expect_otherwise() -> None:
    """`per_host` domains on each server; `expect` where the persona's answers mean something else."""
    made = {"generate": [{"domains": 10, "per_domain": 2, "per_host": 5, "persona": "catch-all", "prefix": "c",
        "expect": {"known": "catch_all", "unknown": "catch_all"}}, {"domains": 1, "prefix": "n"}]}  # fmt: skip
    found = spec.load(made)
    assert {host.persona for host in found.hosts.values()} == {"normal", "catch-all"}
    assert len(found.hosts) == 1 + 2 + 1
    assert {reasons for address, reasons in found.expect if "@c" in address} == {("catch_all",)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"domain": {}}, "no section domain"),
        ({"domains": {"a.lab": {"person": "x"}}}, "domains.a.lab has no person"),
        ({"domains": {"a.lab": {"persona": "x"}}}, "no persona 'x'"),
        ({"personas": {"x": {"ehlo": "perhaps"}}}, "personas.x: ehlo: 'perhaps' is not yes or no"),
        ({"personas": {"x": {"limits": {"rate": "5"}}}}, "personas.x: limits"),
        ({"generate": {"domains": 1, "person": "x"}}, r"generate\[0\] has no person"),
        ({"hosts": {"a.b.lab": {"same_as": "c.lab"}}}, "which is no host"),
        ({"records": ["a.lab MX"]}, "not a name, a type and a value"),
    ],
)
def test_a_wrong_spec_is_told_where(wrong: dict[str, object], message: str) -> None:
    """Errors name the place."""
    with pytest.raises(LabError, match=message):
        spec.load(wrong)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """A file that is no lab, or not there."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("- a\n- b\n")
    for path in (bad, tmp_path / "none.yaml"):
        with pytest.raises(LabError, match=str(path)):
            spec.load(path)


def test_the_docs_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of docs/lab.md does what it says, and its YAML is a lab."""
    text = DOCS.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    exec(compile(code, str(DOCS), "exec"), {})
    assert "user1@d00001.lab ('rcpt_ok',)" in capsys.readouterr().out
    (example,) = re.findall(r"```yaml\n(.+?)```", text, re.DOTALL)
    assert ("adda@moody.lab", ("mailbox_not_found",)) in spec.load(yaml.safe_load(example)).expect
