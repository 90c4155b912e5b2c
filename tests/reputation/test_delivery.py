"""Laws of delivery: a message reaches people or waits; it is lost at no moment, and no secret gets out."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, Session

from engine import settings as settings_file
from engine.core.listing import Check, Listing, Severity, Status
from engine.core.notice import Kind, Message, Notice
from engine.reputation.alert import GATHER_S, Habits
from engine.reputation.channels import AlertSettings, Channel, EmailChannel, SlackChannel, Tls, read_alerts
from engine.reputation.delist import Method, Procedure
from engine.reputation.delivery import FIRST_WAIT_S, Alerts, DeliveryError, send
from engine.reputation.record import Events
from engine.settings import SettingsError, load_configuration
from engine.store import reputation as tables
from engine.store.state import State
from engine.store.writer import Writer

NOW = 1_790_000_000.0
SECRET = "T000/B000/very-secret-indeed"
SBL = Listing("sbl", "127.0.0.2", Severity.CRITICAL, "a manual listing")
MESSAGE = Message(
    "m1", NOW, Severity.HIGH, "HIGH: ünïcode", (("What", "two\nlines"),), "https://x.example/", "event:1:0"
)


class Relay:
    """A real SMTP server on loopback; it refuses whom `refused` names, and everybody while `down`."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.refused: set[str] = set()
        self.down = False

    async def handle_RCPT(self, _: object, session: Session, envelope: Envelope, address: str, options: object) -> str:
        if self.down or address in self.refused:
            return "451 4.3.0 come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _: object, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        self.mails.append(message_from_bytes(content, policy=default))
        return "250 OK"


class AnyPort(Controller):
    """At a port that the system chooses."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def serve(relay: Relay, **options: Any) -> Iterator[EmailChannel]:
    controller = AnyPort(relay, hostname="127.0.0.1", port=0, **options)
    controller.start()
    try:
        yield EmailChannel(
            "127.0.0.1", controller.port, Tls.NONE, "engine@example.net", ("a@example.net", "b@example.net")
        )
    finally:
        controller.stop()


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
def email(relay: Relay) -> Iterator[EmailChannel]:
    yield from serve(relay)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def guarded(relay: Relay, authority: trustme.CA, tmp_path: Path) -> Iterator[EmailChannel]:
    """A relay that demands STARTTLS and a login."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def login(_: object, __: object, ___: object, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"engine", b"s3cret"), handled=False)

    for channel in serve(
        relay, tls_context=context, require_starttls=True, auth_required=True, authenticator=login
    ):  # fmt: skip
        yield replace(
            channel, tls=Tls.STARTTLS, username="engine", password="s3cret", ca_file=str(tmp_path / "ca.pem")
        )  # fmt: skip


