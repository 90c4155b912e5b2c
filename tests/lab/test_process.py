"""The lab as a process: its life, its log, its control."""

from __future__ import annotations

import os
import smtplib
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.lab.persona import LabError
from engine.lab.process import LabProcess

Dial = Callable[[str], smtplib.SMTP]
ONE = {"domains": {"one.lab": {"mailboxes": ["ada"], "expect": {"rcpt_ok": ["ada"]}}}}


def gone(pid: int) -> bool:
    """Whether a process is dead; one that only waits to be reaped is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_log_has_every_command_and_reply_in_order(dial: Dial, lab: LabProcess) -> None:
    """The judge: what was said, by whom, to whom, when, while the session is still open."""
    before = time.monotonic(), time.time()
    client = dial("mx.normal.lab")
    client.docmd("EHLO probe.lab")
    client.docmd("MAIL FROM:<probe@probe.lab>")
    client.docmd("RCPT TO:<adda@normal.lab>")
    rows = [row for row in lab.log() if row["t"] >= before[0]]
    client.quit()
    said = [(row["event"], row["text"].partition(" ")[0], row["domain"]) for row in rows]
    assert said == [
        ("connect", "", ""),
        ("reply", "220", ""),
        ("command", "EHLO", ""),
        ("reply", "250", ""),
        ("command", "MAIL", ""),
        ("reply", "250", ""),
        ("command", "RCPT", ""),
        ("reply", "550", "normal.lab"),
    ]
    (same,) = {(row["session"], row["host"], row["persona"], row["client"]) for row in rows}
    assert same[1:] == ("mx.normal.lab", "normal", "127.0.0.1")
    times = [row["t"] for row in rows]
    assert before[0] <= min(times) <= max(times) <= time.monotonic()
    assert before[1] <= rows[0]["at"] <= time.time()


def test_a_log_of_its_own_is_whole_after_stop(tmp_path: Path) -> None:
    """Sessions that are open at the end are in the file."""
    log = tmp_path / "lab.jsonl"
    with LabProcess(ONE, log=log) as lab, socket.create_connection(("127.20.1.1", lab.smtp_port), timeout=3) as sock:
        assert sock.recv(100).startswith(b"220 mx.one.lab")
        lab.stop()
        assert [row["event"] for row in lab.log()][:2] == ["connect", "reply"]


def test_a_persona_changes_in_mid_session(dial: Dial, lab: LabProcess) -> None:
    """A block in mid-run: the next command already meets it; reset takes it back."""
    client = dial("later.blocked.lab")
    client.ehlo()
    client.mail("a@probe.lab")
    assert client.rcpt("ada@blocking-later.lab")[0] == 250
    lab.set("blocking-later", block="rcpt")
    assert client.rcpt("grace@blocking-later.lab")[0] == 554
    lab.set("blocking-later", block="greeting")
    assert dial("later.blocked.lab").greeting[0] == 554
    lab.reset()
    assert client.rcpt("grace@blocking-later.lab")[0] == 250


def test_a_server_can_turn_its_coat(dial: Dial, lab: LabProcess) -> None:
    """Texts are fields too: it begins to accept everybody."""
    client = dial("mx.turncoat.lab")
    client.ehlo()
    client.mail("a@probe.lab")
    assert client.rcpt("x@turncoat.lab")[0] == 550
    lab.set("turncoat", replies={"unknown": "250 2.1.5 Ok"})
    assert client.rcpt("x@turncoat.lab")[0] == 250


def test_forgetting_begins_anew(dial: Dial, lab: LabProcess) -> None:
    """Greylists and busy counts are forgotten, changes of personas are not."""
    assert dial("mx.busy-once.lab").greeting[0] == 421
    assert dial("mx.busy-once.lab").greeting[0] == 220
    lab.set("busy-once", busy=2)
    lab.forget()
    assert [dial("mx.busy-once.lab").greeting[0] for _ in range(3)] == [421, 421, 220]


def test_a_wrong_change_is_an_error_and_changes_nothing(lab: LabProcess) -> None:
    """The message names the field, or the persona."""
    with pytest.raises(LabError, match="no persona 'nobody'"):
        lab.set("nobody", busy=1)
    with pytest.raises(LabError, match="'temper' is no field"):
        lab.set("normal", temper="bad")
    with pytest.raises(LabError, match="greylist: 'soon' is not a duration"):
        lab.set("normal", greylist="soon")
    assert lab.stats()["open"] >= 0


def test_without_a_log_it_counts(tmp_path: Path) -> None:
    """Benches want no log; the counts are there all the same."""
    with LabProcess(ONE, log=False) as lab:
        with smtplib.SMTP("127.20.1.1", lab.smtp_port, local_hostname="probe.lab", timeout=3) as client:
            client.ehlo()
        assert (lab.stats()["connect"], lab.stats()["command"]) == (1, 2)
        with pytest.raises(LabError, match="without a log"):
            lab.log()


def test_ports_can_be_given_and_a_taken_one_is_named() -> None:
    """One lab, then another at its ports."""
    with LabProcess(ONE, log=False) as lab:
        with pytest.raises(LabError, match=str(lab.smtp_port)):
            LabProcess(ONE, smtp_port=lab.smtp_port, log=False)
        with pytest.raises(LabError, match=f"DNS.*{lab.dns_port}"):
            LabProcess(ONE, dns_port=lab.dns_port, log=False)


def test_a_folder_of_its_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts wherever its user stands, be there a folder `engine` or not."""
    (tmp_path / "engine" / "lab").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with LabProcess(ONE, log=False) as lab:
        assert lab.hosts


def test_it_dies_with_its_parent() -> None:
    """Even kill -9 of the process that started it leaves no lab behind."""
    script = """
        import os, sys
        from engine.lab.process import LabProcess
        lab = LabProcess({"domains": {}}, log=False)
        print(lab.pid, flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    deadline = time.monotonic() + 5
    while not gone(pid):
        assert time.monotonic() < deadline
        os.sched_yield()


def test_it_needs_no_patched_process() -> None:
    """The lab imports nothing that warns, patched or not."""
    for first in ("", "from gevent import monkey; monkey.patch_all(); "):
        script = f"{first}from engine.lab.process import LabProcess\nwith LabProcess({ONE!r}) as lab: print(lab.hosts)"
        done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("2\n", "")
