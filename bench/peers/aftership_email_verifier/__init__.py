"""The Go module github.com/AfterShip/email-verifier."""

from __future__ import annotations

from bench.peers import Peer
from bench.peers.build import go

BUILD = go("aftership_email_verifier")
PEER = Peer(
    "AfterShip/email-verifier", "go", unmodified=True, build=BUILD, missing=BUILD.missing,
    version=lambda: BUILD.version,
    command=lambda task: [str(BUILD.path), str(task.listed), str(task.concurrency)],
)  # fmt: skip
