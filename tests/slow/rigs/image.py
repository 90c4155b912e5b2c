"""The image without a Docker daemon: each step of a Dockerfile in a Debian root of its own, made by debootstrap.

1. Stages are folders; RUN is `chroot`, COPY copies, ENV and WORKDIR hold from where they stand.
2. The base image is Debian 12 with its Python in a venv at /usr/local, as the official image of Python has its own
   there, headers too: alike in what the steps use (python, pip, apt, useradd), and not the same bits.
3. The registries are reached as this machine reaches them: its resolver, pip's settings and certificate come along.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rigs.daemon import CACHE, own_folder, unpacked

ROOT = CACHE.parents[1]
BASE = CACHE.parent / "image-root"
MIRROR = "http://deb.debian.org/debian"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
IN_READ_ONLY_ROOT = """
set -e
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$files/state" "$root/state"
mount --bind "$files/work" "$root/work"
mount -t tmpfs tmpfs "$root/tmp"
mount -o remount,ro,bind "$root"
exec chroot --userspec=10001:10001 "$root" env -i "$@"
"""


def base_root() -> Path:
    """The base, made once and kept; raises AbsentError without debootstrap."""
    tool = unpacked("debootstrap")
    if not (BASE / "ready").exists():
        shutil.rmtree(BASE, ignore_errors=True)
        _run(
            [tool / "usr/sbin/debootstrap", "--variant=minbase",
             "--include=python3,python3-dev,python3-venv,ca-certificates",
             "bookworm", BASE, MIRROR],
            {"DEBOOTSTRAP_DIR": str(tool / "usr/share/debootstrap"), "PATH": PATH},
        )  # fmt: skip
        _run(["chroot", BASE, "python3", "-m", "venv", "/usr/local"], {"PATH": PATH})
        (BASE / "ready").touch()
    return BASE


class Image:
    """What a Dockerfile makes: `root` is the last stage's folder, with its `environment`, `user` and `entrypoint`."""

    def __init__(self, dockerfile: Path) -> None:
        self.folder = own_folder("image")
        self.environment: dict[str, str] = {}
        self.settings: dict[str, str] = {}
        self._stages: dict[str, Path] = {}
        self._work = "/"
        self.root = Path()
        try:
            for word, rest in _instructions(dockerfile):
                self._step(word, rest)
        except BaseException:
            self.close()
            raise

    def run(self, command: Sequence[str], *, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A command as the image's user, root's file system read-only, /state and /work writable."""
        with self.begin(command) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout_s)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)

    def begin(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """The same, at work; a signal to the process reaches what the command begins with."""
        given = [f"{name}={value}" for name, value in self.environment.items()]
        return subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_READ_ONLY_ROOT, "sh",
             f"--chdir={self._work}", *given, *command],
            env={"PATH": PATH, "root": str(self.root), "files": str(self.folder)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def close(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _step(self, word: str, rest: str) -> None:
        match word:
            case "FROM":
                name = rest.partition(" AS ")[2] or "last"
                self.root = self._stages[name] = self.folder / name
                _run(["cp", "--archive", base_root(), self.root], {"PATH": PATH})
                _registries(self.root)
                self.environment, self._work = {"PATH": PATH}, "/"
            case "RUN":
                shell = ["chroot", self.root, "sh", "-c", f"cd {self._work} && {rest}"]
                _run(shell, {**_pip(), **self.environment, "DEBIAN_FRONTEND": "noninteractive"})
            case "COPY":
                self._copy(shlex.split(rest))
            case "WORKDIR":
                self._work = rest
                self._inside(rest).mkdir(parents=True, exist_ok=True)
            case "ENV":
                for name, value in re.findall(r"(\w+)=(\S+)", rest):
                    self.environment[name] = value.replace("$PATH", self.environment["PATH"])
            case "USER" | "ENTRYPOINT" | "CMD" | "STOPSIGNAL" | "VOLUME":
                self.settings[word] = rest
            case "HEALTHCHECK":
                self.settings[word] = rest.partition("CMD ")[2]
        for name in ("state", "work"):
            (self.folder / name).mkdir(exist_ok=True)
            os.chown(self.folder / name, 10001, 10001)

    def words(self, word: str) -> list[str]:
        """ENTRYPOINT, CMD or the health check's command."""
        found: list[str] = json.loads(self.settings[word])
        return found

    def _copy(self, words: list[str]) -> None:
        stage = next((word.partition("=")[2] for word in words if word.startswith("--from=")), "")
        *sources, target = [word for word in words if not word.startswith("--")]
        for source in sources:
            found = self._stages[stage] / source.lstrip("/") if stage else ROOT / source
            into = self._inside(target)
            into = into / found.name if target.endswith("/") and not found.is_dir() else into
            into.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                ignored = shutil.ignore_patterns("__pycache__") if not stage else None
                shutil.copytree(found, into, symlinks=bool(stage), ignore=ignored)
            else:
                shutil.copy2(found, into)

    def _inside(self, path: str) -> Path:
        return self.root / str(Path(self._work) / path).lstrip("/")


def _instructions(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def _registries(root: Path) -> None:
    """This machine's way to the registries, in a stage."""
    certificate = os.environ.get("PIP_CERT", "")
    for file in ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", certificate):
        if file and Path(file).is_file():
            into = root / file.lstrip("/")
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, into)


def _pip() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") and name != "PIP_FIND_LINKS"}


def _run(command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        list(map(str, command)), env=dict(environment), capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{shlex.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}"[-4000:]
        )