class Hook:
    """What posts to a webhook said, and what it answers."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.answer: tuple[int, str, dict[str, str]] = (200, "ok", {})


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
def slack(hook: Hook) -> Iterator[SlackChannel]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            hook.paths.append(self.path)
            code, text, headers = hook.answer
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield SlackChannel(f"http://127.0.0.1:{server.server_address[1]}/services/{SECRET}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[State]:
    with Writer() as writer:
        yield State(writer, tmp_path / "state" / "state.db")


def notice(number: int = 1, severity: Severity = Severity.CRITICAL) -> Notice:
    return Notice(f"k{number}", Kind.TEST, NOW, severity, facts={"by": "ann"})


def alerts(kept: State, *channels: Channel, record: Any = lambda *_: None) -> Alerts:
    return Alerts(kept, AlertSettings(channels, Habits(digest_min=None)), record)


def listed(events: Events, at: float, target: str = "203.0.113.7") -> None:
    events.observe(Check(target, "zen", Status.LISTED, at - 300, (SBL,)))
    events.observe(Check(target, "zen", Status.LISTED, at, (SBL,)))


# --- the channels


def test_a_mail_arrives(email: EmailChannel, relay: Relay) -> None:
    """With its title, its text, its Message-ID and all who read it."""
    assert send(MESSAGE, email) == ""
    (mail,) = relay.mails
    assert (mail["Subject"], mail["Message-ID"]) == ("HIGH: ünïcode", "<m1.alert@example.net>")
    assert mail.get_content().splitlines()[:3] == ["What", "  two", "  lines"]


def test_a_login_goes_over_tls(guarded: EmailChannel, relay: Relay) -> None:
    """STARTTLS with a certificate that is checked, then the password."""
    send(MESSAGE, guarded)
    assert len(relay.mails) == 1


def test_a_certificate_that_nobody_vouches_for_gets_no_password(guarded: EmailChannel, relay: Relay) -> None:
    """The connection ends before the login."""
    with pytest.raises(DeliveryError, match="certificate verify failed"):
        send(MESSAGE, replace(guarded, ca_file=""))
    assert relay.mails == []


def test_a_wrong_password_is_a_failure_that_does_not_tell_it(guarded: EmailChannel) -> None:
    """What the relay says is told, the password is not."""
    with pytest.raises(DeliveryError, match="refused the login: 535") as failure:
        send(MESSAGE, replace(guarded, password="wr0ng"))
    assert "wr0ng" not in str(failure.value)
    assert "s3cret" not in repr(guarded)


def test_some_readers_are_better_than_none(email: EmailChannel, relay: Relay) -> None:
    """One mailbox that is refused does not keep the mail from the others, and is named."""
    relay.refused = {"a@example.net"}
    assert send(MESSAGE, email) == "refused: a@example.net: 451 4.3.0 come back later"
    assert len(relay.mails) == 1
    relay.down = True
    with pytest.raises(DeliveryError, match="refused every recipient"):
        send(MESSAGE, email)


def test_a_post_arrives(slack: SlackChannel, hook: Hook) -> None:
    """Text for the notification, blocks for the channel."""
    assert send(MESSAGE, slack) == ""
    assert hook.posts[0]["text"] == ":large_orange_circle: HIGH: ünïcode"
    assert [block["type"] for block in hook.posts[0]["blocks"]] == ["header", "section", "section"]
    assert hook.paths == [f"/services/{SECRET}"]


@pytest.mark.parametrize(
    ("answer", "problem", "wait_s"),
    [
        ((404, "no_service", {}), "127.0.0.1 answered 404 no_service", None),
        ((429, "", {"Retry-After": "77"}), "127.0.0.1 answered 429", 77.0),
        ((302, "", {"Location": "http://127.0.0.1:1/"}), "127.0.0.1 answered 302", None),
    ],
)
def test_a_webhook_that_refuses_is_a_failure(
    slack: SlackChannel, hook: Hook, answer: Any, problem: str, wait_s: float | None
) -> None:
    """What it says is told; what it asks for is heeded; nobody is followed elsewhere."""
    hook.answer = answer
    with pytest.raises(DeliveryError) as failure:
        send(MESSAGE, slack)
    assert (str(failure.value), failure.value.wait_s) == (problem, wait_s)
    assert len(hook.posts) == 1


def test_no_error_tells_a_webhooks_address() -> None:
    """Its path is its password; the errors of `requests` have it in them."""
    gone = SlackChannel(f"http://127.0.0.1:1/services/{SECRET}")
    with pytest.raises(DeliveryError) as failure:
        send(MESSAGE, gone)
    assert str(failure.value) == "127.0.0.1: ConnectionError"
    assert failure.value.__cause__ is None
    assert SECRET not in repr(gone)


DRIPPED = """
import sys
from gevent import monkey
monkey.patch_all()
import gevent
from gevent.server import StreamServer
from engine.core.listing import Severity
from engine.core.notice import Message
from engine.reputation import delivery
from engine.reputation.channels import EmailChannel, SlackChannel, Tls
delivery.TOTAL_S = 0.5
def drip(sock, _):
    while True:
        sock.sendall(b"2")
        gevent.sleep(0.05)
server = StreamServer(("127.0.0.1", 0), drip)
server.start()
port = server.server_port
slack = SlackChannel(f"http://127.0.0.1:{port}/x")
email = EmailChannel("127.0.0.1", port, Tls.NONE, "a@example.net", ("b@example.net",))
for channel in (slack, email):
    try:
        delivery.send(Message("m1", 0.0, Severity.HIGH, "x", (("What", "y"),), "", "t"), channel)
    except delivery.DeliveryError as error:
        print(error, flush=True)
