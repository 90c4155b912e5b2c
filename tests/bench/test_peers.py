"""Laws of peers and contests: each address is asked once, what is missing is named, a namespace holds only us."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.measure import contest as contests
from bench.measure.contest import Contest
from bench.measure.report import MISSING, SHORT, Report
from bench.measure.watch import Spent
from bench.peers import Peer, PeerError, Task, build, peers, run
from bench.world import Plan, World, namespace
from bench.world.log import FULL

NUMBER = 20


@pytest.fixture(scope="module")
def plan():
    made = Plan()
    for number in range(NUMBER):
        made.site(f"shop{number}.com")
    return made


@pytest.fixture(scope="module")
def world(plan):
    with World(plan, level=FULL) as running:
        yield running


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "list.csv"
    rows = [f"{'user' if number % 2 else 'gone'}{number}@shop{number}.com" for number in range(NUMBER)]
    path.write_text("email\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def found(name: str) -> Peer:
    return next(each for each in peers() if each.name == name)


@pytest.mark.parametrize("name", ["bare gevent loop", "smtplib on gevent"])
def test_a_peer_asks_each_address_once_and_answers_all(world, listed, tmp_path, name):
    """By the world's log: a peer that did less would make the engine look dear."""
    before = len(world.log())
    _, answered = run(found(name), Task(listed, world, 4), tmp_path / "peer")
    asked = [row.argument for row in world.log()[before:] if row.event == "RCPT"]
    for address in listed.read_text().split()[1:]:
        assert asked.count(address) == 1
    assert answered == NUMBER


def test_every_peer_is_here_or_says_why_not():
    """In a sentence that a report can print."""
    names = [peer.name for peer in peers()]
    assert len(names) == len(set(names)) == 8
    for peer in peers():
        assert isinstance(peer.missing(), str)
        if not peer.missing():
            assert not peer.build or peer.version()[0].isdigit()


def test_a_driver_that_changed_is_built_anew(tmp_path, monkeypatch):
    """Its stamp is that of all that it was built from."""
    monkeypatch.setattr(build, "SOURCES", tmp_path / "sources")
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    driver = tmp_path / "sources" / "some" / "peer.txt"
    driver.parent.mkdir(parents=True)
    driver.write_text("one")
    made = build.Build("some", "sh", (("sh", "-c", "cp peer.txt peer"),), "peer", "(.*)")
    assert "python -m bench.peers" in made.missing()
    made.build()
    assert made.missing() == ""
    assert made.path.read_text() == "one"
    driver.write_text("two")
    assert made.stale
    failing = build.Build("some", "sh", (("sh", "-c", "echo it is broken >&2; exit 1"),), "peer", "(.*)")
    with pytest.raises(build.BuildError, match="it is broken"):
        failing.build()
    assert made.stale
    assert build.Build("some", "no-such-tool", (), "peer", "(.*)").missing() == "no-such-tool is not installed"


class Counting:
    """A world that only counts what is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def stats(self) -> dict[str, float]:
        return {"recipients": float(self.asked), "sessions": 1.0}


@dataclass
class Verifying:
    """A run of the engine that is right about so many of ten addresses."""

    right: int = 10
    folder: Path = Path()
    addresses: Sequence[str] = ()
    first: str = "user0@shop.com"
    plain: bool = False

    def run(self) -> Spent:
        return Spent(cpu_s=1.0, wall_s=1.0)

    def rows(self) -> list[dict[str, str]]:
        said = ["valid"] * self.right + ["invalid"] * (10 - self.right)
        return [{"email": f"user{number}@shop.com", "category": each} for number, each in enumerate(said)]


def test_an_engine_that_guesses_falls_short(monkeypatch):
    """Whatever it cost."""
    monkeypatch.setattr(contests.namespace, "enter", lambda: "not here")
    report = Report("some")
    Contest(report).engine(Counting(), Verifying(), 10)
    assert report.status == 0
    Contest(report).engine(Counting(), Verifying(9), 10)
    assert report.status == SHORT


@pytest.mark.parametrize(("ends", "why"), [(0, "asked 5 of 10"), (1, "exit 1")])
def test_a_peer_that_asks_too_few_is_missing_and_neither_passed_nor_failed(monkeypatch, tmp_path, capsys, ends, why):
    """It would look cheap by not working."""

    def ran(peer, task, folder):
        if ends:
            raise PeerError(f"it ended with exit {ends}")
        task.world.asked += 5
        return Spent(cpu_s=0.001, wall_s=1.0), 5

    monkeypatch.setattr(contests.namespace, "enter", lambda: "not here")
    monkeypatch.setattr(contests, "peers", lambda: iter([Peer("lazy", "npm", lambda task: [])]))
    monkeypatch.setattr(contests, "run_peer", ran)
    report = Report("some")
    contest, counting = Contest(report), Counting()
    contest.engine(counting, Verifying(), 10)
    contest.all_peers(counting, tmp_path / "list.csv", 10, tmp_path)
    assert why in report.missing[0]
    assert contest.best("npm") is None
    assert report.status == MISSING


def test_a_load_generator_is_no_measure_of_an_address(monkeypatch, tmp_path):
    """It stands in the table, and no requirement is measured by it."""
    monkeypatch.setattr(contests.namespace, "enter", lambda: "not here")
    names = {"source": False, "asker": True}
    monkeypatch.setattr(
        contests,
        "peers",
        lambda: iter([Peer(name, "c", lambda task: [], verifier=asks) for name, asks in names.items()]),
    )
    costs = iter([0.001, 0.5])

    def ran(peer, task, folder):
        task.world.asked += 10
        return Spent(cpu_s=next(costs), wall_s=1.0), 10

    monkeypatch.setattr(contests, "run_peer", ran)
    contest = Contest(Report("some"))
    contest.engine(Counting(), Verifying(), 10)
    contest.all_peers(Counting(), tmp_path / "list.csv", 10, tmp_path)
    assert set(contest.entries) - {contests.PLAIN} == {"engine", "source", "asker"}
    assert contest.best() == 0.05


ENTERED = """
import json, socket
from pathlib import Path
from bench.world import Plan, World, namespace
why = namespace.enter()
if not why:
    plan = Plan()
    plan.site("shop1.com")
    with World(plan, smtp_port=25, dns_port=53) as world:
        with socket.create_connection(("mx.shop1.com", 25), 5) as peer:
            greeting = peer.recv(99).decode()
    devices = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    print(json.dumps({"why": why, "greeting": greeting, "devices": devices}))
else:
    print(json.dumps({"why": why}))
"""


def test_in_the_namespace_names_and_ports_are_the_worlds_and_nothing_else_is_there():
    """The system's own resolver finds the world's hosts at port 25; the process outside keeps its network."""
    before = {path: path.read_text(encoding="utf-8") for path in namespace.COVERED}
    done = subprocess.run([sys.executable, "-c", ENTERED], capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    if told["why"]:  # a machine that lets nobody have one: it is said in words
        assert "network namespace" in told["why"]
    else:
        assert told["greeting"].startswith("220")
        assert told["devices"] == ["lo"]
    assert {path: path.read_text(encoding="utf-8") for path in namespace.COVERED} == before
