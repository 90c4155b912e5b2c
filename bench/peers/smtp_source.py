"""Postfix's load generator in C: what the sessions alone cost. One host and one recipient, no list and no look-ups.

It does not ask the list, so it is no measure of an address; its CPU a session stands beside. The recipient is one that
nobody has, since it would go on to DATA otherwise.
"""

from __future__ import annotations

import shutil

from bench.measure.machine import ROOT
from bench.peers import Peer, Task, addresses

UNPACKED = ROOT / ".cache/mtas/postfix"


def program() -> str | None:
    """Where it is: installed with Postfix, or unpacked by .ci/fetch-mtas."""
    return shutil.which("smtp-source", path=f"/usr/sbin:/usr/bin:{UNPACKED / 'usr/sbin'}")


def missing() -> str:
    """Why it can't run here; empty when it can."""
    return "" if program() else "Postfix's smtp-source is not installed; `.ci/fetch-mtas` unpacks it"


def command(task: Task) -> list[str]:
    """As many sessions as the list has addresses, to the first host of the world."""
    listed = addresses(task.listed)
    host = next(iter(task.world.hosts))
    found = program()
    assert found is not None
    # A shell would be in its CPU; the libraries of an unpacked Postfix are beside it.
    env = ["env", f"LD_LIBRARY_PATH={UNPACKED / 'usr/lib/postfix'}"] if str(UNPACKED) in found else []
    return [
        *env, found, "-A", "-m", str(len(listed)), "-s", str(task.concurrency), "-M", "probe.lab",
        "-f", "probe@probe.lab", "-t", f"gone@{listed[0].partition('@')[2]}", f"inet:{host}:{task.world.smtp_port}",
    ]  # fmt: skip


PEER = Peer("Postfix smtp-source", "c", command, missing, verifier=False)
