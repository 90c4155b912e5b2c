"""Laws of reports: absent is neither passed nor failed, and a shortfall outweighs what is missing."""

from __future__ import annotations

import argparse
import json

from bench import __main__ as bench_main
from bench.measure import plots
from bench.measure.plots import BARS, LINES, SHARES, shares
from bench.measure.report import MISSING, SHORT, Report


def finished(report: Report, tmp_path, *, check: bool = True) -> int:
    return report.finish(argparse.Namespace(json=tmp_path / "report.json", check=check, plots=None))


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


def test_pictures_are_drawn_and_their_points_are_in_the_json(tmp_path, capsys):
    """A file a picture where matplotlib is there; without it the report says what is missing."""
    report = Report("some")
    report.plot("cost", "Cost", "size", "us", LINES, {"engine": [(10, 1.0), (100, 2.0)]}, logarithmic=True, limit=3.0)
    report.plot("delay", "Delay", "ms", "%", SHARES, {"engine": shares([3.0, 1.0, 2.0, 4.0])})
    report.plot("cpu", "CPU", "us", "", BARS, {"engine": [5.0], "other": [7.0]})
    report.finish(argparse.Namespace(json=tmp_path / "report.json", check=False, plots=tmp_path / "plots"))
    shown = capsys.readouterr().out
    if why := plots.missing():
        assert why in shown
    else:
        drawn = sorted(each.name for each in (tmp_path / "plots").iterdir())
        assert drawn == ["some-cost.svg", "some-cpu.svg", "some-delay.svg"]
    found = json.loads((tmp_path / "report.json").read_text())["plots"]
    assert found[1]["series"] == {"engine": [[1.0, 25.0], [2.0, 50.0], [3.0, 75.0], [4.0, 100.0]]}


def test_a_picture_of_many_values_has_few_points():
    """And the smallest and the largest of them."""
    points = shares([float(value) for value in range(100_000)])
    assert len(points) < 400
    assert points[0][0] == 0.0
    assert points[-1] == (99_999.0, 100.0)


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
    assert bench_main.main(["--help"]) == 0
    assert "--check" in capsys.readouterr().out
    assert bench_main.main(["no-such"]) == 2
