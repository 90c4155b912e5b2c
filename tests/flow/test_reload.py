"""Laws of reloading: a good set comes into force in mid-run, a bad one changes nothing, and both are told."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import gevent
import pytest
import yaml

from engine.core.grammar import Rate
from engine.core.limit import Limit
from engine.core.policy import Policy, PolicySet
from engine.flow import reload as module
from engine.flow.policies import load_policies
from engine.flow.reload import InForce, Reloader
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

LAB = SHIPPED.parent
SPEC = {
    "personas": {"sluggish": {"delay": {"rcpt": "20ms"}, "pipelining": False, "starttls": False}},
    "domains": {"slow.lab": {"persona": "sluggish", "mailboxes": [f"u{n:04}" for n in range(1, 41)]}},
}
ONE = {"recipients": {"rate": "1/s", "per_transaction": 1, "per_session": 100}, "sessions": {"concurrency": 1}}
FAST = {"recipients": {"rate": "1000/s", "per_transaction": 1, "per_session": 100}, "sessions": {"concurrency": 1}}


@pytest.fixture(scope="module")
def lab():
    with LabProcess(SPEC) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A directory with one file over the shipped ones."""
    directory = tmp_path / "own"
    directory.mkdir()
    write(directory, sessions={"concurrency": 1})
    return directory


def write(directory: Path, provider: str = "gmail", **fields: object) -> None:
    """A policy file, replaced as a whole, with a time of its own."""
    path = directory / f"{provider}.yaml"
    path.write_text(yaml.safe_dump({"provider": provider, **fields}), encoding="utf-8")
    write.at += 1_000_000_000  # type: ignore[attr-defined]
    os.utime(path, ns=(write.at, write.at))  # type: ignore[attr-defined]


write.at = time.time_ns()  # type: ignore[attr-defined]


class Watch:
    """A reloader over a directory, and what it handed on."""

    def __init__(self, own: Path, **options: float) -> None:
        self.sets: list[PolicySet] = []
        self.first = load_policies([own])
        self.reloader = Reloader([own], self.first.etag, self.sets.append, **options)


# --- the watcher


def test_a_changed_file_is_loaded_once_it_is_quiet(own: Path) -> None:
    """The look that sees the change waits for the next one: an editor may not be through."""
    watch = Watch(own)
    assert not watch.reloader.look()
    write(own, sessions={"concurrency": 2})
    assert not watch.reloader.look()
    write(own, sessions={"concurrency": 3})
    assert not watch.reloader.look()
    assert watch.reloader.look()
    assert not watch.reloader.look()
    (found,) = watch.sets
    assert found.named("gmail").sessions.concurrency == 3
    assert watch.reloader.etag == found.etag != watch.first.etag
    assert (watch.reloader.reloads, watch.reloader.failures) == (1, 0)


def test_a_new_file_and_one_that_is_gone_are_changes(own: Path) -> None:
    """The set is what the directory holds."""
    watch = Watch(own)
    write(own, "yandex", sessions={"concurrency": 1})
    watch.reloader.look()
    assert watch.reloader.look()
    (own / "yandex.yaml").unlink()
    watch.reloader.look()
    assert watch.reloader.look()
    assert watch.sets[1].etag == watch.first.etag != watch.sets[0].etag


def test_a_bad_file_keeps_the_old_set_and_is_counted_once(own: Path) -> None:
    """It is told with its problems, not read again until it changes, and the mended one comes into force."""
    watch = Watch(own)
    write(own, sessions={"concurrency": 0})
    watch.reloader.look()
    assert not watch.reloader.look()
    assert not watch.reloader.look()
    assert (watch.sets, watch.reloader.failures, watch.reloader.etag) == ([], 1, watch.first.etag)
    write(own, sessions={"concurrency": 2})
    watch.reloader.look()
    assert watch.reloader.look()
    assert len(watch.sets) == 1


