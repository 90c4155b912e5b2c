"""`engine push`: whether a control plane takes what the monitor pushes."""

from __future__ import annotations

import json
from pathlib import Path

import click

from engine.cli.machine import config_option, state_option, state_path
from engine.flow.job import WrongUse
from engine.reputation.control_plane import ControlPlane, PushError, PushSettings, read_push
from engine.reputation.push import spool_folder
from engine.reputation.spool import segments
from engine.reputation.wording import many
from engine.settings import Configuration, load_configuration
from engine.store import push_outbox
from engine.store.database import open_read_only
from engine.store.state import KIND


@click.group()
def push() -> None:
    """The records of checks and events that go to a control plane: whether it takes them."""


@push.command(short_help="Post an empty batch, and say what the control plane answers.")
@config_option
def test(config: Path | None) -> None:
    """Post an empty batch to the control plane of the settings, now, and say what it answers.

    Exit 1 where it does not take it.
    """
    plane = ControlPlane(_settings(load_configuration(config)))
    try:
        plane.post("", [])
    except PushError as error:
        print(f"failed: {error}")
        raise click.exceptions.Exit(1) from None
    print(f"{plane.settings.where} takes pushes of {plane.settings.node} as {plane.settings.format}.")


@push.command(short_help="Say how much the control plane did not take yet.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
@state_option
@config_option
def waiting(as_json: bool, state: Path | None, config: Path | None) -> None:
    """Say how much waits for the control plane on this machine. Exit 1 where something does."""
    path = state_path(state, load_configuration(config))
    records = 0
    if path.exists():
        with open_read_only(path, KIND) as conn:
            records = push_outbox.count(conn) if push_outbox.has_table(conn) else 0
    size = sum(segments(spool_folder(path)).values())
    if as_json:
        print(json.dumps({"in_state": records, "spool_bytes": size, "spool": str(spool_folder(path))}))
    elif records or size:
        print(f"{many(records, 'record')} in the state, {size / 1024:.1f} KiB in {spool_folder(path)}.")
    else:
        print("Nothing waits.")
    if records or size:
        raise click.exceptions.Exit(1)


def _settings(settings: Configuration) -> PushSettings:
    found = read_push(settings)
    if found is None:
        raise WrongUse("No control plane is set up: the section push of the settings file names it (docs/push.md).")
    return found
