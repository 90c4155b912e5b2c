"""`engine verify` as its user meets it: a process of its own, its exit code, what it prints and what it leaves."""

from __future__ import annotations

import csv
import io
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.cli.verify import _HangUp
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

LAB = SHIPPED.parent
LIMIT_S = 40
SPEC = {
    "personas": {"sluggish": {"delay": {"rcpt": "35ms"}, "pipelining": False, "starttls": False}},
    "domains": {
        "normal.lab": {"mailboxes": ["ada", "grace"]},
        "slow.lab": {"persona": "sluggish", "mailboxes": [f"u{n:02}" for n in range(1, 41)]},
    },
}
SLOW = [f"u{n:02}@slow.lab" for n in range(1, 41)]
CONSENT = ("--consent", "TICKET-7", "--consent-by", "A. Owner")


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture
def where(tmp_path):
    """A folder with a list, to work in."""
    (tmp_path / "list.txt").write_text("ada@normal.lab\nnix@normal.lab\n")
    (tmp_path / "slow.txt").write_text("".join(f"{row}\n" for row in SLOW))
    return tmp_path


@pytest.fixture
def environment(tmp_path):
    """An account that has never seen the engine."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ENGINE_", "XDG_"))}
    return clean | {"HOME": str(tmp_path / "home"), "COLUMNS": "200"}


@pytest.fixture
def engine(where, environment):
    """Runs `python -m engine` in `where`."""

    def run(*words, given="", **more):
        command = [sys.executable, "-m", "engine", *map(str, words)]
        return subprocess.run(
            command, cwd=where, env=environment | more, input=given, capture_output=True, text=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def started(where, environment):
    """`with started(*words) as process`: `python -m engine` in the background; it does not outlive the test."""

    @contextmanager
    def start(*words):
        command = [sys.executable, "-m", "engine", *map(str, words)]
        process = subprocess.Popen(
            command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    return start


@pytest.fixture
def on_lab(lab, where):
    """The options that point a run at the lab."""
    return (
        "--identity", LAB / "identity.yaml", "--policies", LAB / "policies", "--dns", f"127.0.0.1:{lab.dns_port}",
        "--smtp-port", lab.smtp_port, "--allow-private", "--state", where / "state" / "state.db",
    )  # fmt: skip


@pytest.fixture
def enhanced(on_lab):
    return ("--mode", "enhanced", *CONSENT, *on_lab)


def rows_of(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def until_asked(lab, domain, count, process):
    """Wait until so many RCPTs of a domain are in the lab's log."""
    ends = time.monotonic() + LIMIT_S
    while time.monotonic() < ends and process.poll() is None:
        asked = [row for row in lab.log() if row["event"] == "command" and f"@{domain}>" in row["text"]]
        if len(asked) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} RCPTs at {domain}: {process.stderr.read() if process.stderr else ''}")


# --- it works -----------------------------------------------------------------------------------------------------


def test_a_list_in_verdicts_out(engine, enhanced, where):
    """Exit 0, the table on stdout, nothing on stderr but what the operator has to know, the rows in the file."""
    done = engine("verify", "list.txt", "-o", "out.csv", *enhanced)
    assert done.returncode == 0, done.stderr
    assert [(row["address"], row["reason"]) for row in rows_of(where / "out.csv")] == [
        ("ada@normal.lab", "rcpt_ok"), ("nix@normal.lab", "mailbox_not_found"),
    ]  # fmt: skip
    assert "rcpt_ok" in done.stdout
    assert "out.csv.journal" in done.stdout
    assert done.stderr.startswith("engine: private mail hosts are admitted")
    assert len(done.stderr.splitlines()) == 1


