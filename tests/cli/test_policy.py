"""Laws of `engine policy`: it tells everything that is wrong, and why a policy is the one."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rrset
import pytest
from click.testing import CliRunner, Result

from engine.cli.policy import policy
from engine.flow.policies import load_policies
from engine.flow.policy_model import KEYS, ROW_KEYS, texts

DOCS = Path(__file__).parents[2] / "docs" / "policies.md"


def run(*words: object) -> Result:
    return CliRunner().invoke(policy, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory with one file over gmail."""
    directory = tmp_path / "own"
    directory.mkdir()
    (directory / "gmail.yaml").write_text(
        "provider: gmail\nsessions: {concurrency: 1}\nsources: [{for: [sessions], say: measured by us}]\n"
    )
    return directory


@pytest.fixture
def name_server() -> Iterator[str]:
    """A name server on loopback that gives every domain one mail host of Google."""

    class Answer(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            query = dns.message.from_wire(self.rfile.read())
            answer = dns.message.make_response(query)
            name = query.question[0].name
            if query.question[0].rdtype == dns.rdatatype.MX:
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", "1 aspmx.l.google.com."))
            elif query.question[0].rdtype == dns.rdatatype.A:
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
            self.wfile.write(answer.to_wire())

    with socketserver.UDPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_check_says_what_it_checked(own: Path) -> None:
    """The shipped files alone, and with a directory over them, given either way."""
    assert run("check").output.startswith("ok: ")
    for words in (("check", own), ("check", "--policies", own)):
        found = run(*words)
        assert (found.exit_code, found.stderr) == (0, "")
        assert "providers and the default" in found.output


@pytest.mark.parametrize("words", [("check",), ("show", "gmail"), ("explain", "gmail.com", "--offline")])
def test_problems_are_told_whole_and_exit_2(own: Path, words: tuple[str, ...]) -> None:
    """Each problem on a line of its own, on standard error, and never a traceback."""
    (own / "gmail.yaml").write_text("provider: gmail\nsessions: {concurrency: 0, rat: 3}\n")
    found = run(*words, "--policies", own)
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.splitlines() == [
        f"{own}/gmail.yaml:2: sessions.concurrency: 0 is not a whole number from 1 to 1000",
        f"{own}/gmail.yaml:2: sessions.rat: unknown key (did you mean 'rate'?)",
        "2 problems; nothing was loaded.",
    ]


def test_show_prints_a_file_that_says_the_same(tmp_path: Path) -> None:
    """What `show` prints for any policy loads as a policy with the same values and rows."""
    (tmp_path / "copy").mkdir()
    shipped = load_policies()
    for one in (shipped.default, *shipped.policies):
        (tmp_path / "copy" / f"{one.name}.yaml").write_text(run("show", one.name).output)
    again = load_policies([], tmp_path / "copy")
    for one in (shipped.default, *shipped.policies):
        other = again.named(one.name)
        assert other is not None
        assert texts(other) == texts(one)
        assert other.replies == one.replies


def test_show_knows_aliases_and_hosts() -> None:
    """And says which names there are when it knows none."""
    assert run("show", "hotmail").output.startswith("provider: outlook\n")
    assert run("show", "mx1.hc1.iphmx.com").output.startswith("provider: cisco\n")
    found = run("show", "nobody")
    assert found.exit_code == 2
    assert "there are default, barracuda, cisco" in found.stderr


def test_the_schema_is_json() -> None:
    """For editors, with the dialect named."""
    assert json.loads(run("schema").output)["$schema"].startswith("https://json-schema.org/")


def test_explain_shows_origin_source_and_ceiling(own: Path) -> None:
    """Which policy and why, each value with its file, the sources that still hold, and the limit that binds."""
    found = run("explain", "ann@gmail.com", "--mx", "gmail-smtp-in.l.google.com.", "--policies", own).output
    assert found.startswith("gmail.com falls under gmail: it claims every mail host\n")
    assert "  gmail-smtp-in.l.google.com  gmail   *.google.com\n" in found
    table = found.partition("\n  key ")[2].partition("\n\n")[0]
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert lines["sessions.concurrency"] == ["1", f"{own}/gmail.yaml"]
    assert lines["sessions.rate"] == ["6/min", "gmail.yaml"]
    assert lines["timeouts.connect"] == ["10s", "default.yaml"]
    assert f"sessions ({own}/gmail.yaml)\n    measured by us" in found
    assert "refusals.rate                    250       1,500  binds at start and ceiling" in found
    assert all(line == line.rstrip() for line in found.splitlines())


def test_explain_says_when_no_policy_has_all_hosts() -> None:
    """Hosts of two providers, or of one and somebody: the default, and why."""
    found = run("explain", "example.org", "--mx", "mx1.hc1.iphmx.com", "--mx", "mx.example.org").output
    assert found.startswith(
        "example.org falls under default: its mail hosts fall under cisco and default, and no policy claims them all\n"
    )
    assert run("explain", "example.org", "--mx", "mx.example.org").output.startswith(
        "example.org falls under default: no policy claims its mail hosts\n"
    )


def test_explain_shows_terms_and_pools() -> None:
    """An operator sees the provider's rule, its address and date, before he decides."""
    found = run("explain", "hotmail.com", "--offline").output
    assert "it names hotmail.com among its domains; DNS was not asked" in found
    assert "Forbids namespace mining" in found
    assert "pm/Policies (read 2026-11-22)" in found
    assert "Only an identity with the pool tag outlook-safe may ask" in found


def test_explain_promises_no_rate_where_nothing_is_asked() -> None:
    """Yahoo's replies mean nothing, so there is no ceiling to show."""
    found = run("explain", "yahoo.com", "--offline").output
    assert "no session is opened, the result is provider_unverifiable" in found
    assert "Addresses an hour" not in found


def test_explain_asks_dns(name_server: str) -> None:
    """Without hosts given it resolves the domain, here at a name server of the test's own."""
    found = run("explain", "firm.lab", "--dns", name_server).output
    assert found.startswith("firm.lab falls under gmail: it claims every mail host\n")
    assert "aspmx.l.google.com" in found


def test_explain_speaks_json(own: Path) -> None:
    """The same facts for programs."""
    found = json.loads(run("explain", "x.com", "--mx", "aspmx.l.google.com", "--json", "--policies", own).output)
    assert (found["policy"], found["hosts"][0]["pattern"]) == ("gmail", "*.google.com")
    assert found["values"]["sessions.concurrency"] == {"value": 1, "from": f"{own}/gmail.yaml"}
    assert found["ceilings"]["start"]["binding"] == "refusals.rate"
    assert found["ceilings"]["start"]["hours"] == {"1000": 4.0, "10000": 40.0}


@pytest.mark.parametrize("target", ["no spaces@x.com", "@", "x@", "..", ""])
def test_what_is_no_address_is_refused(target: str) -> None:
    """One sentence and exit 2."""
    found = run("explain", target, "--offline")
    assert found.exit_code == 2
    assert "is neither an address nor a domain" in found.stderr


def test_a_narrow_terminal_gets_a_narrow_page() -> None:
    """No line but that of an address on the web is longer than 80 columns, where the terminal has so many."""
    reader, terminal = pty.openpty()
    environ = os.environ | {"COLUMNS": "80"}
    command = [sys.executable, "-m", "engine", "policy", "explain", "gmail.com", "--offline"]
    process = subprocess.Popen(command, stdout=terminal, env=environ)
    os.close(terminal)
    page = b""
    with contextlib.suppress(OSError):  # the other side closes
        while block := os.read(reader, 4096):
            page += block
    os.close(reader)
    assert process.wait() == 0
    lines = page.decode().splitlines()
    assert [line for line in lines if len(line) > 80 and "https://" not in line] == []
    assert any(line.endswith("gmail.yaml") for line in lines)


@pytest.mark.parametrize("host", ["", "a b", "192.0.2.1", "localhost"])
def test_what_is_no_mail_host_is_refused(host: str) -> None:
    """An address or a typing mistake would fall under `default`, and say nothing."""
    found = run("explain", "example.org", "--mx", host)
    assert found.exit_code == 2
    assert f"--mx {host}: expected the name of a mail host, for example mx.example.com" in found.stderr


def test_the_transcripts_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file in docs/policies.md is as shown, and each command prints what stands there, up to a line of dots."""
    monkeypatch.chdir(tmp_path)
    docs = DOCS.read_text()
    for content in re.findall(r"```yaml\n(# \S+\n.*?)```", docs, re.DOTALL):
        path = Path(content.split()[1])
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    transcripts = re.findall(r"```console\n\$ engine policy (.*?)\n(.*?)```", docs, re.DOTALL)
    assert len(transcripts) >= 4
    for command, shown in transcripts:
        found = run(*command.split())
        printed = found.stderr + found.stdout
        if shown.endswith("\n...\n"):
            printed = printed[: len(shown) - len("...\n")] + "...\n"
        assert printed == shown


def test_every_key_and_command_is_documented() -> None:
    """docs/policies.md names every key of a file, the command reference every command and option."""
    docs = DOCS.read_text()
    for key in KEYS:
        assert f"`{key.path}`" in docs, key.path
    for name in (*ROW_KEYS, "provider", "sources", "replies"):
        assert f"`{name}`" in docs, name
    docs = DOCS.with_name("command-reference.md").read_text()
    for name, command in policy.commands.items():
        assert f"engine policy {name}" in docs
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option in docs, option
