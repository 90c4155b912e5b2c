"""The image's steps, run; what they leave behind, tried: unprivileged, on a root that nobody can write."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
from rigs.daemon import CACHE, Daemon, free_port, or_skip, own_folder, unpacked
from rigs.image import ROOT, Image

from engine.version import VERSION

RESOLVER = "127.30.20.53"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with closing(or_skip(lambda: Image(ROOT / "Dockerfile"))) as made:
        yield made


def test_the_engine_of_the_image_runs_under_tini(image: Image) -> None:
    """ENTRYPOINT and CMD as they stand; PATH finds both."""
    shown = image.run([*image.words("ENTRYPOINT"), *image.words("CMD")])
    assert shown.returncode == 0, shown.stderr
    assert "Usage: engine" in shown.stdout
    assert VERSION in image.run([*image.words("ENTRYPOINT"), "--version"]).stdout


def test_a_job_runs_on_a_read_only_root(image: Image) -> None:
    """A list is verified against the bundled lab by a user who may write /state and /work only."""
    rows = (ROOT / "engine/lab/demo.csv").read_text("utf-8").splitlines()[:20]
    (image.folder / "work/list.csv").write_text("".join(f"{row}\n" for row in rows))
    done = image.run([*image.words("ENTRYPOINT"), "verify", "list.csv", "-o", "out.csv", "--mode", "enhanced", "--lab"])
    assert done.returncode == 0, done.stderr
    out = image.folder / "work/out.csv"
    with out.open(newline="") as file:
        assert len(list(csv.reader(file))) == len(rows)
    assert out.stat().st_uid == 10001
    written = image.run(["sh", "-c", "touch /opt/engine/x /etc/x /x 2>&1"])
    assert written.returncode != 0
    assert written.stdout.count("Read-only file system") == 3


def test_a_stop_ends_a_job_politely(image: Image) -> None:
    """STOPSIGNAL goes through tini to a job at work: it ends its sessions, keeps what it has and says how to go on."""
    assert image.settings["STOPSIGNAL"] == "SIGTERM"
    shutil.copyfile(ROOT / "engine/lab/demo.csv", image.folder / "work/long.csv")
    words = [*image.words("ENTRYPOINT"), "verify", "long.csv", "-o", "long.out.csv", "--mode", "enhanced", "--lab"]
    with image.begin(words) as job:
        journal = image.folder / "work/long.out.csv.journal"
        ends = time.monotonic() + 60
        while not journal.exists() and job.poll() is None and time.monotonic() < ends:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=30)
    assert job.returncode == 1, said
    assert "--resume" in said
    assert (image.folder / "work/long.out.csv.part").exists()
    assert not (image.folder / "work/long.out.csv").exists()


def test_nothing_that_builds_is_left(image: Image) -> None:
    """No compiler, no pip in either Python, no package lists that a later step would use."""
    found = image.run(["sh", "-c", "for tool in gcc cc make pip pip3 git curl; do command -v $tool; done; true"])
    assert found.stdout == ""
    for python in ("/usr/local/bin/python", "/opt/engine/bin/python"):
        assert "No module named pip" in image.run([python, "-m", "pip"]).stderr


def test_the_health_check_fails_where_nothing_answers(image: Image) -> None:
    """It is the engine's own command, and says why."""
    done = image.run([f"ENGINE_METRICS={'127.30.20.9:9'}", *image.words("HEALTHCHECK")])
    assert done.returncode == 1
    assert "nothing answers" in done.stderr


def test_unbound_takes_its_configuration(tmp_path: Path) -> None:
    """unbound's own checker reads it, with the root's key and hints where Debian puts them."""
    checker = or_skip(lambda: unpacked("unbound")) / "usr/sbin/unbound-checkconf"
    roots = or_skip(lambda: unpacked("roots")) / "usr/share/dns"
    text = (ROOT / "docs/operate/unbound/unbound.conf").read_text("utf-8").replace("/usr/share/dns", str(roots))
    (tmp_path / "unbound.conf").write_text(text)
    done = subprocess.run([checker, tmp_path / "unbound.conf"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert roots.is_relative_to(CACHE)


def test_unbound_answers_what_its_health_check_asks() -> None:
    """`invalid.` is its own, so that the check asks nobody else; addresses in 127.0.0.0/8 are not taken out."""
    program = or_skip(lambda: unpacked("unbound")) / "usr/sbin/unbound"
    roots = or_skip(lambda: unpacked("roots")) / "usr/share/dns"
    port = free_port()
    text = (ROOT / "docs/operate/unbound/unbound.conf").read_text("utf-8")
    for shipped, ours in (("/usr/share/dns", str(roots)), ("interface: 0.0.0.0", f"interface: {RESOLVER}"),
                          ("port: 53", f"port: {port}"),
                          ("server:\n", 'server:\n    local-data: "2.0.0.127.bl.example. A 127.0.0.2"\n')):  # fmt: skip
        assert shipped in text
        text = text.replace(shipped, ours)
    with closing(Daemon("unbound", own_folder("unbound"))) as daemon:
        (daemon.folder / "unbound.conf").write_text(text)
        daemon.start([program, "-d", "-p", "-c", daemon.folder / "unbound.conf"], [(RESOLVER, port)])
        found = {
            kind: dns.query.udp(dns.message.make_query(name, kind), RESOLVER, timeout=5, port=port)
            for name, kind in (("invalid.", "SOA"), ("2.0.0.127.bl.example.", "A"))
        }
    assert "SOA" in (ROOT / "docs/operate/unbound/Dockerfile").read_text("utf-8")
    assert found["SOA"].rcode() == dns.rcode.NOERROR
    assert found["SOA"].answer[0].rdtype == dns.rdatatype.SOA
    assert found["A"].answer[0][0].address == "127.0.0.2"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds every directive known and well-formed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not here")
    unit = (ROOT / "docs/operate/engine.service").read_text("utf-8").replace("/opt/engine/bin/engine", "/bin/true")
    (tmp_path / "engine.service").write_text(unit)
    done = subprocess.run(
        [program, "verify", tmp_path / "engine.service"], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
