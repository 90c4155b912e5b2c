"""Verification from end to end: the shipped lab, the life of a job, its files, and what a stop leaves behind."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing

import pytest

from engine.core.identity import Identity, Mode
from engine.core.reasons import REASONS
from engine.core.result import COLUMNS
from engine.flow import verification as module
from engine.flow.job import WrongUse
from engine.lab.process import LabProcess
from engine.store import audit
from engine.store.journal import Journal
from engine.store.lock import IdentityLock
from engine.store.writer import Writer

PATIENT = {
    "default": {
        "recipients": {"per_transaction": 2, "per_session": 10},
        "sessions": {"concurrency": 1},
        "retry": {"greylist": ["1h"], "tempfail": ["1h"], "give_up": "6h"},
    }
}
HASTY = {  # enough for every persona of the shipped lab, and no more
    "default": {
        "timeouts": {"connect": "1s", "greeting": "1.2s", "command": "1.2s"},
        "retry": {"greylist": ["1s", "2s"], "tempfail": ["1s", "2s"], "give_up": "5s"},
    }
}
SPEC = {
    "personas": {
        "sluggish": {"delay": {"rcpt": "15ms"}, "pipelining": False, "starttls": False},
        "grey": {"greylist": "1h", "starttls": False},
        "blocking": {"block": "rcpt", "starttls": False},
        "bare": {"replies": {"unknown": "550 Rejected"}, "starttls": False},
    },
    "hosts": {"mx.one.lab": "blocking", "mx.two.lab": "normal"},
    "domains": {
        "normal.lab": {"mailboxes": ["ada", "grace", "linus"]},
        "slow.lab": {"persona": "sluggish", "mailboxes": [f"u{n:04}" for n in range(1, 31)]},
        "grey.lab": {"persona": "grey", "mailboxes": ["ada"]},
        "big.lab": {"mailboxes": ["ada"]},
        "blocked.lab": {"persona": "blocking"},
        "bare-{1..5}.lab": {"persona": "bare"},
        "east.lab": {"mx": ["mx.east.pair.lab"], "hosts": {"mx.east.pair.lab": "normal"}},
        "west.lab": {"mx": ["mx.west.pair.lab"], "hosts": {"mx.west.pair.lab": "normal"}},
        "second.lab": {"mx": ["10 mx.one.lab", "20 mx.two.lab"], "mailboxes": ["ada"]},
    },
}


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture(scope="module")
def shipped():
    with LabProcess() as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(request):
    """No test meets what a server remembers of another."""
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").reset()


@pytest.fixture
def after(states):
    """`stop_when` of a run: so many addresses are settled."""

    def so_many(count):
        def reached(verification):
            found = states(verification.request.journal)
            return sum(state == 3 for state, _ in found.values()) >= count

        return reached

    return so_many


@pytest.fixture
def slow_rows(addresses_of):
    return list(addresses_of("slow.lab", 30))


# --- verdicts -----------------------------------------------------------------------------------------------------


def test_every_address_of_the_shipped_lab_has_the_verdict_of_its_file(shipped, verify):
    """lab.yaml says for each of its addresses which reasons are right; nothing else is."""
    expected = dict(shipped.addresses())
    run = verify(shipped, expected, policies=HASTY)
    wrong = {row["address"]: row["reason"] for row in run.rows if row["reason"] not in expected[row["address"]]}
    assert wrong == {}
    assert [row["address"] for row in run.rows] == list(expected)
    assert {row["reason"] for row in run.rows} <= set(REASONS)


def test_standard_mode_gives_no_verdict_about_a_mailbox(shipped, verify):
    """It ends `mailbox_unchecked` at best: invalid is only what syntax, DNS and hosts prove."""
    slow = (
        "silent",
        "blackhole",
        "dripping",
        "garbage",
        "busy",
        "drop",
        "reset",
        "refus",
        "mx-servfail",
        "tls",
        "blocking",
    )
    rows = [address for address, _ in shipped.addresses() if not any(each in address for each in slow)]
    run = verify(shipped, rows, mode=Mode.STANDARD, consent=None)
    assert run.having("category", "valid") == set()
    assert {row["fault"] for row in run.rows if row["category"] == "invalid"} <= {"input", "domain"}
    sites = Counter(row["ip"] for row in run.log.rows if row["event"] == "connect")
    once = {"normal", "catch-all", "plain", "no-codes", "folded"}
    assert {sites[row["ip"]] for row in run.log.rows if row["persona"] in once} == {1}


def test_without_connecting_neither_identity_nor_consent_is_needed(lab, verify):
    """`--no-connect` ends at the mail hosts: DNS is asked, and nobody else."""
    rows = ["ada@normal.lab", "ada@nowhere.lab", "not an address"]
    run = verify(lab, rows, mode=Mode.STANDARD, connect=False, identity=None, consent=None)
    assert run.reasons == {
        "ada@normal.lab": "mailbox_unchecked", "ada@nowhere.lab": "domain_not_found",
        "not an address": "syntax_invalid",
    }  # fmt: skip
    assert run.log.rows == []


def test_the_second_host_is_not_asked_when_the_first_one_blames_us(lab, verify):
    """A refusal about us ends the attempt for the whole site."""
    hasty = {
        "default": {
            "retry": {"greylist": ["0.1s"], "tempfail": ["0.1s"], "give_up": "0.5s"},
            "breaker": {"open": "0.2s"},
        }
    }
    run = verify(lab, ["ada@second.lab"], policies=hasty)
    assert run.row("ada@second.lab")["reason"] in ("ip_blocklisted", "provider_paused")
    assert run.log.sessions("mx.two.lab") == []


# --- more than fits into memory -----------------------------------------------------------------------------------


def test_a_site_with_more_addresses_than_a_lane_holds_is_asked_to_its_end(lab, verify, addresses_of):
    """1,500 addresses at one site: the lane takes up a thousand at a time."""
    fast = {"default": {"recipients": {"per_session": 100, "per_transaction": 50}, "refusals": {"per_session": 50}}}
    run = verify(lab, addresses_of("big.lab", 1500), policies=fast)
    assert Counter(run.reasons.values()) == {"mailbox_not_found": 1500}


def test_a_provider_with_several_large_sites_is_asked_to_its_end(lab, verify, addresses_of):
    """Two sites in one lane, each with more addresses than memory takes: both are asked to their ends."""
    fast = {
        "pair-like": {
            "match": {"mx": ["*.pair.lab"]}, "scope": "provider",
            "recipients": {"per_session": 100, "per_transaction": 50}, "refusals": {"per_session": 50},
        }
    }  # fmt: skip
    run = verify(lab, [*addresses_of("east.lab", 1100), *addresses_of("west.lab", 1400)], policies=fast)
    assert Counter(run.reasons.values()) == {"mailbox_not_found": 2500}


def test_a_large_site_that_blocks_us_ends(lab, verify, addresses_of):
    """What waits in the journal for a lane that gave up ends with what waits in memory."""
    hasty = {
        "default": {
            "retry": {"greylist": ["0.1s"], "tempfail": ["0.1s"], "give_up": "0.5s"},
            "breaker": {"open": "0.2s"},
        }
    }
    run = verify(lab, addresses_of("blocked.lab", 1300), policies=hasty)
    assert set(run.reasons.values()) <= {"provider_paused", "ip_blocklisted"}
    assert len(run.log.recipients()) < 100


# --- files --------------------------------------------------------------------------------------------------------


def test_a_csv_keeps_the_caller_s_columns_and_order(lab, verify, tmp_path):
    """His columns first, untouched, then ours; rows in input order, bad ones included."""
    path = tmp_path / "list.csv"
    path.write_bytes(
        b'id;reason;mail\r\n1;"a;b";ada@normal.lab\r\n2;;nix@normal.lab\r\n3;x\r\n4;\xff;grace@normal.lab\r\n5;y;ada@normal.lab\r\n'
    )
    run = verify(lab, path, output="out.csv", column="mail")
    with run.output.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file, delimiter=";")
    ours = [f"engine_{name}" if name == "reason" else name for name in COLUMNS]
    assert header == ["id", "reason", "mail", *ours]
    verdict = header.index("engine_reason")
    assert [(row[0], row[1], row[verdict]) for row in rows] == [
        ("1", "a;b", "rcpt_ok"), ("2", "", "mailbox_not_found"), ("3", "x", "syntax_invalid"),
        ("4", "\udcff", "rcpt_ok"), ("5", "y", "rcpt_ok"),
    ]  # fmt: skip


def test_jsonl_keeps_the_caller_s_objects(lab, verify, tmp_path):
    """Each object comes back with our keys behind its own; a line that is none is answered all the same."""
    path = tmp_path / "list.jsonl"
    path.write_text('{"n": 1.50, "email": "ada@normal.lab"}\n{"n": 2}\nnonsense\n{"email": "nix@normal.lab"}\n')
    run = verify(lab, path)
    assert [row["reason"] for row in run.rows] == ["rcpt_ok", "syntax_invalid", "syntax_invalid", "mailbox_not_found"]
    assert run.output.read_text().startswith('{"n": 1.50, "email": "ada@normal.lab", "address"')


@pytest.mark.parametrize("every_s", [1.0, 0.0])
def test_a_pipe_gets_each_row_once(lab, verify, slow_rows, monkeypatch, every_s):
    """Rows in order of settling, none lost and none twice, however often they are told in between."""
    monkeypatch.setattr(module, "PIPE_EVERY_S", every_s)
    for _ in range(1 if every_s else 5):
        pipe = io.BytesIO()
        rows = [*slow_rows[:9], "nix@normal.lab", "ada@normal.lab", "ada@normal.lab", "no address @"]
        rows += [f"nix@bare-{n}.lab" for n in range(1, 6)]  # settled by the end of the run
        run = verify(lab, rows, output=f"pipe-{every_s}-{os.urandom(4).hex()}.csv", pipe=pipe)
        assert run.done
        told = list(csv.DictReader(io.StringIO(pipe.getvalue().decode())))
        assert Counter(row["address"] for row in told) == Counter(rows)


def test_files_are_the_owner_s_alone(lab, verify, tmp_path):
    """Output, journal and state hold personal data: mode 0600."""
    run = verify(lab, ["ada@normal.lab"])
    assert [path.stat().st_mode & 0o777 for path in (run.output, run.journal, run.state)] == [0o600] * 3


# --- a stop, and what goes on ---------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_where_it_stopped(lab, verify, slow_rows, after):
    """What was settled is in OUTPUT.part and is asked by nobody again; the rest follows."""
    first = verify(lab, slow_rows, policies=PATIENT, output="out.jsonl", stop_when=after(6))
    assert not first.done
    assert not first.output.exists()
    assert 6 <= len(first.rows) < 30
    second = verify(lab, slow_rows, policies=PATIENT, output="out.jsonl", resume=True)
    assert second.done
    assert [row["address"] for row in second.rows] == slow_rows
    assert set(second.reasons.values()) == {"rcpt_ok"}
    assert {row["address"] for row in first.rows} & set(second.log.recipients()) == set()
    assert not second.output.with_name("out.jsonl.part").exists()


def test_a_stop_before_the_first_probe_sends_nothing(lab, verify, slow_rows):
    """Stopped at once, nobody was dialled, and the resumed run does it all."""
    first = verify(lab, slow_rows, output="out.jsonl", stop_when=lambda _: True)
    assert not first.done
    assert first.log.recipients() == []
    assert verify(lab, slow_rows, output="out.jsonl", resume=True).having("reason", "rcpt_ok") == set(slow_rows)


def test_resume_without_a_journal_starts_anew(lab, verify):
    """A script may always say `--resume`."""
    assert verify(lab, ["ada@normal.lab"], resume=True).reasons == {"ada@normal.lab": "rcpt_ok"}


@pytest.mark.parametrize("killed_after", ["the file was made", "the job was written"])
def test_a_run_killed_at_its_very_beginning_can_be_resumed(lab, verify, tmp_path, killed_after):
    """Between the journal's first commits a kill leaves a journal without a job, or a job without its audit."""
    interrupted = tmp_path / "out.jsonl.journal"
    whole = verify(lab, ["ada@normal.lab"], output="whole.jsonl")
    with Writer() as writer:
        journal = Journal(interrupted, writer)
        if killed_after == "the job was written":
            ((facts,),) = whole.query("SELECT value FROM meta WHERE key = 'job'")
            journal.put("job", json.loads(facts))
    run = verify(lab, ["ada@normal.lab"], output="out.jsonl", resume=True)
    assert run.reasons == {"ada@normal.lab": "rcpt_ok"}


