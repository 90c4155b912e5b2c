"""Laws of what is watched from outside: CPU of all processes, and memory that is the command's own."""

from __future__ import annotations

import sys

from bench.measure.watch import Running

BURN = "import time\nwhile time.process_time() < 0.5: pass\n"


def test_memory_is_the_commands_own_and_not_that_of_who_started_it(tmp_path):
    """A child of fork begins with its parent's memory; a small program must not look large for a large bench."""
    ours = bytearray(b"x") * (150 << 20)
    spent = Running([sys.executable, "-c", BURN], tmp_path).until_done()
    assert len(ours) > spent.rss_peak > 1 << 20


def test_memory_that_was_given_back_counts(tmp_path):
    """The most that it had, between two looks too."""
    code = f"data = bytearray(b'x') * (120 << 20)\ndel data\n{BURN}"
    assert Running([sys.executable, "-c", code], tmp_path).until_done().rss_peak > 120 << 20


def test_cpu_of_processes_below_counts(tmp_path):
    """User and system time of all of them."""
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])"
    spent = Running([sys.executable, "-c", code], tmp_path).until_done()
    assert spent.exit == 0
    assert spent.cpu_s >= 0.5
