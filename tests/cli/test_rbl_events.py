"""Laws of `engine rbl events|close|delist` and `engine alerts`: what is open, what to do, who did it, who was told."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from aiosmtpd.controller import Controller
from click.testing import CliRunner, Result

from engine.cli.main import Commands, cli
from engine.cli.rbl_events import close, delist, events
from engine.core.listing import Check, Listing, Severity, Status
from engine.core.listing_event import Method
from engine.core.notice import Kind, Notice
from engine.reputation.channels import AlertSettings, EmailChannel, Tls
from engine.reputation.delist import Procedure
from engine.reputation.delivery import Alerts
from engine.reputation.record import Events
from engine.store import reputation as tables
from engine.store.state import State
from engine.store.writer import Writer

SBL = Listing("sbl", "127.0.0.2", Severity.CRITICAL, "manual listing")
LOW = Listing("psbl", "127.0.0.2", Severity.LOW, "a trap was hit")
PROCEDURES = {
    "zen": Procedure("zen", Method.FORM, "https://check.example/", "One form for each address.", 43_200.0, 259_200.0),
    "psbl": Procedure("psbl", Method.AUTO, "https://psbl.example/", expiry_s=14 * 86_400.0),
}

rbl = click.Group("rbl", commands=[events, close, delist])


class Engine(Commands):
    """The command line with the group that these commands are for."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return rbl if cmd_name == "rbl" else super().get_command(ctx, cmd_name)


