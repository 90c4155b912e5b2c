"""What commands share that look at this machine: its identity state, its settings, and who is at the keyboard."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import click

from engine.settings import Configuration
from engine.store.state import default_path

_FILE = click.Path(dir_okay=False, path_type=Path)

state_option = click.option("--state", type=_FILE, help="The identity state; this machine's, if not given.")
config_option = click.option("--config", type=_FILE, help="The settings file.")
by_option = click.option(
    "--by", metavar="WHO", default="", help="Who orders it, or says so; the user at the keyboard, if not given."
)


def state_path(state: Path | None, settings: Configuration) -> Path:
    """The identity state by flag, environment, settings file or default."""
    given = settings.option("state", state)
    return Path(given) if given else default_path(settings.environ)


def user() -> str:
    """Who is at the keyboard."""
    return os.environ.get("SUDO_USER") or getpass.getuser()
