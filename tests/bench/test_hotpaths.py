"""The guard: a hot path that takes a tenth more instructions than allowed fails here, on every machine alike."""

from __future__ import annotations

import json
import subprocess
import sys

from bench import hotpaths
from bench.measure.report import SHORT, Report
from engine.core.address import Address
from engine.core.dialogue import State
from engine.core.lane import Visit
from engine.store.audit import Head

REFRESH = (
    "the growth is meant? `python -m bench hotpaths --write` allows what is counted now; commit bench/hotpaths.json"
)


def counted(tmp_path, name):
    path = tmp_path / name
    command = [sys.executable, "-m", "bench", "hotpaths", "--json", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return json.loads(path.read_text(encoding="utf-8"))


def test_no_hot_path_grows_by_more_than_its_margin(tmp_path):
    """One reply, one dialogue, one decision, one journal row, one address; counted twice, and the same both times."""
    first, again = counted(tmp_path, "first.json"), counted(tmp_path, "again.json")
    assert first["figures"] == again["figures"]
    grown = [f"{claim['say']}: {claim['measured']}, allowed {claim['required']}" for claim in first["claims"]
             if not claim["met"]]  # fmt: skip
    assert not grown, f"{'; '.join(grown)}. {REFRESH}"


def test_each_path_does_what_it_counts():
    """A path that failed early would be cheap."""
    assert hotpaths.reply()(1).reason.code == "mailbox_not_found"
    assert hotpaths.dialogue()(0) is State.OVER
    assert isinstance(hotpaths.decision()(0), Visit)
    assert isinstance(hotpaths.journal_row()(0), Head)
    assert isinstance(hotpaths.address()(0), Address)


def test_a_tenth_is_allowed_and_no_more():
    """And one that shrank by as much is to be written anew."""
    allowed = {"3.11": {"some": 100, "other": 100}}
    report = Report("hotpaths")
    hotpaths.compare(report, {"some": 110, "other": 80}, allowed, "3.11")
    assert report.status == 0
    assert any("other has shrunk" in note for note in report.notes)
    hotpaths.compare(report, {"some": 111, "other": 100}, allowed, "3.11")
    assert report.status == SHORT


def test_a_python_without_counts_is_held_to_the_newest_that_has_some():
    """With a wider margin, and it is said."""
    allowed = {"3.9": {"some": 1}, "3.13": {"some": 100}}
    report = Report("hotpaths")
    hotpaths.compare(report, {"some": 140}, allowed, "3.14")
    assert report.status == 0
    assert any("Python 3.14 has no counts of its own" in note for note in report.notes)
    hotpaths.compare(report, {"some": 160}, allowed, "3.14")
    assert report.status == SHORT


def test_counting_sees_our_code_and_stops_when_told():
    """What is counted is Python's own instructions in the engine's files."""
    counter = hotpaths.Counter()
    one = hotpaths.address()
    one(0)
    with counter.counting():
        sorted(range(100), key=lambda each: -each)
    assert counter.count == 0
    with counter.counting():
        one(0)
    seen = counter.count
    assert seen > 20
    one(0)
    assert counter.count == seen
