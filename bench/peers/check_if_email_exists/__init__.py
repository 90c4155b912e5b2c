"""The Rust crate check-if-email-exists (AGPL: built for the measurement, never shipped)."""

from __future__ import annotations

from bench.peers import Peer
from bench.peers.build import cargo

BUILD = cargo("check_if_email_exists")
PEER = Peer(
    "check-if-email-exists", "rust", unmodified=True, build=BUILD, missing=BUILD.missing,
    version=lambda: BUILD.version,
    command=lambda task: [str(BUILD.path), str(task.listed), str(task.concurrency)],
)  # fmt: skip
