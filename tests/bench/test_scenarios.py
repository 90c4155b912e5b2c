"""Scenarios from end to end, at their smallest: a report comes out, and nobody outside is asked."""

from __future__ import annotations

import json
import subprocess
import sys

from bench import rbl
from engine.reputation.charge import read_charge
from engine.reputation.registry import load_registry
from engine.settings import load_configuration


def test_a_contest_ends_with_a_ratio_to_the_floor_and_says_who_is_missing(tmp_path):
    """With --check it exits as its claims say, whatever thirty addresses prove about cost."""
    path = tmp_path / "longtail.json"
    command = [
        sys.executable,
        "-m",
        "bench",
        "longtail",
        "--addresses",
        "30",
        "--rounds",
        "1",
        "--check",
        "--json",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = json.loads(path.read_text(encoding="utf-8"))
    met = {claim["met"] for claim in found["claims"]}
    assert done.returncode == (1 if False in met else 3 if None in met or found["missing"] else 0), done.stderr
    assert {"engine", "bare gevent loop", "smtplib on gevent"} <= {figure["per"] for figure in found["figures"]}
    (floor,) = [claim for claim in found["claims"] if "bare gevent loop" in claim["say"]]
    assert floor["met"] is not None
    assert not any("verdicts" in claim["say"] for claim in found["claims"])  # it says so where one is wrong
    named = {figure["per"] for figure in found["figures"]} | {each.partition(":")[0] for each in found["missing"]}
    assert {"deep-email-validator", "check-if-email-exists", "Postfix smtp-source"} <= named
    assert any("could have served" in note for note in found["notes"])


def test_a_sweep_asks_the_benchs_lists_and_no_list_of_the_world(tmp_path):
    """30 lists and 200 addresses, and none of those that ship."""
    settings = load_configuration(rbl._settings(tmp_path), {})
    registry = load_registry(settings)
    assert len(registry.enabled) == rbl.LISTS
    assert all(each.zone.endswith(".lab") for each in registry.enabled)
    assert len(read_charge(settings, ()).targets) == rbl.TARGETS