@pytest.mark.parametrize("what", ["list", "column", "mode", "identity"])
def test_resume_is_refused_for_another_job(lab, verify, slow_rows, after, tmp_path, what):
    """Another list, column, mode or mail setting is another job: it says so, and neither asks nor touches anything."""
    path = tmp_path / "list.csv"
    path.write_text("a,b\n" + "".join(f"{row},{row}\n" for row in slow_rows))
    first = verify(lab, path, column="a", output="out.csv", policies=PATIENT, stop_when=after(4))
    assert not first.done
    before = first.query("SELECT * FROM addresses"), first.query("SELECT * FROM meta")
    other = {}
    if what == "list":
        path.write_text(path.read_text() + "ada@normal.lab,ada@normal.lab\n")
    elif what == "mode":
        other = {"mode": Mode.STANDARD}
    elif what == "identity":
        other = {"identity": Identity("node", "probe.lab", "abuse@probe.lab", "127.0.0.1")}
    names = {"list": "list", "column": "column", "mode": "mode", "identity": "identity"}
    dialled = len(lab.log())
    with pytest.raises(WrongUse, match=names[what]):
        verify(
            lab, path, column="b" if what == "column" else "a", output="out.csv", policies=PATIENT, resume=True, **other
        )
    assert (first.query("SELECT * FROM addresses"), first.query("SELECT * FROM meta")) == before
    assert len(lab.log()) == dialled