@pytest.fixture(autouse=True)
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account that has never seen the engine."""
    for name in [name for name in os.environ if name.startswith(("ENGINE_", "XDG_", "SUDO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ENGINE_STATE", str(tmp_path / "state" / "state.db"))


def engine(*words: str) -> Result:
    return CliRunner().invoke(Engine("engine", params=cli.params), list(words))


def see(*checks: tuple[str, str, Listing | Status, float]) -> None:
    """What lists say: (target, list, listing or status, seconds ago)."""
    now = time.time()
    with Writer() as writer:
        recorded = Events(State(writer, Path(os.environ["ENGINE_STATE"])), PROCEDURES.get)
        for target, name, said, ago_s in checks:
            listings = (said,) if isinstance(said, Listing) else ()
            status = Status.LISTED if isinstance(said, Listing) else said
            recorded.observe(Check(target, name, status, now - ago_s, listings, detail="" if listings else "why"))


@pytest.fixture
def listed() -> None:
    """Event 1 is low and forgets by itself, event 2 is critical."""
    see(
        ("203.0.113.8", "psbl", LOW, 7200), ("203.0.113.8", "psbl", LOW, 3600),
        ("203.0.113.7", "zen", SBL, 3600), ("203.0.113.7", "zen", SBL, 600),
    )  # fmt: skip


def rows(*words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in engine(*words, "--json").output.splitlines()]


def test_nothing_known_is_not_nothing_listed() -> None:
    """A machine that never asked says so; one whose list refuses says that, too."""
    told = engine("rbl", "events")
    assert told.exit_code == 0
    assert told.output == (
        "No event is open.\nNo block list was ever asked from this machine: nothing is known.\n"
    )  # fmt: skip
    see(("203.0.113.7", "zen", Status.REFUSED, 60))
    assert re.fullmatch(
        r"No event is open\.\nNot checked: zen, since .* UTC \(refused: why\)\.\n", engine("rbl", "events").output
    )


@pytest.mark.usefixtures("listed")
def test_events_are_listed_the_worst_first_with_what_to_do() -> None:
    """Exit 1 tells a script that something is open."""
    told = engine("rbl", "events")
    assert told.exit_code == 1
    lines = told.output.splitlines()
    assert lines[0].split() == ["event", "target", "list", "severity", "since", "state", "next"]
    assert lines[1].split()[:4] == ["2", "203.0.113.7", "zen/sbl", "critical"]
    assert lines[1].endswith("fill in https://check.example/; then engine rbl delist start 2 --fixed TEXT.")
    assert "Stop what caused it; the list forgets by itself, usually by" in lines[2]
    assert [row["event"] for row in rows("rbl", "events", "--target", "203.0.113.8")] == [1]
    assert [row["event"] for row in rows("rbl", "events", "--list", "zen")] == [2]
    assert engine("rbl", "events", "--list", "none").exit_code == 0
    assert any(line.startswith("Not checked: spamhaus-zen, critical (needs a key") for line in lines)


@pytest.mark.usefixtures("listed")
def test_what_is_over_is_shown_when_asked_for() -> None:
    """With how it ended."""
    see(("203.0.113.7", "zen", Status.CLEAN, 500), ("203.0.113.7", "zen", Status.CLEAN, 60))
    assert [row["event"] for row in rows("rbl", "events", "--open")] == [1]
    assert [(row["event"], row["close_reason"]) for row in rows("rbl", "events", "--all")] == [
        (1, None),
        (2, "expired"),
    ]
    assert re.search(r"expired 6\d s ago", engine("rbl", "events", "--all").output)
    assert engine("rbl", "events", "--all", "--open").exit_code == 2


@pytest.mark.usefixtures("listed")
def test_a_request_is_followed_from_need_to_end() -> None:
    """Each step says who took it; the list shows what is next, and what is over is not in it."""
    assert [line.split()[0] for line in engine("rbl", "delist", "list").output.splitlines()] == ["event", "2", "1"]
    started = engine("rbl", "delist", "start", "2", "--fixed", "guest net shut", "--by", "ann")
    assert re.fullmatch(
        r"event 2: the request is submitted\.\nThe list wants no second request before .* UTC\.\n", started.output
    )
    assert engine("rbl", "delist", "note", "2", "ticket 17", "--by", "ben").output == (
        "event 2: noted; the request is submitted.\n"
    )
    assert engine("rbl", "delist", "ack", "2").output == "event 2: the request is acknowledged.\n"
    assert engine("rbl", "delist", "refuse", "2", "--note", "too soon").output == "event 2: the request is refused.\n"
    (row,) = rows("rbl", "delist", "show", "2")
    assert [(each["by"], each["text"]) for each in row["request"]["notes"][:2]] == [
        ("ann", "submitted: guest net shut"), ("ben", "ticket 17")
    ]  # fmt: skip
    assert engine("rbl", "delist", "done", "2", "--note", "moved away").exit_code == 0
    assert [row["event"] for row in rows("rbl", "delist", "list")] == [1]
    assert [row["event"] for row in rows("rbl", "delist", "list", "--all")] == [2, 1]


@pytest.mark.usefixtures("listed")
def test_what_must_not_be_done_is_refused_in_one_sentence() -> None:
    """Exit 2, and nothing has changed."""
    engine("rbl", "delist", "start", "2", "--fixed", "x")
    engine("rbl", "delist", "refuse", "2")
    again = engine("rbl", "delist", "start", "2", "--fixed", "y")
    assert again.exit_code == 2
    assert "The list wants no second request before" in again.output
    assert "There is no event 9; engine rbl events lists them." in engine("rbl", "delist", "show", "9").output
    assert "There is no event 9; engine rbl events lists them." in engine("rbl", "delist", "done", "9").output
    assert engine("rbl", "delist", "start", "2").exit_code == 2


@pytest.mark.usefixtures("listed")
def test_the_steps_come_with_a_text_to_copy(tmp_path: Path) -> None:
    """Filled in from the identity that has the address, and from what is given."""
    config = tmp_path / "engine.yaml"
    config.write_text(
        "identity: {helo_name: probe.example.net, mail_from_address: ops@example.net, public_address: 203.0.113.7}\n"
    )
    told = engine("rbl", "delist", "show", "2", "--fixed", "guest net shut", "--config", str(config)).output
    for part in (
        "2. Fill in the list's form: https://check.example/", "Please remove 203.0.113.7 from zen/sbl.",
        "Reverse name: probe.example.net", "Contact: ops@example.net", "What was fixed: guest net shut", "Next: ",
    ):  # fmt: skip
        assert part in told
    assert "(its PTR record)" in engine("rbl", "delist", "show", "2").output
    assert (
        "Ask nobody: the list forgets by itself. https://psbl.example/" in engine("rbl", "delist", "show", "1").output
    )


@pytest.mark.usefixtures("listed")
def test_an_event_is_closed_by_hand_with_a_reason() -> None:
    """Once; its request is over with it, and the history says why."""
    told = engine("rbl", "close", "2", "--why", "the address is not ours any more", "--by", "ann")
    assert told.output == "event 2 is closed: 203.0.113.7 on zen/sbl.\n"
    assert engine("rbl", "close", "2", "--why", "again").exit_code == 2
    (row,) = [row for row in rows("rbl", "events", "--all") if row["event"] == 2]
    assert (row["close_reason"], row["request"]["status"]) == ("manual", "done")
    assert row["request"]["notes"][0] == {
        "at": row["closed_at"], "by": "ann", "text": "event closed by hand: the address is not ours any more"
    }  # fmt: skip


# --- alerts


class AnyPort(Controller):
    """A relay at a port that the system chooses."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