def test_a_bad_file_is_logged_with_what_is_wrong(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, line and key stand in the log, and the set that is kept."""
    told: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(module.log, "warning", lambda event, **fields: told.append((event, fields)))
    watch = Watch(own)
    write(own, sessions={"concurrency": 0})
    watch.reloader.look(asked=True)
    ((event, fields),) = told
    assert (event, fields["kept"]) == ("policies_refused", watch.first.etag)
    assert f"{own}/gmail.yaml:3: sessions.concurrency: 0 is not" in str(fields["problems"])


def test_a_directory_that_is_gone_keeps_the_old_set(own: Path) -> None:
    """Somebody moves it away and another one to its place: what is missing in between harms nothing."""
    watch = Watch(own)
    own.rename(own.with_name("away"))
    watch.reloader.look()
    assert not watch.reloader.look()
    own.with_name("away").rename(own)
    watch.reloader.look()
    assert not watch.reloader.look()
    assert (watch.sets, watch.reloader.failures, watch.reloader.etag) == ([], 1, watch.first.etag)


def test_who_asks_need_not_wait_for_quiet(own: Path) -> None:
    """SIGHUP loads at once; what holds the same as before is no change."""
    watch = Watch(own)
    assert not watch.reloader.look(asked=True)
    write(own, sessions={"concurrency": 2})
    assert watch.reloader.look(asked=True)
    assert len(watch.sets) == 1


def test_the_watcher_reads_no_file_that_did_not_change(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look is a stat of each file; nothing is opened."""
    watch = Watch(own)
    monkeypatch.setattr(module, "load_policies", lambda *_: pytest.fail("it was read"))
    for _ in range(3):
        assert not watch.reloader.look()


def test_the_watcher_works_beside_the_run(own: Path) -> None:
    """As a greenlet: by itself after two looks, at once when asked."""
    watch = Watch(own, look_every_s=0.01)
    greenlet = gevent.spawn(watch.reloader.serve)
    try:
        write(own, sessions={"concurrency": 2})
        with gevent.Timeout(5):
            while not watch.sets:
                gevent.sleep(0.005)
    finally:
        greenlet.kill()
    assert watch.sets[0].named("gmail").sessions.concurrency == 2


# --- what is in force


def test_files_and_limits_hold_together() -> None:
    """A reload keeps the limits, and a limit that ends leaves what the files say now."""
    handed: list[PolicySet] = []
    force = InForce(policies_with(4), lambda found: handed.append(found) or 1)
    force.limit([Limit("lab", concurrency=2)])
    force.load(policies_with(6))
    force.load(policies_with(1))
    force.load(policies_with(6))
    force.limit([])
    assert [found.named("lab").sessions.concurrency for found in handed] == [2, 2, 1, 2, 6]


def test_a_policy_keeps_its_values_when_its_scope_changes() -> None:
    """Numbers for each site and numbers for the provider are not the same numbers: they wait for the next job."""
    handed: list[PolicySet] = []
    force = InForce(policies_with(4), lambda found: handed.append(found) or 1)
    force.load(policies_with(50, scope="provider"))
    assert handed[0].named("lab") == policies_with(4).named("lab")
    assert handed[0].default.sessions.rate == Rate(7, 60.0)


def policies_with(concurrency: int, scope: str = "site") -> PolicySet:
    plain = Policy("default")
    sessions = type(plain.sessions)(concurrency, Rate(60, 60.0), 1)
    default = Policy("default", sessions=type(sessions)(1, Rate(7 if scope == "provider" else 6, 60.0), 1))
    return PolicySet((Policy("lab", match_mx=("*.lab",), scope=scope, sessions=sessions),), default, f"{concurrency}")


# --- in mid-run


def settled(verification) -> int:
    counts = verification.counts() if verification._journal is not None else {}
    return sum(count for reason, count in counts.items() if reason)


@pytest.fixture
def layer(policy_layers, tmp_path: Path):
    """A policy directory that this test may change, and the options of a run that watches it."""

    def make(fields: dict[str, object]) -> tuple[Path, dict[str, object]]:
        policies = {"default": {**fields, "sources": [{"for": ["sessions"], "say": str(tmp_path)}]}}  # this test's own
        (directory,) = map(Path, policy_layers(policies))
        return directory, {"policies": policies, "policy_dirs": (LAB / "policies", directory)}

    return make


def test_lanes_at_work_get_the_new_limits(lab, verify, layer, addresses_of) -> None:
    """One RCPT a second until the reload, as fast as the server answers after it; the audit has both etags."""
    directory, options = layer(ONE)
    at: list[float] = []
    etags: list[str] = [load_policies(options["policy_dirs"]).etag]

    def reload(verification) -> bool:
        if not at and settled(verification) >= 2:
            write(directory, "default", **FAST)
            etags.append(load_policies(options["policy_dirs"]).etag)
            at.append(time.monotonic())
            verification.reload()
        return False

    run = verify(lab, addresses_of("slow.lab", 40), stop_when=reload, **options)
    assert run.done
    before = [one.t for one in run.log.asked if one.t < at[0]]
    assert all(later - earlier > 0.95 for earlier, later in pairwise(before[1:]))
    assert len(run.log.asked) == len(run.rows) + len(run.controls("slow.lab"))
    assert max(one.t for one in run.log.asked) < at[0] + 5.0
    notes = [
        note for (note,) in run.query("SELECT note FROM attempts WHERE kind = 'policy' AND note LIKE '%reloaded%'")
    ]
    assert notes == [f"policies reloaded: {etags[0]} -> {etags[1]}, 1 lanes changed"]
    assert run.verification.reloader.reloads == 1


def test_a_bad_file_leaves_a_run_as_it_was(lab, verify, layer, addresses_of) -> None:
    """It goes on to its end under the old set; the audit knows of no reload."""
    directory, options = layer(FAST)
    at: list[float] = []

    def reload(verification) -> bool:
        if not at and settled(verification) >= 2:
            write(directory, "default", sessions={"concurrency": "many"})
            at.append(time.monotonic())
            verification.reload()
        return False

    run = verify(lab, addresses_of("slow.lab", 40), stop_when=reload, **options)
    assert (run.done, run.verification.reloader.failures) == (True, 1)
    assert run.having("reason", "rcpt_ok") == {row["address"] for row in run.rows}
    assert run.query("SELECT note FROM attempts WHERE note LIKE '%reloaded%'") == []


def test_what_a_reload_forbids_is_not_asked_any_more(lab, verify, layer, addresses_of, tmp_path) -> None:
    """`rcpt: never` in mid-run: what waits gets provider_not_probed, and nobody is asked after it."""
    own = tmp_path / "terms"
    own.mkdir()
    policies = {**ONE, "match": {"mx": ["*.slow.lab"]}, "scope": "provider"}
    write(own, "strict", **policies)
    _, options = layer({})
    options["policy_dirs"] = (LAB / "policies", own)
    first = load_policies(options["policy_dirs"])
    at: list[float] = []

    def reload(verification) -> bool:
        if not at and settled(verification) >= 2:
            write(own, "strict", **policies, rcpt="never", terms={"say": "no probing", "see": "https://example.net/"})
            at.append(time.monotonic())
            verification.reload()
        return False

    options.pop("policies")
    run = verify(lab, addresses_of("slow.lab", 40), stop_when=reload, policy_set=first, **options)
    assert run.done
    asked = set(run.log.recipients())
    unasked = run.having("reason", "provider_not_probed")
    assert len(unasked) >= 30
    assert not asked & unasked
    assert max(one.t for one in run.log.asked) < at[0] + 1.5


def test_sighup_reloads_the_policies_of_a_running_command(tmp_path: Path, own: Path) -> None:
    """`kill -HUP` of `engine verify`: the run goes on, and its journal tells of the new set."""
    write(own, "default", **ONE)
    listed, journal = tmp_path / "list.txt", tmp_path / "out.jsonl.journal"
    listed.write_text("".join(f"u{number:04}@normal.lab\n" for number in range(60)))
    command = [sys.executable, "-m", "engine", "verify", str(listed), "-o", str(tmp_path / "out.jsonl"), "--mode",
               "enhanced", "--lab", "--policies", str(own), "--state", str(tmp_path / "state.db")]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(journal, "SELECT count(*) FROM addresses WHERE reason != ''", process)
        write(own, "default", **FAST)
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, out + err
    assert wait_for(journal, "SELECT count(*) FROM attempts WHERE note LIKE 'policies reloaded%'", process) == 1
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 60


def wait_for(journal: Path, query: str, process: subprocess.Popen[str]) -> int:
    ends = time.monotonic() + 15
    while time.monotonic() < ends:
        if journal.exists():
            try:
                with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
                    (count,) = connection.execute(query).fetchone()
            except sqlite3.OperationalError:  # it is being made
                count = 0
            if count:
                return int(count)
        assert process.poll() in (None, 0), process.communicate()
        gevent.sleep(0.05)
    pytest.fail(f"never: {query}")