"""


def test_a_channel_that_drips_is_given_up() -> None:
    """Each octet is in time, and the answer never ends: the other channels don't wait for that."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIPPED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["the delivery took longer than 0 s"] * 2, done.stderr


# --- the outbox


def test_an_event_is_told_on_every_channel_once(
    kept: State, email: EmailChannel, relay: Relay, slack: SlackChannel, hook: Hook
) -> None:
    """From the second answer of a list to a mail and a post; the end goes the same way."""
    counted: list[tuple[str, str]] = []
    events = Events(kept, lambda name: Procedure(name, Method.FORM, "https://check.example/"))
    desk = alerts(kept, email, slack, record=lambda *said: counted.append(said))
    listed(events, NOW)
    assert desk.turn(NOW + 1) == []
    for number in range(3):
        desk.turn(NOW + GATHER_S + number)
    assert [mail["Subject"] for mail in relay.mails] == ["CRITICAL: 203.0.113.7 is listed on zen/sbl"]
    assert len(hook.posts) == 1
    assert sorted(counted) == [("email", "sent"), ("slack", "sent")]
    for at in (NOW + 900, NOW + 1800):
        events.observe(Check("203.0.113.7", "zen", Status.CLEAN, at))
    desk.turn(NOW + 1800 + GATHER_S)
    assert relay.mails[-1]["Subject"] == "Resolved: 203.0.113.7 is off zen/sbl"
    assert desk.waiting() == {}


def test_a_failed_list_takes_back_what_was_not_told_yet(kept: State, email: EmailChannel, relay: Relay) -> None:
    """A list that lists the world is one message about the list; nobody is told of any address."""
    events, desk = Events(kept), alerts(kept, email)
    for number in range(1, 30):
        listed(events, NOW, f"203.0.113.{number}")
    events.list_failed("zen", "the world is listed", last_good=NOW - 600, severity=Severity.CRITICAL, now=NOW + 30)
    events.list_failed("zen", "the world is listed", last_good=NOW - 600, severity=Severity.CRITICAL, now=NOW + 60)
    for number in range(5):
        desk.turn(NOW + GATHER_S + 60 + number)
    assert [mail["Subject"] for mail in relay.mails] == ["List broken: zen is not checked"]
    assert "29 listings" in relay.mails[0].get_content()
    assert kept.read(lambda conn: tables.events(conn)) == []
    events.list_usable("zen", severity=Severity.CRITICAL, last_good=NOW - 600, now=NOW + 3600)
    desk.turn(NOW + 3600 + GATHER_S)
    assert relay.mails[-1]["Subject"] == "Resolved: zen is checked again"


def test_a_channel_hears_what_it_wants_to(
    kept: State, email: EmailChannel, relay: Relay, slack: SlackChannel, hook: Hook
) -> None:
    """Each channel has its own least severity."""
    low = replace(SBL, severity=Severity.LOW)
    events, desk = Events(kept), alerts(kept, email, replace(slack, least=Severity.HIGH))
    for at in (NOW - 300, NOW):
        events.observe(Check("203.0.113.7", "zen", Status.LISTED, at, (low,)))
    desk.turn(NOW + GATHER_S)
    assert (len(relay.mails), len(hook.posts)) == (1, 0)


def test_what_fails_is_tried_again_and_holds_nobody_up(
    kept: State, email: EmailChannel, relay: Relay, slack: SlackChannel, hook: Hook
) -> None:
    """Each time a little later; the other channel has it at once, and the failure is counted."""
    counted: list[tuple[str, str]] = []
    desk = alerts(kept, email, slack, record=lambda *said: counted.append(said))
    relay.down = True
    kept.enqueue(lambda conn: tables.put_notices(conn, [notice()])).wait()
    at = NOW
    for number in range(4):
        (failed,) = [each for each in desk.turn(at) if not each.sent]
        assert failed.channel == "email"
        assert "refused every recipient" in failed.problem
        assert [each for each in desk.turn(at + FIRST_WAIT_S * 2**number - 1) if each.channel == "email"] == []
        at += FIRST_WAIT_S * 2**number
    assert len(hook.posts) == 1
    assert desk.waiting() == {"email": (1, NOW)}
    relay.down = False
    assert [each.sent for each in desk.turn(at)] == [True]
    assert counted.count(("email", "failed")) == 4
    assert len(relay.mails) == 1


