"""`kill -9` at random moments, resumed each time, is the same run as an undisturbed one.

Each run is a process of its own session; the lab outlives them all. Domains whose right reason depends on the moment
(`a|b` in lab.yaml) are not here: what is compared must be the same whenever it is asked.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing

import pytest
import yaml

from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED
from engine.store import audit

pytestmark = pytest.mark.slow

LAB = SHIPPED.parent
KILLS = 20
LONGEST_S = 2.2  # from start to kill: start-up, intake, survey, or a while into the probing
FINISH_S = 120
SETTLED = 3
SAME = (
    "id", "note", "address", "normalized", "category", "reason", "answered", "fault", "retry", "catch_all", "provider",
    "policy", "role", "disposable", "free", "tagged", "suggestion", "classifier_version",
)  # fmt: skip

SLOW = {"delay": {"rcpt": "250ms"}, "pipelining": False, "starttls": False}
PEOPLE = [f"u{n:03}" for n in range(1, 91)]
SPEC = {
    "personas": {
        "slow": SLOW,
        "slow-catch-all": {**SLOW, "replies": {"unknown": "250 2.1.5 Ok"}},
        "slow-bare": {**SLOW, "replies": {"unknown": "550 Rejected"}},
        "slow-rejecting": {**SLOW, "replies": {"rcpt": "550 Rejected"}},
        "slow-grey": {**SLOW, "greylist": "900ms"},
        "slow-busy": {**SLOW, "replies": {"rcpt": "451 4.3.0 Temporary lookup failure"}},
    },
    "hosts": {"mx.hosting.lab": "slow", "aspmx.google.lab": "google-like", "mta.yahoo.lab": "yahoo-like"},
    "domains": {
        "one.lab": {"persona": "slow", "mailboxes": PEOPLE[:40]},
        "two.lab": {"persona": "slow", "mailboxes": PEOPLE},
        "three.lab": {"persona": "slow", "mailboxes": PEOPLE[::2]},
        "all.lab": {"persona": "slow-catch-all"},
        "bare.lab": {"persona": "slow-bare", "mailboxes": PEOPLE[::3]},
        "rejecting.lab": {"persona": "slow-rejecting"},
        "grey.lab": {"persona": "slow-grey", "mailboxes": PEOPLE[:4]},
        "grey-all.lab": {"persona": "slow-grey", "mailboxes": PEOPLE[:3]},
        "busy.lab": {"persona": "slow-busy"},
        "dead.lab": {"persona": "refuse-all"},
        "drop.lab": {"persona": "drop-rcpt"},
        "hosted-{1..8}.lab": {"mx": ["mx.hosting.lab"], "mailboxes": ["office"]},
        "gmail-like.lab": {"mx": ["aspmx.google.lab"], "mailboxes": ["ada"]},
        "workspace.lab": {"mx": ["aspmx.google.lab"], "mailboxes": ["ceo"]},
        "yahoo-like.lab": {"mx": ["mta.yahoo.lab"]},
        "null.lab": {"mx": ["0 ."]},
    },
}  # fmt: skip
POLICY = {
    "provider": "default",
    "sessions": {"concurrency": 1},
    "recipients": {"per_transaction": 3, "per_session": 12},
    "retry": {"greylist": ["1s", "2s", "4s"], "tempfail": ["1s", "2s"], "give_up": "1h"},
}


def addresses():
    rows = [f"{who}@{domain}.lab" for domain in ("one", "two", "three") for who in PEOPLE]
    rows += [f"{who}@bare.lab" for who in PEOPLE[:24]]
    rows += [f"{who}@rejecting.lab" for who in PEOPLE[:35]]
    rows += [f"{who}@all.lab" for who in PEOPLE[:20]] + [f"{who}@dead.lab" for who in PEOPLE[:20]]
    rows += [f"{who}@grey.lab" for who in PEOPLE[:6]] + [f"{who}@grey-all.lab" for who in PEOPLE[:3]]
    rows += [f"{who}@busy.lab" for who in PEOPLE[:3]] + ["ada@drop.lab"]
    rows += [f"{who}@hosted-{n}.lab" for n in range(1, 9) for who in ("office", "old")]
    rows += ["ada@gmail-like.lab", "nix@gmail-like.lab", "ceo@workspace.lab", "cfo@workspace.lab"]
    rows += ["ada@yahoo-like.lab", "ada@null.lab", "ada@nowhere.lab", "no address", "ada@@one.lab", "ada@probe.invalid"]
    rows += [f"{who}@one.lab" for who in PEOPLE[:5]] + [f"{PEOPLE[0]}@ONE.lab"]  # again: asked once, answered each time
    random.Random(7).shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture
def start(lab, tmp_path):
    """`start(name, *more)`: `engine verify` over the list in a session of its own; `name` has state and output."""
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "email", "note"])
        writer.writerows([n, address, f"row, {n}"] for n, address in enumerate(addresses(), 1))
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "default.yaml").write_text(yaml.safe_dump(POLICY))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ENGINE_", "XDG_"))}

    def run(name, *more):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "engine", "verify", "list.csv", "-o", f"{name}/out.csv", "--mode", "enhanced",
            "--consent", "TICKET-7", "--consent-by", "A. Owner", "--identity", LAB / "identity.yaml",
            "--policies", LAB / "policies", "--policies", "policies", "--dns", f"127.0.0.1:{lab.dns_port}",
            "--smtp-port", lab.smtp_port, "--allow-private", "--state", f"{name}/state.db", *more,
        ]  # fmt: skip
        with (folder / "said.txt").open("a") as said:
            return subprocess.Popen(
                [str(word) for word in command], cwd=tmp_path, env=environment | {"HOME": str(tmp_path)},
                stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip

    running = []

    def tracked(name, *more):
        running.append(run(name, *more))
        return running[-1]

    yield tracked
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [tuple(row[name] for name in SAME) for row in csv.DictReader(file)]


def settled_in(journal, scratch):
    """Addresses with a settled verdict in a journal whose writer was killed; the files themselves stay untouched."""
    if not journal.exists():
        return set()
    for end in ("", "-wal"):
        if journal.with_name(journal.name + end).exists():
            shutil.copy(journal.with_name(journal.name + end), scratch.with_name(scratch.name + end))
    with closing(sqlite3.connect(scratch)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'addresses'").fetchone():
            return set()
        found = {key for (key,) in connection.execute("SELECT key FROM addresses WHERE state = ?", (SETTLED,))}
    for end in ("", "-wal", "-shm"):
        scratch.with_name(scratch.name + end).unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("seed", [random.SystemRandom().randrange(10**6)])
def test_a_run_killed_twenty_times_and_resumed_is_the_same_run(lab, start, tmp_path, seed):
    """No row lost, none twice, each as in the undisturbed run; nothing settled is asked again; a whole audit."""
    print(f"seed {seed}")
    assert start("whole").wait(FINISH_S) == 0, (tmp_path / "whole" / "said.txt").read_text()
    lab.forget()
    dice, kills, known = random.Random(seed), [], {}
    journal = tmp_path / "killed" / "out.csv.journal"
    begun = time.monotonic()
    while len(kills) < KILLS:
        process = start("killed", "--resume")
        time.sleep(dice.uniform(0.1, LONGEST_S))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        moment = time.monotonic()
        kills.append(moment)
        for address in settled_in(journal, tmp_path / "scratch") - known.keys():
            known[address] = moment
    assert len(kills) == KILLS, (tmp_path / "killed" / "said.txt").read_text()
    assert start("killed", "--resume").wait(FINISH_S) == 0, (tmp_path / "killed" / "said.txt").read_text()

    whole, killed = rows_of(tmp_path / "whole" / "out.csv"), rows_of(tmp_path / "killed" / "out.csv")
    assert [row[0] for row in killed] == [str(n) for n in range(1, len(addresses()) + 1)]
    assert [(a, b) for a, b in zip(whole, killed, strict=True) if a != b] == []
    assert Counter(killed) == Counter(whole)

    asked = [
        (row["t"], row["text"][9:-1]) for row in lab.log()
        if row["t"] > begun and row["event"] == "command" and row["text"].startswith("RCPT TO:<")
    ]  # fmt: skip
    again = [address for moment, address in asked if moment > known.get(address, float("inf"))]
    assert again == []
    assert known, "no verdict was settled before a kill: the kills came too early to show anything"

    with closing(sqlite3.connect(journal)) as job, closing(sqlite3.connect(tmp_path / "killed" / "state.db")) as state:
        (kept,) = state.execute("SELECT seq, hash FROM heads").fetchall()
        assert audit.verify(job, audit.Head(*kept)) == []