class Sink:
    """What it takes."""

    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def handle_DATA(self, _: object, __: object, envelope: Any) -> str:
        self.mails.append(envelope.content)
        return "250 OK"


@pytest.fixture
def relay() -> Iterator[tuple[Sink, int]]:
    sink = Sink()
    controller = AnyPort(sink, hostname="127.0.0.1", port=0)
    controller.start()
    yield sink, controller.port
    controller.stop()


def settings(path: Path, port: int) -> str:
    path.write_text(
        f"alerts:\n  email: {{host: 127.0.0.1, port: {port}, tls: none, from: e@example.net, to: a@example.net}}\n"
        "  slack: {webhook: http://127.0.0.1:1/services/secret}\n"
    )
    return str(path)


def test_a_test_says_of_each_channel_what_became_of_it(tmp_path: Path, relay: tuple[Sink, int]) -> None:
    """In the patched process that it really runs in; exit 1, since one of the two failed."""
    sink, port = relay
    config = settings(tmp_path / "e.yaml", port)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "engine", "alerts", "test", "--config", config],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "email: sent to a@example.net by 127.0.0.1\nslack: failed: 127.0.0.1: ConnectionError\n"
    assert (done.returncode, done.stderr) == (1, "")
    assert b"Subject: Test: alerts reach you" in sink.mails[0]


def test_without_a_channel_the_test_says_where_to_set_one_up() -> None:
    """Wrong use: nothing was sent."""
    told = engine("alerts", "test")
    assert told.exit_code == 2
    assert "No channel is set up: the section alerts" in told.output


def test_what_did_not_arrive_is_listed_with_why() -> None:
    """Exit 1 while there is one: for a script that watches the watcher."""
    assert engine("alerts", "waiting").output == "Every message was delivered.\n"
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with Writer() as writer:
        kept = State(writer, Path(os.environ["ENGINE_STATE"]))
        notice = Notice("k", Kind.TEST, time.time(), Severity.HIGH, facts={"by": "ann"})
        kept.enqueue(lambda conn: tables.put_notices(conn, [notice])).wait()
        channel = EmailChannel("127.0.0.1", port, Tls.NONE, "e@example.net", ("a@example.net",))
        Alerts(kept, AlertSettings((channel,))).turn(time.time())
    told = engine("alerts", "waiting")
    assert told.exit_code == 1
    assert "Test: alerts reach you" in told.output
    (row,) = [each for each in rows("alerts", "waiting") if each["title"].startswith("Test")]
    assert (row["channel"], row["attempts"]) == ("email", 1)
    assert "ConnectionRefusedError" in row["problem"]