def test_without_a_channel_notices_wait(kept: State, email: EmailChannel, relay: Relay) -> None:
    """Whoever sets a channel up later learns what is open."""
    kept.enqueue(lambda conn: tables.put_notices(conn, [notice()])).wait()
    assert alerts(kept).turn(NOW) == []
    alerts(kept, email).turn(NOW + 60)
    assert len(relay.mails) == 1


def test_a_digest_is_sent_once_a_day(kept: State, email: EmailChannel, relay: Relay) -> None:
    """However often somebody looks, and also when nothing is wrong."""
    desk = Alerts(kept, AlertSettings((replace(email, least=Severity.CRITICAL),), Habits(digest_min=14 * 60)))
    for number in range(5):
        desk.turn(NOW + number * 600)
    desk.turn(NOW + 86_400)
    assert [mail["Subject"] for mail in relay.mails] == ["Daily digest: nothing listed"] * 2


def test_a_digest_names_the_lists_that_may_not_be_asked(kept: State, email: EmailChannel, relay: Relay) -> None:
    """With what they want: what they don't say is no clean bill."""
    desk = Alerts(kept, AlertSettings((email,), Habits(digest_min=14 * 60)))
    desk.unasked = ["spamhaus-zen, critical (needs a key)"]
    desk.turn(NOW)
    assert relay.mails[0]["Subject"] == "Daily digest: nothing listed, 1 list not checked"
    assert "spamhaus-zen, critical (needs a key)" in relay.mails[0].get_content()


def test_a_request_that_nobody_makes_is_told_once(kept: State, email: EmailChannel, relay: Relay) -> None:
    """After its time, and not every ten seconds from then on."""
    events = Events(kept, lambda name: Procedure(name, Method.FORM, "https://check.example/"))
    desk = alerts(kept, email)
    listed(events, NOW)
    for number in range(20):
        desk.turn(NOW + number * 3600)
    assert [mail["Subject"].partition(":")[0] for mail in relay.mails] == ["CRITICAL", "Overdue"]


KILLED = """
import sys
from pathlib import Path
from engine.core.listing import Severity
from engine.core.notice import Kind, Notice
from engine.reputation.alert import Habits
from engine.reputation.channels import AlertSettings, EmailChannel, Tls
from engine.reputation.delivery import Alerts
from engine.store import reputation as tables
from engine.store.state import State
from engine.store.writer import Writer

kept = State(Writer(), Path(sys.argv[1]))
channel = EmailChannel("127.0.0.1", int(sys.argv[2]), Tls.NONE, "engine@example.net", ("a@example.net",))
desk = Alerts(kept, AlertSettings((channel,), Habits(digest_min=None)))
now = 1_790_000_000.0
for number in range(100_000):
    notice = Notice(f"k{number}", Kind.TEST, now, Severity.HIGH, facts={"by": str(number)})
    kept.enqueue(lambda conn: tables.put_notices(conn, [notice])).wait()
    print(number, flush=True)
    desk.turn(now)
"""


def test_kill_9_loses_no_alert_and_repeats_none(email: EmailChannel, relay: Relay, tmp_path: Path) -> None:
    """All that was noted is delivered after the next start; what may come twice has the same Message-ID."""
    path = tmp_path / "state" / "state.db"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(email.port)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(10)]
    os.kill(process.pid, signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().splitlines()]
    process.stdout.close()
    process.wait()
    with Writer() as writer:
        kept = State(writer, path)
        for number in range(3):
            alerts(kept, email).turn(NOW + number * tables.LEASE_S)
        assert alerts(kept, email).waiting() == {}
    said = {mail["Message-ID"]: int(mail.get_content().split("sent by ")[1].split(".")[0]) for mail in relay.mails}
    assert set(said.values()) >= set(told)
    assert len(relay.mails) - len(said) <= 1  # only the one in flight may come twice


