"""Laws of reports: absent is neither passed nor failed, and a shortfall outweighs what is missing."""

from __future__ import annotations

import argparse
import json

from bench import __main__ as bench_main
from bench.measure.report import MISSING, SHORT, Report


def finished(report: Report, tmp_path, *, check: bool = True) -> int:
    return report.finish(argparse.Namespace(json=tmp_path / "report.json", check=check))


def test_the_exit_status_tells_met_short_and_missing(tmp_path, capsys):
    """0, 1 and 3; and 0 whatever it is, unless it was asked to check."""
    report = Report("some")
    report.at_most("cost", 1.0, 2.0, "us")
    assert finished(report, tmp_path) == 0
    report.absent("a peer")
    assert finished(report, tmp_path) == MISSING
    report.at_least("rate", 1.0, 2.0, "/s")
    assert finished(report, tmp_path) == SHORT
    assert finished(report, tmp_path, check=False) == 0
    shown = capsys.readouterr().out
    assert "missing: a peer" in shown
    assert "NO" in shown


def test_what_could_not_be_measured_is_not_met_and_not_short(tmp_path, capsys):
    """A claim without a value."""
    report = Report("some")
    report.at_most("ratio", None, 2.0, "x")
    assert finished(report, tmp_path) == MISSING
    assert "not measured" in capsys.readouterr().out


def test_the_json_says_on_what_it_was_measured(tmp_path, capsys):
    """Machine and versions stand beside the figures."""
    report = Report("some")
    report.figure("CPU", 1234.5, "us", per="engine")
    finished(report, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["figures"] == [{"name": "CPU", "value": 1234.5, "unit": "us", "per": "engine"}]
    assert {"cpu", "cores", "python", "gevent", "kernel", "commit"} <= set(found["machine"])
    assert capsys.readouterr().out.count("engine") == 1


def test_every_measurement_says_what_it_is(capsys):
    """The list without arguments has a line for each, and `all` runs only what there is."""
    assert bench_main.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {*bench_main.names(), "all"}
    assert all(len(line.split()) > 3 for line in lines)
    assert set(bench_main.ENGINE) <= set(bench_main.names())
