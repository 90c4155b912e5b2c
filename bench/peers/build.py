"""Builds the peers that are not Python: their drivers here, with their packages, in .cache/peers (git ignores it).

npm, go and cargo fetch the packages that the driver's manifest names, each at one version, and nothing else is fetched.
A driver that has changed since is built anew.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure.machine import ROOT

SOURCES = Path(__file__).parent
CACHE = ROOT / ".cache/peers"
STAMP = ".built-from"
BUILD_S = 900


class BuildError(Exception):
    """A build that failed; its last words."""


@dataclass(frozen=True, slots=True)
class Build:
    """A driver in `folder` (with `beside`, files next to it) that `steps` make into `program`."""

    folder: str
    tool: str
    steps: tuple[tuple[str, ...], ...]
    program: str
    pinned: str  # what finds the package's version in the driver's manifest
    beside: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """What is run."""
        return CACHE / self.folder / self.program

    def missing(self) -> str:
        """Why it can't run here; empty when it can."""
        if shutil.which(self.tool) is None:
            return f"{self.tool} is not installed"
        return "not built; `python -m bench.peers` fetches and builds it" if self.stale else ""

    @property
    def version(self) -> str:
        """The package's version, and its tool's."""
        found = (re.search(self.pinned, each.read_text(encoding="utf-8")) for each in self._sources())
        asked = {"npm": ("node", "--version"), "go": ("go", "version")}.get(self.tool, (self.tool, "--version"))
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
        return f"{next(each[1] for each in found if each)} ({told if told.startswith(asked[0]) else f'node {told}'})"

    @property
    def stale(self) -> bool:
        """Whether it has to be built: it never was, or its driver has changed."""
        stamp = CACHE / self.folder / STAMP
        return not stamp.exists() or stamp.read_text(encoding="ascii") != self._digest()

    def build(self) -> None:
        """Fetch and build it.

        Raises:
            BuildError: a step failed or took longer than BUILD_S.
        """
        target = CACHE / self.folder
        target.mkdir(parents=True, exist_ok=True)
        (target / STAMP).unlink(missing_ok=True)
        for source in self._sources():
            shutil.copyfile(source, target / source.name)
        for step in self.steps:
            try:
                done = subprocess.run(
                    step, cwd=target, capture_output=True, text=True, timeout=BUILD_S, check=False,
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise BuildError(f"`{' '.join(step)}` took longer than {BUILD_S} s") from error
            if done.returncode:
                raise BuildError(f"`{' '.join(step)}` failed: {(done.stderr or done.stdout)[-500:].strip()}")
        (target / STAMP).write_text(self._digest(), encoding="ascii")

    def _sources(self) -> Sequence[Path]:
        own = sorted(each for each in (SOURCES / self.folder).iterdir() if each.is_file() and each.suffix != ".py")
        return [*own, *(SOURCES / name for name in self.beside)]

    def _digest(self) -> str:
        found = hashlib.sha256()
        for source in self._sources():
            found.update(source.name.encode() + b"\0" + source.read_bytes())
        return found.hexdigest()


def npm(folder: str) -> Build:
    """A driver peer.mjs with its package.json; install scripts don't run."""
    step = ("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock")
    return Build(folder, "npm", (step,), "peer.mjs", r': "(\d[\d.]+)"', beside=("pool.mjs",))


def go(folder: str) -> Build:
    """A driver main.go with its go.mod and go.sum."""
    return Build(folder, "go", (("go", "build", "-o", "peer", "."),), "peer", r" v(\d[\d.]+)")


def cargo(folder: str) -> Build:
    """A driver main.rs with its Cargo.toml, optimised."""
    return Build(folder, "cargo", (("cargo", "build", "--release"),), "target/release/peer", r'"=(\d[\d.]+)"')
