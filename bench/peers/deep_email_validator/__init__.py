"""The npm package deep-email-validator."""

from __future__ import annotations

from bench.peers import Peer
from bench.peers.build import npm

BUILD = npm("deep_email_validator")
PEER = Peer(
    "deep-email-validator", "npm", unmodified=True, build=BUILD, missing=BUILD.missing,
    version=lambda: BUILD.version,
    command=lambda task: ["node", str(BUILD.path), str(task.listed), str(task.concurrency)],
)  # fmt: skip