def test_an_unfinished_journal_is_not_begun_anew(lab, verify, slow_rows, after):
    """Without `--resume` it is wrong use: nobody's evidence is thrown away by a slip."""
    first = verify(lab, slow_rows, output="out.jsonl", policies=PATIENT, stop_when=after(4))
    before = first.query("SELECT * FROM addresses")
    with pytest.raises(WrongUse, match="--resume"):
        verify(lab, slow_rows, output="out.jsonl", policies=PATIENT)
    assert first.query("SELECT * FROM addresses") == before


def test_a_finished_journal_is_kept_under_its_job_s_name(lab, verify):
    """The next run with the same output renames it; both stay whole."""
    first = verify(lab, ["ada@normal.lab"], output="out.jsonl")
    second = verify(lab, ["nix@normal.lab"], output="out.jsonl")
    assert first.verification.job is not None
    kept = first.output.with_name(f"out.jsonl.{first.verification.job.id}.journal")
    with closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT key FROM addresses").fetchall() == [("ada@normal.lab",)]
    assert second.query("SELECT key FROM addresses") == [("nix@normal.lab",)]


def test_one_verification_holds_an_identity(lab, verify, tmp_path):
    """A second one learns who holds it, asks nobody and leaves no journal."""
    folder = tmp_path / "state"
    folder.mkdir()
    holder = (
        "import sys; from pathlib import Path; from engine.store.lock import IdentityLock;"
        "lock = IdentityLock(Path(sys.argv[1]), '127.0.0.1', job='20261122-other', since=1);"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(WrongUse, match=rf"process {other.pid} .*20261122-other"):
            verify(lab, ["ada@normal.lab"], output="out.jsonl")
        other.communicate("")
    assert not (tmp_path / "out.jsonl.journal").exists()
    assert verify(lab, ["ada@normal.lab"], output="out.jsonl").reasons == {"ada@normal.lab": "rcpt_ok"}
    IdentityLock(folder, "127.0.0.1", job="", since=0).release()  # it was let go


def test_a_deadline_ends_what_waits_and_resume_takes_it_up_again(lab, verify):
    """An ending is no verdict: written out, not answered, retry pause; the next run goes on with it."""
    rows = ["ada@normal.lab", "nix@normal.lab", "ada@grey.lab"]
    first = verify(lab, rows, policies=PATIENT, output="out.jsonl", deadline_s=0.6)
    assert first.done
    ended = first.row("ada@grey.lab")
    assert (ended["category"], ended["reason"], ended["answered"], ended["retry"]) == (
        "risky",
        "deadline_exceeded",
        False,
        "pause",
    )
    assert first.reasons["ada@normal.lab"] == "rcpt_ok"
    lab.set("grey", greylist=None)
    second = verify(lab, rows, policies=PATIENT, output="out.jsonl", resume=True)
    assert second.reasons == {
        "ada@normal.lab": "rcpt_ok",
        "nix@normal.lab": "mailbox_not_found",
        "ada@grey.lab": "rcpt_ok",
    }
    assert {each.partition("@")[2] for each in second.log.recipients()} == {"grey.lab"}


# --- evidence -----------------------------------------------------------------------------------------------------


def test_the_audit_is_whole_and_the_state_keeps_its_head(lab, verify, slow_rows, after):
    """Stopped and resumed: one chain without a fault, each RCPT a row, and the state's head is the journal's."""
    first = verify(lab, slow_rows, policies=PATIENT, output="out.jsonl", stop_when=after(6))
    second = verify(lab, slow_rows, policies=PATIENT, output="out.jsonl", resume=True)
    job = second.verification.job
    assert job is not None
    assert first.verification.job is not None
    assert job.id == first.verification.job.id
    with closing(sqlite3.connect(second.state)) as state, closing(sqlite3.connect(second.journal)) as journal:
        (kept,) = state.execute("SELECT seq, hash FROM heads WHERE job = ?", (job.id,)).fetchall()
        assert audit.verify(journal, audit.Head(*kept)) == []
        assert audit.head(journal) == audit.Head(*kept)
        told = journal.execute(
            "SELECT address, kind FROM attempts WHERE kind IN ('rcpt', 'control') ORDER BY seq"
        ).fetchall()
        consents = {consent for (consent,) in journal.execute("SELECT consent FROM attempts WHERE kind = 'rcpt'")}
    asked = Counter(first.log.recipients()) + Counter(second.log.recipients())
    assert Counter(address for address, _ in told) == asked
    assert consents == {"TICKET-7"}