# --- the settings


FILE = """
alerts:
  email:
    host: smtp.example.net
    username: engine
    from: engine@example.net
    to: [oncall@example.net, b@example.net]
    least: medium
  slack: {least: high}
  quiet: {from: 22:00, to: "07:00"}
  digest: "08:30"
  timezone: Europe/Amsterdam
"""


def read(tmp_path: Path, text: str, **environ: str) -> AlertSettings:
    path = tmp_path / "engine.yaml"
    path.write_text(text)
    return read_alerts(load_configuration(path, environ))


def test_the_section_is_read_with_its_secrets_from_elsewhere(tmp_path: Path) -> None:
    """A password from the environment, a webhook from a file that the environment names."""
    (tmp_path / "hook").write_text(f"https://hooks.slack.com/services/{SECRET}\n")
    found = read(
        tmp_path, FILE, ENGINE_ALERTS_EMAIL_PASSWORD="s3cret", ENGINE_ALERTS_SLACK_WEBHOOK_FILE=str(tmp_path / "hook")
    )
    email, slack = found.channels
    assert email == EmailChannel(
        "smtp.example.net", 587, Tls.STARTTLS, "engine@example.net", ("oncall@example.net", "b@example.net"), "engine",
        "s3cret", least=Severity.MEDIUM,
    )  # fmt: skip
    assert slack == SlackChannel(f"https://hooks.slack.com/services/{SECRET}", Severity.HIGH)
    habits = found.habits
    assert (habits.least, habits.digest_min, str(habits.zone)) == (Severity.MEDIUM, 8 * 60 + 30, "Europe/Amsterdam")
    assert habits.quiet is not None
    assert (habits.quiet.start_min, habits.quiet.end_min, habits.quiet.below) == (22 * 60, 7 * 60, Severity.HIGH)
    assert "s3cret" not in repr(found)
    assert SECRET not in repr(found)


def test_without_the_section_there_is_no_channel(tmp_path: Path) -> None:
    """Unless the environment has a webhook: a container needs no file."""
    assert read(tmp_path, "concurrency: 5").channels == ()
    hook = f"https://hooks.slack.com/services/{SECRET}"
    assert read(tmp_path, "", ENGINE_ALERTS_SLACK_WEBHOOK=hook).channels == (SlackChannel(hook),)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("    host: smtp.example.net\n", "", "alerts.email.host: is missing"),
        ("    username: engine\n", "    username: engine\n    tls: none\n", "tls: a password is not sent without TLS"),
        ("    username: engine\n", "    user: engine\n", "alerts.email.user: there is no such field"),
        ("to: [oncall@example.net, b@example.net]", "to: [oncall]", "'oncall' is not a mail address"),
        ("least: medium", "least: loud", "'loud' is not a severity (expected info, low, medium, high, critical)"),
        ("22:00", "25:00", "alerts.quiet.from: "),
        ("Europe/Amsterdam", "Mars/Base", "'Mars/Base' is no time zone"),
        ("slack: {least: high}", "slack: {webhook: ftp://x}", "alerts.slack.webhook: is no https address"),
        ("    from: engine@example.net\n", "", "alerts.email.from: is missing (who sends the alerts)"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, before: str, after: str, said: str) -> None:
    """File, line, field, and what is expected; never the secret."""
    assert before in FILE
    hook = {} if "webhook" in after else {"ENGINE_ALERTS_SLACK_WEBHOOK": f"https://hooks.slack.com/services/{SECRET}"}
    with pytest.raises(SettingsError) as failure:
        read(tmp_path, FILE.replace(before, after), ENGINE_ALERTS_EMAIL_PASSWORD="s3cret", **hook)
    assert said in str(failure.value)
    assert f"{tmp_path}/engine.yaml:" in str(failure.value)
    assert "s3cret" not in str(failure.value)


def test_the_section_is_a_known_one() -> None:
    """The settings file has it."""
    assert "alerts" in settings_file.SECTIONS
