"""Postgrey from Debian: the greylist that Postfix's host `grey` asks.

1. First attempt of (client /24, MAIL FROM, recipient): 450 4.2.0 "Greylisted, see ..."; after `delay_s` the same three
   pass.
2. No client and no recipient is on its white lists, and none earns its way there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rigs.daemon import Daemon, own_folder, unpacked


class PostgreyRig:
    """A running Postgrey at (`address`, `port`); its memory dies with it."""

    def __init__(self, port: int, *, delay_s: int = 1, address: str = "127.30.3.1") -> None:
        self.address = address
        self.port = port
        self.delay_s = delay_s
        program = unpacked("postgrey") / "usr" / "sbin" / "postgrey"
        self._daemon = Daemon("postgrey", own_folder("postgrey"))
        folder = self._daemon.folder
        memory = folder / "db"
        memory.mkdir()
        shutil.chown(memory, "nobody", "nogroup")
        nothing = folder / "nothing"
        nothing.touch()
        argv: list[str | Path] = [
            "perl",
            "-T",
            program,
            f"--inet={address}:{port}",
            f"--dbdir={memory}",
            f"--delay={delay_s}",
        ]
        argv += ["--user=nobody", "--group=nogroup", "--auto-whitelist-clients=0", "--hostname=mx.postfix.lab"]
        argv += [f"--whitelist-clients={nothing}", f"--whitelist-recipients={nothing}"]
        self._daemon.start(argv, [(address, port)])

    @property
    def log(self) -> str:
        return self._daemon.log

    def close(self) -> None:
        self._daemon.close()