def test_stdin_to_stdout(engine, enhanced):
    """`-` for both: rows and nothing else on stdout, all talk on stderr."""
    done = engine(
        "verify", "-", "-o", "-", *enhanced, given="mail,n\nada@normal.lab,1\nnix@normal.lab,2\nada@normal.lab,3\n"
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert sorted((row["n"], row["reason"]) for row in rows) == [
        ("1", "rcpt_ok"),
        ("2", "mailbox_not_found"),
        ("3", "rcpt_ok"),
    ]
    assert ".journal" in done.stderr


def test_the_lab_needs_no_other_option(engine, where):
    """`--lab` brings identity, consent, DNS and policies, and keeps a state of its own."""
    done = engine("verify", "list.txt", "-o", "out.jsonl", "--mode", "enhanced", "--lab", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in where.rglob("state.db")] == ["state.db"]
    assert (where / "home") in next(where.rglob("state.db")).parents


def test_no_connect_needs_no_identity(engine, lab, where):
    """Syntax, domain and mail hosts from a machine that has nothing else to offer."""
    done = engine(
        "verify",
        "list.txt",
        "-o",
        "out.csv",
        "--mode",
        "standard",
        "--no-connect",
        "--dns",
        f"127.0.0.1:{lab.dns_port}",
        "--allow-private",
    )
    assert done.returncode == 0, done.stderr
    assert {row["reason"] for row in rows_of(where / "out.csv")} == {"mailbox_unchecked"}


@pytest.mark.parametrize(
    "words", [[sys.executable, "-W", "error", "-m", "engine"], [str(Path(sys.executable).with_name("engine"))]]
)
def test_help_starts_in_a_new_process_without_a_warning(words, environment):
    """The module and the console script; patching comes before all that it patches."""
    done = subprocess.run(
        [*words, "--help"], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "verify" in done.stdout


# --- wrong use ----------------------------------------------------------------------------------------------------

BAD_POLICY = "provider: odd\nmatch: {mx: ['*.odd.lab']}\nrecipients: {rate: 100}\n"
NO_SENDER = "helo_name: probe.lab\nmail_from_address: ''\npublic_address: 127.0.0.1\n"
EXPIRED = "reference: T\ngranted_by: A\ngranted_at: 2026-01-01T00:00:00Z\nexpires: 2026-02-01T00:00:00Z\n"

# name: (files to write, words of the command in place of the usual ones, what the sentence names)
WRONG = {
    "a missing list": ({}, {"INPUT": "nobody.csv"}, "nobody.csv"),
    "a directory": ({}, {"INPUT": "."}, "directory"),
    "an empty list": ({"empty.csv": ""}, {"INPUT": "empty.csv"}, "empty.csv is empty"),
    "a blank list": ({"blank.csv": "\n\n \n"}, {"INPUT": "blank.csv"}, "blank.csv is empty"),
    "no address column": ({"two.csv": "a,b\n1,2\n3,4\n"}, {"INPUT": "two.csv"}, "--column"),
    "another column": ({"two.csv": "a,mail\n1,ada@normal.lab\n"}, {"INPUT": "two.csv", "--column": "email"}, "email"),
    "a spreadsheet": ({"book.csv": "PK\x03\x04"}, {"INPUT": "book.csv"}, "book.csv"),
    "no list": ({}, {"INPUT": ""}, "INPUT"),
    "no output": ({}, {"-o": None}, "OUTPUT"),
    "the list as output": ({}, {"-o": "list.txt"}, "list.txt is the input"),
    "the list as output by another name": ({}, {"-o": "./../{here}/list.txt"}, "is the input"),
    "an output in no folder": ({}, {"-o": "nowhere/out.csv"}, "nowhere/out.csv"),
    "a directory as output": ({}, {"-o": "."}, "directory"),
    "a journal in no folder": ({}, {"--journal": "nowhere/j"}, "nowhere/j"),
    "a journal that is none": ({"notes.txt": "my notes, my only copy\n" * 50}, {"--journal": "notes.txt"}, "notes.txt"),
    "the list as journal": ({}, {"--journal": "list.txt"}, "list.txt"),
    "a state in no possible folder": ({}, {"--state": "list.txt/state.db"}, "list.txt"),
    "a bad policy": ({"odd/odd.yaml": BAD_POLICY}, {"--policies": "odd"}, "odd.yaml:3"),
    "no policies": ({}, {"--policies": "nowhere"}, "nowhere"),
    "an unknown mode": ({}, {"--mode": "fast"}, "fast"),
    "a number without a unit": ({}, {"--deadline": "5"}, "--deadline"),
    "no number": ({}, {"--concurrency": "many"}, "many"),
    "no sessions": ({}, {"--concurrency": "0"}, "0"),
    "a port that is none": ({}, {"--smtp-port": "99999"}, "99999"),
    "a name server by name": ({}, {"--dns": "dns.example.org"}, "dns.example.org"),
    "no consent": ({}, {"--consent": None, "--consent-by": None}, "--consent"),
    "half a consent": ({}, {"--consent-by": None}, "--consent-by"),
    "a consent of tomorrow": ({}, {"--consent-at": "2999-01-01"}, "future"),
    "an expired consent": ({"c.yaml": EXPIRED}, {"--consent-file": "c.yaml"}, "expired"),
    "no identity": ({}, {"--identity": None}, "--identity"),
    "a missing identity": ({}, {"--identity": "me.yaml"}, "me.yaml"),
    "half an identity": ({"me.yaml": "helo_name: probe.lab\n"}, {"--identity": "me.yaml"}, "mail_from_address"),
    "an empty sender": ({"me.yaml": NO_SENDER}, {"--identity": "me.yaml"}, "mail_from_address"),
    "a missing suppression list": ({}, {"--suppress": "never.txt"}, "never.txt"),
    "a bad suppression list": ({"never.txt": "ada@normal.lab\n@@\n"}, {"--suppress": "never.txt"}, "never.txt:2"),
    "a pipe that is resumed": ({}, {"-o": "-", "--resume": True}, "--resume"),
    "a missing settings file": ({}, {"--config": "none.yaml"}, "none.yaml"),
    "metrics on no address": ({}, {"--metrics": "everywhere:9464"}, "--metrics everywhere:9464"),
    "metrics on no port": ({}, {"--metrics": "127.0.0.1:http"}, "--metrics 127.0.0.1:http"),
    "a bad settings file": ({"s.yaml": "identity: [\n"}, {"--config": "s.yaml"}, "s.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_sentence_and_exit_2(name, engine, enhanced, lab, where):
    """It says what is wrong and where, before anything is sent; what was there stays as it was."""
    files, changes, named = WRONG[name]
    for path, text in files.items():
        (where / path).parent.mkdir(exist_ok=True)
        (where / path).write_text(text)
    usual = {}
    words = iter(enhanced)
    for word in words:
        usual[word] = True if word == "--allow-private" else next(words)
    usual = {"INPUT": "list.txt", "-o": "out.csv", **usual} | {
        key: value.replace("{here}", where.name) if isinstance(value, str) else value for key, value in changes.items()
    }
    source = usual.pop("INPUT")
    command = ["verify", *([source] if source else [])]
    for key, value in usual.items():
        command += [] if value is None else [key] if value is True else [key, value]
    before = {path: path.read_bytes() for path in where.iterdir() if path.is_file()}
    questions, connections = lab.stats()["queries"], lab.stats().get("connect", 0)
    done = engine(*command)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert "fault of ours" not in done.stderr
    assert (
        sum(
            line.startswith(("engine: ", "Error: ")) and "private mail hosts" not in line
            for line in done.stderr.splitlines()
        )
        == 1
    )
    assert (lab.stats()["queries"], lab.stats().get("connect", 0)) == (questions, connections)
    assert {path: path.read_bytes() for path in where.iterdir() if path.is_file()} == before


def test_without_a_mode_it_shows_both_and_the_command(engine, on_lab):
    """There is no default: exit 2, what each mode does, and what to type."""
    done = engine("verify", "list.txt", "-o", "out.csv", *on_lab)
    assert done.returncode == 2
    for word in ("--mode", "standard", "enhanced", "engine verify list.txt -o out.csv --mode standard", "--consent"):
        assert word in done.stderr


def test_an_unfit_identity_is_refused_before_a_server_is_dialled(engine, on_lab, lab, where):
    """A HELO name that is not ours: exit 2, and the way to go on."""
    (where / "me.yaml").write_text(
        "helo_name: mail.gmail.com\nmail_from_address: probe@probe.lab\npublic_address: 127.0.0.1\n"
    )
    connections = lab.stats().get("connect", 0)
    words = [word if word != LAB / "identity.yaml" else "me.yaml" for word in on_lab]
    done = engine("verify", "list.txt", "-o", "out.csv", "--mode", "enhanced", *CONSENT, *words)
    assert done.returncode == 2
    assert "--accept-identity-risk" in done.stderr
    assert lab.stats().get("connect", 0) == connections
    again = engine("verify", "list.txt", "-o", "out.csv", "--mode", "enhanced", *CONSENT, *words)
    assert "--resume" not in again.stderr, "a refused run left a journal that stands in the way of the next one"


def test_bad_rows_never_end_a_run(engine, enhanced, where):
    """Undecodable bytes, missing cells and nonsense are told in their rows."""
    (where / "bad.csv").write_bytes(
        b'mail,n\nada@normal.lab,1\n\xff\xfe@normal.lab,2\n\n,3\n"unclosed,4\nnix@normal.lab,5\n'
    )
    done = engine("verify", "bad.csv", "-o", "out.csv", *enhanced)
    assert done.returncode == 0, done.stderr
    with (where / "out.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["reason"] == "rcpt_ok"
    assert os.fsencode(rows[1]["mail"]) == b"\xff\xfe@normal.lab", "the caller's cells are kept to the byte"
    assert {row["reason"] for row in rows[1:]} <= {"syntax_invalid", "mailbox_not_found"}
    assert all(row["detail"] for row in rows[1:3])


# --- watched ------------------------------------------------------------------------------------------------------


def line_with(words, stream):
    """The first line from here on that has these words."""
    return next(line for line in iter(stream.readline, "") if words in line)


def read(url):
    """Status and text of a page."""
    with urllib.request.urlopen(url, timeout=LIMIT_S) as reply:
        return reply.status, reply.read().decode()


def test_a_run_is_watched_while_it_works(started, enhanced, lab, where):
    """--metrics serves counters and states of this very moment; SIGUSR1 tells of each lane; the run goes on."""
    asked = sum(row["event"] == "command" and "@slow.lab>" in row["text"] for row in lab.log())
    with started("verify", "slow.txt", "-o", "out.csv", "--metrics", "127.0.0.1:0", *enhanced) as process:
        url = line_with("metrics at", process.stderr).split()[-1]
        assert url.startswith("http://127.0.0.1:")
        until_asked(lab, "slow.lab", asked + 12, process)
        status, page = read(url)
        assert (status, read(url.replace("/metrics", "/healthz"))[0]) == (200, 200)
        assert read(url.replace("/metrics", "/readyz")) == (200, "ready\n")
        process.send_signal(signal.SIGUSR1)
        assert "1 lanes in memory" in line_with("engine:", process.stderr)
        head, row = process.stderr.readline(), process.stderr.readline()
        assert process.wait(LIMIT_S) == 0, process.stderr.read()
        assert process.stderr.read() == ""
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert values["engine_smtp_replies_total", "2xx", "default", "rcpt"] > 0
    assert values["engine_sessions_open", "default"] >= 1
    assert sum(value for key, value in values.items() if key[0] == "engine_lanes") == 1
    assert values["engine_lane_pace", "default", "lab"] > 0
    assert values["engine_identity_state", "enabled", "lab"] == 1
    assert values["engine_hub_lag_seconds_count",] > 0
    assert "slow.lab" not in page
    assert head.split()[:2] == ["lane", "breaker"]
    assert row.split()[1] == "closed"
    assert len(rows_of(where / "out.csv")) == len(SLOW)


def test_nothing_listens_unless_it_is_told_to(engine, enhanced):
    """Metrics are off by default; the environment can name where they are, as the flag does."""
    assert "metrics at" not in engine("verify", "list.txt", "-o", "out.csv", *enhanced).stderr
    named = engine("verify", "list.txt", "-o", "out2.csv", *enhanced, ENGINE_METRICS="0")
    assert "metrics at http://127.0.0.1:" in named.stderr
    assert named.returncode == 0


# --- stop and go on -----------------------------------------------------------------------------------------------


def resumed(stderr):
    """The words of the command that a stopped run names."""
    (line,) = (line for line in stderr.splitlines() if "Go on with: " in line)
    words = shlex.split(line.partition("Go on with: ")[2])
    assert words[0] == "engine"
    return words[1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_the_printed_command_finishes_the_job(engine, started, enhanced, lab, where, number):
    """Exit 1, everything settled kept in OUTPUT.part, and the command to type does the rest and asks nothing again."""
    (where / "my list.txt").write_text((where / "slow.txt").read_text())
    asked = sum(row["event"] == "command" and "@slow.lab>" in row["text"] for row in lab.log())
    with started("verify", "my list.txt", "-o", "out.csv", *enhanced) as process:
        until_asked(lab, "slow.lab", asked + 25, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, stderr
    assert not (where / "out.csv").exists()
    part = {row["address"] for row in rows_of(where / "out.csv.part")}
    assert part
    since = time.monotonic()
    done = engine(*resumed(stderr))
    assert done.returncode == 0, done.stderr
    assert {row["address"]: row["reason"] for row in rows_of(where / "out.csv")} == dict.fromkeys(SLOW, "rcpt_ok")
    again = {row["text"] for row in lab.log() if row["t"] > since and row["event"] == "command"}
    assert not [address for address in part if f"RCPT TO:<{address}>" in again]
    assert not (where / "out.csv.part").exists()


@pytest.mark.parametrize("ending", ["closed", "stopped"])
def test_a_pipe_that_ends_early_says_how_to_get_all_rows(engine, started, enhanced, lab, where, ending):
    """Nobody reads any more, or Ctrl-C: exit 1 with a command that works, and asks nobody again whose row was told."""
    with started("verify", "slow.txt", "-o", "-", *enhanced) as process:
        told = [process.stdout.readline() for _ in range(3)]
        if ending == "closed":
            process.stdout.close()
            stderr = process.stderr.read()
            process.wait(timeout=LIMIT_S)
        else:
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, stderr
    assert ("nobody reads the rows any more" in stderr) is (ending == "closed")
    since = time.monotonic()
    done = engine(*resumed(stderr))
    assert done.returncode == 0, done.stderr
    assert {row["address"]: row["reason"] for row in rows_of(where / "FILE")} == dict.fromkeys(SLOW, "rcpt_ok")
    again = {row["text"] for row in lab.log() if row["t"] > since and row["event"] == "command"}
    assert not [row for row in told[1:] if f"RCPT TO:<{row.partition(',')[0]}>" in again]


def test_two_signals_stop_at_once_and_nothing_is_lost(engine, started, enhanced, lab, where):
    """The second Ctrl-C does not wait for anybody; the command to go on is printed all the same."""
    asked = sum(row["event"] == "command" and "@slow.lab>" in row["text"] for row in lab.log())
    with started("verify", "slow.txt", "-o", "out.csv", *enhanced) as process:
        until_asked(lab, "slow.lab", asked + 5, process)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=LIMIT_S)
    done = engine(*resumed(stderr))
    assert done.returncode == 0, done.stderr
    assert {row["address"]: row["reason"] for row in rows_of(where / "out.csv")} == dict.fromkeys(SLOW, "rcpt_ok")


def test_a_second_run_under_the_same_identity_is_told_who_holds_it(engine, started, enhanced, lab, where):
    """Exit 2 with the holder's process and job; the holder does not notice."""
    asked = sum(row["event"] == "command" and "@slow.lab>" in row["text"] for row in lab.log())
    with started("verify", "slow.txt", "-o", "slow.csv", *enhanced) as process:
        until_asked(lab, "slow.lab", asked + 1, process)
        process.send_signal(signal.SIGSTOP)  # however slow the second one starts, the first has not ended yet
        try:
            second = engine("verify", "list.txt", "-o", "out.csv", *enhanced)
        finally:
            process.send_signal(signal.SIGCONT)
        assert second.returncode == 2
        assert f"process {process.pid}" in second.stderr
        assert not (where / "out.csv.journal").exists()
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0


def test_an_unfinished_journal_without_resume_is_exit_2(engine, started, enhanced, lab, where):
    """And so is `--resume` with another list: the journal is of another job."""
    asked = sum(row["event"] == "command" and "@slow.lab>" in row["text"] for row in lab.log())
    with started("verify", "slow.txt", "-o", "out.csv", *enhanced) as process:
        until_asked(lab, "slow.lab", asked + 3, process)
        process.kill()
        process.communicate()
    plain = engine("verify", "slow.txt", "-o", "out.csv", *enhanced)
    other = engine("verify", "list.txt", "-o", "out.csv", *enhanced, "--resume")
    assert (plain.returncode, other.returncode) == (2, 2)
    assert "--resume" in plain.stderr
    assert "another list" in other.stderr


@pytest.mark.parametrize(("at_terminal", "does"), [(True, "stop"), (False, "reload")])
def test_a_hang_up_reloads_unless_it_means_that_the_terminal_is_gone(at_terminal, does):
    """Standard error is no terminal here: whoever had one has lost it, a daemon never had any."""
    done = []
    verification = SimpleNamespace(stop=lambda: done.append("stop"), reload=lambda: done.append("reload"))
    _HangUp(verification, at_terminal=at_terminal)()
    assert done == [does]
