"""`engine doctor`: it tells what is wrong with a machine, and dials nobody unasked."""

from __future__ import annotations

import json
import resource
import socket
from contextlib import closing, nullcontext
from dataclasses import replace

import pytest
from click.testing import CliRunner

from engine.cli.doctor import _block_lists, _lines
from engine.cli.main import cli
from engine.cli.rbl import Lists
from engine.core.identity import Identity, Status
from engine.flow import machine
from engine.flow.listener import Listener
from engine.flow.machine import PUBLIC_RESOLVERS, Check, clock, egress, files, name_servers, state_folder
from engine.flow.preflight import Finding
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.metrics import Metrics
from engine.net.resolver import LookupFailedError, Resolver
from engine.reputation.registry import load_registry

SPEC = {
    "personas": {"unwilling": {"replies": {"greeting": "554 no"}}, "mute": {"delay": {"connect": "30s"}}},
    "domains": {
        "normal.lab": {"mailboxes": ["ada"]},
        "unwilling.lab": {"persona": "unwilling"},
        "mute.lab": {"persona": "mute"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture
def doctor(lab, tmp_path, monkeypatch):
    """`doctor(*options)`: its findings by check and its exit code, on an account that has never seen the engine."""
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("ENGINE_STATE", raising=False)

    def run(*options):
        words = ["doctor", "--json", "--dns", f"127.0.0.1:{lab.dns_port}", "--allow-private", *map(str, options)]
        done = CliRunner().invoke(cli, words)
        assert isinstance(done.exception, SystemExit | None), done.exception
        run.all = json.loads(done.stdout)
        return {each["check"]: each for each in json.loads(done.stdout)}, done.exit_code

    return run


class Servers:
    """A resolver's answers, made up: only what `name_servers` asks for."""

    def __init__(self, *servers, gives=(), reason=""):
        self.servers, self._gives, self._reason = servers, gives, reason

    def addresses(self, name):
        if self._reason:
            raise LookupFailedError(name, self._reason)
        return self._gives


def outcomes(findings):
    found = list(findings)
    assert all(isinstance(each, Finding) and each.say.endswith((".", ").")) for each in found), found
    return [(each.check, each.outcome) for each in found]


def test_a_fit_machine_fails_nothing(doctor, lab, monkeypatch):
    """With the lab's identity and a host to dial, all is known and well, and the exit code is 0."""
    monkeypatch.setattr("engine.cli.doctor.clock", lambda: Finding("clock", Check.PASS, "The clock is kept right."))
    found, code = doctor("--identity", SHIPPED.parent / "identity.yaml", "--egress", f"mx.normal.lab:{lab.smtp_port}",
                         "--concurrency", 10)  # fmt: skip
    assert {check: each["outcome"] for check, each in found.items()} == dict.fromkeys(
        ["files", "state", "clock", "resolver", "resolver_own", "public_address", "fcrdns", "helo_name",
         "helo_resolves", "mail_from", "mail_from_domain", "egress"], "pass",
    )  # fmt: skip
    assert code == 0


def test_nobody_is_dialled_unasked(doctor, lab):
    """Without --egress no mail host sees a connection, and port 25 is unknown, which is no failure of its own."""
    before = lab.stats().get("connect", 0)
    found, _ = doctor("--identity", SHIPPED.parent / "identity.yaml")
    assert found["egress"]["outcome"] == "unknown"
    assert "--egress" in found["egress"]["say"]
    assert lab.stats().get("connect", 0) == before


def test_a_failure_is_told_by_the_exit_code(doctor, lab):
    """Automation reads 1, and the finding says what to mend."""
    found, code = doctor("--egress", f"mx.unwilling.lab:{lab.smtp_port}")
    assert (found["egress"]["outcome"], code) == ("fail", 1)
    assert "554" in found["egress"]["say"]


def test_without_an_identity_the_rest_is_looked_at(doctor):
    """An identity that is not set up yet is unknown, and how to make one is said."""
    found, _ = doctor()
    assert found["identity"]["outcome"] == "unknown"
    assert "engine identity init" in found["identity"]["say"]


def test_findings_say_whose_they_are(doctor, tmp_path, lab):
    """Of two identities each has its own, by name; who can't bind his address is not dialled for."""
    (tmp_path / "two.yaml").write_text(
        "- {name: one, helo_name: probe.lab, mail_from_address: probe@probe.lab, public_address: 127.0.0.1}\n"
        "- {name: two, helo_name: probe.lab, mail_from_address: probe@probe.lab, public_address: 127.0.0.2,\n"
        "   bind_address: 192.0.2.9}\n"
    )
    words = ["--identity", tmp_path / "two.yaml", "--egress", f"mx.normal.lab:{lab.smtp_port}"]
    _, code = doctor(*words)
    told = [each for each in doctor.all if each["check"] in ("public_address", "bind_address", "egress")]
    assert [(each["check"], each["outcome"], each["seen"]["identity"]) for each in told] == [
        ("public_address", "pass", "one"), ("bind_address", "fail", "two"), ("public_address", "pass", "two"),
        ("egress", "pass", "one"),
    ]  # fmt: skip
    assert all(each["say"].startswith(f"{each['seen']['identity']}: ") for each in told)
    assert code == 1


def test_block_lists_are_asked_when_told_to(doctor, lab, tmp_path):
    """By their own test entries, through the name servers that were named; else they are not mentioned."""
    found, _ = doctor()
    assert "block_lists" not in found
    found, code = doctor("--block-lists")  # the lab knows no list of the world
    assert (found["block_lists"]["outcome"], code) == ("fail", 1)
    assert "No list answered" in found["block_lists"]["say"]


def test_a_list_that_answers_is_counted(lab, monkeypatch):
    """A resolver that lists answer is fit for them."""
    shipped = load_registry(None, (), shipped=SHIPPED.with_name("lists.yaml"))
    healthy = replace(shipped, lists={name: shipped.lists[name] for name in ("bl-lab", "uri-lab", "emptied-lab")})
    monkeypatch.setattr("engine.cli.doctor.opened", lambda *_: nullcontext(Lists(healthy, (lab.dns,))))
    found = _block_lists(None, ())
    assert found.outcome is Check.PASS
    assert "3 of 3 block lists answer" in found.say


def test_sentences_are_folded_where_people_look():
    """On a terminal beside their names, to its width; in a pipe each finding is one line."""
    told = [Finding("files", Check.PASS, "Few words."), Finding("resolver_own", Check.FAIL, "word " * 40 + "end.")]
    for width in (80, 120):
        lines = "\n".join(_lines(told, width)).splitlines()
        assert max(map(len, lines)) <= width
        assert lines[1].startswith("fail  resolver_own  word")
        assert all(line[:20].isspace() and line[20] != " " for line in lines[2:])
        assert " ".join(lines[1:]).split()[2:] == told[1].say.split()
    assert len(list(_lines(told, 0))) == 2


def test_a_closed_port_fails_by_what_the_line_says(lab, monkeypatch):
    """Refused, silent, or somebody who does not greet: each fails, each in its own words."""
    monkeypatch.setattr(machine, "GREETING_S", 0.3)
    with closing(socket.socket()) as unused, closing(Resolver([lab.dns], allow_private=True)) as resolver:
        unused.bind(("127.0.0.1", 0))
        targets = [unused.getsockname(), ("mx.mute.lab", lab.smtp_port), ("nowhere.lab", 25)]
        refused, mute, nowhere = egress(targets, resolver, None, allow_private=True)
    assert (refused.outcome, mute.outcome, nowhere.outcome) == (Check.FAIL, Check.FAIL, Check.UNKNOWN)
    assert "refused" in refused.say.lower()
    assert "says nothing" in mute.say


def test_private_hosts_are_not_dialled_without_leave(lab):
    """A name that leads to a private address is left alone."""
    with closing(Resolver([lab.dns], allow_private=True)) as resolver:
        (found,) = egress([("mx.normal.lab", lab.smtp_port)], resolver, None)
    assert found.outcome is Check.UNKNOWN


def test_few_files_fail_with_the_number_that_would_do():
    """The remedy names a concurrency that this process can have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert files(1).outcome is Check.PASS
    found = files(hard)
    assert found.outcome is Check.FAIL
    assert f"--concurrency {hard - machine.FILES_BESIDE}" in found.say


def test_a_state_folder_has_to_be_writable_and_roomy(tmp_path, monkeypatch):
    """A file where the folder should be, or a full disk, is told before a run meets it."""
    assert state_folder(tmp_path / "new" / "state.db").outcome is Check.PASS
    (tmp_path / "file").write_text("")
    assert state_folder(tmp_path / "file" / "state.db").outcome is Check.FAIL
    monkeypatch.setattr(machine, "ROOM_BYTES", 1 << 80)
    assert "left" in state_folder(tmp_path / "state.db").say
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_clock_is_the_kernels_to_tell():
    """Whatever it says is a finding; a machine that nobody sets fails, and where one may not ask it is unknown."""
    assert clock().outcome in Check


@pytest.mark.parametrize(
    ("servers", "expected"),
    [
        (Servers("127.0.0.1:53"), [("resolver", Check.PASS), ("resolver_own", Check.PASS)]),
        (Servers("[::1]:53"), [("resolver", Check.PASS), ("resolver_own", Check.PASS)]),
        (Servers("8.8.8.8:53"), [("resolver", Check.PASS), ("resolver_own", Check.FAIL)]),
        (Servers("[2620:fe::fe]:53"), [("resolver", Check.PASS), ("resolver_own", Check.FAIL)]),
        (Servers("203.0.114.1:53"), [("resolver", Check.PASS), ("resolver_own", Check.UNKNOWN)]),
        (Servers("127.0.0.1:53", gives=("198.51.100.7",)), [("resolver", Check.FAIL)]),
        (Servers("127.0.0.1:53", reason="dns_timeout"), [("resolver", Check.FAIL)]),
    ],
)
def test_name_servers_have_to_answer_and_not_to_lie(servers, expected):
    """Silence and made-up names fail; a public resolver fails because block lists refuse it."""
    assert outcomes(name_servers(servers)) == expected


def test_public_resolvers_are_addresses():
    """Each stands in the form in which the resolver names its servers."""
    for each in PUBLIC_RESOLVERS:
        family = socket.AF_INET6 if ":" in each else socket.AF_INET
        assert socket.inet_ntop(family, socket.inet_pton(family, each)) == each


def test_alive_asks_the_engine_that_runs_here(monkeypatch):
    """A container's health check: 0 while /healthz answers, 1 when nothing does, 2 when it can't know where."""
    import threading

    import gevent

    monkeypatch.delenv("ENGINE_METRICS", raising=False)
    assert CliRunner().invoke(cli, ["doctor", "--alive"]).exit_code == 2
    started, over, where = threading.Event(), threading.Event(), []

    def serve():
        listener = Listener(("0.0.0.0", 0), Metrics(), lambda: "")
        listener.start()
        where.append(listener.url.replace("http://", ""))
        started.set()
        while not over.is_set():
            gevent.sleep(0.01)
        listener.stop()

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait(10)
    monkeypatch.setenv("ENGINE_METRICS", where[0])
    alive = CliRunner().invoke(cli, ["doctor", "--alive"])
    over.set()
    thread.join()
    assert (alive.exit_code, alive.output) == (0, "alive\n")
    assert CliRunner().invoke(cli, ["doctor", "--alive"]).exit_code == 1


@pytest.mark.parametrize("target", ["", ":25", "mx.lab:x", "mx.lab:0", "mx.lab:70000"])
def test_a_target_is_a_host(target):
    """What is no host and port is wrong use, and nothing is sent."""
    done = CliRunner().invoke(cli, ["doctor", "--dns", "127.0.0.1:9", "--egress", target])
    assert done.exit_code == 2


def test_a_bind_address_of_another_machine_fails(doctor):
    """The source address has to be one of this machine's."""
    found, code = doctor("--helo", "probe.lab", "--mail-from", "probe@probe.lab", "--public-ip", "127.0.0.1",
                         "--bind", "203.0.113.9")  # fmt: skip
    assert (found["bind_address"]["outcome"], code) == ("fail", 1)
    assert Identity("x", "", "").status is Status.ENABLED
