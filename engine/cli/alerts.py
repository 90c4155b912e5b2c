"""`engine alerts`: whether they reach anybody."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from engine.cli.machine import config_option, state_option, state_path, user
from engine.cli.tables import folded
from engine.core.listing import Severity
from engine.core.notice import Kind, Notice
from engine.flow.job import WrongUse
from engine.reputation.alert_text import single_message
from engine.reputation.channels import Channel, EmailChannel, read_alerts
from engine.reputation.delivery import DeliveryError, send
from engine.reputation.wording import day, span
from engine.settings import load_configuration
from engine.store import reputation as tables
from engine.store.database import open_read_only
from engine.store.state import KIND


@click.group()
def alerts() -> None:
    """Alerts by mail and Slack: whether they reach anybody."""


@alerts.command(short_help="Send a test message to each channel.")
@config_option
def test(config: Path | None) -> None:
    """Send a test message to each channel of the settings, now, and say what became of it.

    Exit 1 where one did not take it.
    """
    channels = read_alerts(load_configuration(config)).channels
    if not channels:
        raise WrongUse("No channel is set up: the section alerts of the settings file names them (docs/alerts.md).")
    now = time.time()
    notice = Notice(f"test:{now}", Kind.TEST, now, Severity.INFO, facts={"by": user()})
    message = single_message(f"test{now:.0f}", notice, now)
    failed = False
    for channel in channels:
        try:
            refused = send(message, channel)
        except DeliveryError as error:
            failed = True
            print(f"{channel.name}: failed: {error}")
        else:
            print(f"{channel.name}: sent{_whereto(channel)}{f', but {refused}' if refused else ''}")
    if failed:
        raise click.exceptions.Exit(1)


@alerts.command(short_help="List the messages that did not arrive yet.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@state_option
@config_option
def waiting(as_json: bool, state: Path | None, config: Path | None) -> None:
    """List the messages that are still to be delivered, with what went wrong. Exit 1 where there is one."""
    path, now = state_path(state, load_configuration(config)), time.time()
    found: list[tables.Unsent] = []
    if path.exists():
        with open_read_only(path, KIND) as conn:
            found = tables.unsent(conn) if tables.has_tables(conn) else []
    if as_json:
        for one in found:
            print(json.dumps({
                "message": one.message, "channel": one.channel, "title": one.title, "attempts": one.attempts,
                "waits_s": round(now - one.at), "problem": one.problem,
            }))  # fmt: skip
    elif found:
        head = ("channel", "since", "attempts", "title", "problem")
        rows = [(one.channel, day(one.at), str(one.attempts), one.title, one.problem or "-") for one in found]
        print("\n".join(folded([head, *rows], right=[2])))
        print(f"The oldest has waited for {span(now - min(one.at for one in found))}.")
    else:
        print("Every message was delivered.")
    if found:
        raise click.exceptions.Exit(1)


def _whereto(channel: Channel) -> str:
    return f" to {', '.join(channel.to)} by {channel.host}" if isinstance(channel, EmailChannel) else ""
