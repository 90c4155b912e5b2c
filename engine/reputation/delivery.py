"""Alerts on their way: notices become messages, messages reach people.

1. What is to be said is in the outbox before anybody tries to say it. A message that could not be delivered is tried
   again after 30 s, 1 min, 2 min ... up to 1 h, for as long as its channel is in the settings.
2. A message that was delivered while the process died may come a second time. A mail has the same Message-ID then, and
   most mailboxes show it once; a webhook has nothing of the kind.
3. One channel that hangs holds up its own messages only, and for TOTAL_S at most each time.
4. A webhook's address and a password are secrets: no error, log line or row has them.
5. Runs in a process that gevent patched: `smtplib` and `requests` block whoever calls them. It works unpatched, too.
"""

from __future__ import annotations

import smtplib
import sqlite3
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import gevent
import requests
import urllib3

from engine.core.notice import Message, Notice
from engine.log import log
from engine.reputation import alert, delist
from engine.reputation.channels import AlertSettings, Channel, EmailChannel, SlackChannel, Tls
from engine.reputation.digest import digest
from engine.reputation.rendering import email_of, slack_body
from engine.reputation.wording import plain
from engine.store import reputation as tables
from engine.store.reputation import Parcel
from engine.store.state import State

TIMEOUT_S = 15.0  # for each step of a delivery
TOTAL_S = 90.0  # for all of them, in a patched process: each octet that drips in is a step
FIRST_WAIT_S, LONGEST_WAIT_S = 30.0, 3600.0
AT_ONCE = 20  # messages a channel and turn
LONGEST_ANSWER = 1024  # bytes; Slack says `ok` or one word
DAY_S = 86_400.0
LOOK_EVERY_S = 10.0

Record = Callable[[str, str], None]


class DeliveryError(Exception):
    """A message that a channel did not take: why, and when the channel wants to be asked again (seconds, or None)."""

    def __init__(self, problem: str, wait_s: float | None = None) -> None:
        super().__init__(problem, wait_s)
        self.problem, self.wait_s = problem, wait_s

    def __str__(self) -> str:
        return self.problem


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one message at one channel. One that was sent may have a `problem` too: whom it did not reach."""

    message: str
    channel: str
    sent: bool
    problem: str = ""


class Alerts:
    """Tells people what the notices of a state say. `record(channel, outcome)` counts: `sent` or `failed`."""

    def __init__(self, state: State, settings: AlertSettings, record: Record = lambda *_: None) -> None:
        self._state = state
        self._settings = settings
        self._record = record
        self.unasked: list[str] = []  # lists that may not be asked, for the digest

    def adopt(self, settings: AlertSettings) -> None:
        """Other channels and habits from the next turn on; what waits for a channel that stays goes on waiting."""
        self._settings = settings

    def serve(self) -> None:
        """Compose and deliver every LOOK_EVERY_S, until killed."""
        while True:
            self.turn(time.time())
            gevent.sleep(LOOK_EVERY_S)

    def turn(self, now: float) -> list[Delivered]:
        """One round: what is overdue, what is to be said, and what is in the outbox."""
        if not self._settings.channels:
            return []
        self.compose(now)
        rounds = [gevent.spawn(self._deliver, channel, now) for channel in self._settings.channels]
        try:
            gevent.joinall(rounds, raise_error=True)
        finally:
            gevent.killall(rounds, block=False)
        return [each for done in rounds for each in done.value]

    def compose(self, now: float) -> int:
        """Turn the notices that are ripe into messages of the outbox; says how many. One transaction."""
        habits, channels, unasked = self._settings.habits, self._settings.channels, list(self.unasked)

        def do(conn: sqlite3.Connection) -> int:
            tables.put_notices(conn, _overdue(conn, now))
            key = alert.digest_key(habits, now)
            if key and not tables.has_notice(conn, key):
                tables.put_notices(conn, [_digest(conn, key, now, unasked)])
            waiting = tables.waiting_notices(conn)
            recent = tables.notices_since(conn, now - alert.RECENT_S, told=True)
            told = tables.told_subjects(conn, [one.subject for one in waiting])
            composition = alert.compose(waiting, recent, told, habits, now)
            tables.settle(conn, composition.silent, now)
            for one in composition.messages:
                names = [each.name for each in channels if one.message.severity >= each.least or one.everywhere]
                tables.put_message(conn, one.message, names, now)
                tables.settle(conn, one.keys, now, one.message.id)
            return len(composition.messages)

        return self._state.enqueue(do).wait()

    def waiting(self) -> dict[str, tuple[int, float]]:
        """By channel: how many messages are not delivered yet, and since when (Unix seconds) the oldest waits."""
        return self._state.read(tables.parcels_waiting)

    def _deliver(self, channel: Channel, now: float) -> list[Delivered]:
        """Send what is due at one channel, until it fails."""
        done: list[Delivered] = []
        while len(done) < AT_ONCE and all(each.sent for each in done):
            parcel = self._state.enqueue(lambda conn: tables.take_parcel(conn, channel.name, now)).wait()
            if parcel is None:
                break
            done.append(self._send(parcel, channel, now))
        return done

    def _send(self, parcel: Parcel, channel: Channel, now: float) -> Delivered:
        number, name = parcel.message.id, channel.name
        try:
            refused = send(parcel.message, channel)
        except DeliveryError as error:
            wait_s, problem = max(_wait_s(parcel.attempts), error.wait_s or 0.0), error.problem
            self._state.enqueue(lambda conn: tables.parcel_failed(conn, parcel, now + wait_s, problem)).wait()
            self._record(name, "failed")
            log.warning("alert_failed", channel=name, message=number, why=problem, again_in_s=round(wait_s))
            return Delivered(number, name, sent=False, problem=problem)
        self._state.enqueue(lambda conn: tables.parcel_sent(conn, parcel, now, refused)).wait()
        self._record(name, "sent")
        if refused:
            log.warning("alert_refused", channel=name, message=number, why=refused)
        return Delivered(number, name, sent=True, problem=refused)


def send(message: Message, channel: Channel) -> str:
    """Deliver a message now; gives whom a mail did not reach, empty as a rule. Raises DeliveryError."""
    with gevent.Timeout(TOTAL_S, DeliveryError(f"the delivery took longer than {TOTAL_S:.0f} s")):
        return _send_mail(message, channel) if isinstance(channel, EmailChannel) else _post(message, channel)


def _send_mail(message: Message, channel: EmailChannel) -> str:
    mail = email_of(message, channel.sender, channel.to)
    # A name of our own: smtplib would look this machine up in the DNS to greet with.
    own_name = channel.sender.rpartition("@")[2]
    try:
        with _connected(channel, own_name) as relay:
            try:
                if channel.tls is Tls.STARTTLS:
                    relay.starttls(context=_context(channel))
                if channel.username:
                    relay.login(channel.username, channel.password)
                refused = relay.send_message(mail, channel.sender, channel.to)
            except DeliveryError:  # its time is over, and there is none for a QUIT
                relay.close()
                raise
    except smtplib.SMTPRecipientsRefused as error:
        raise DeliveryError(f"{channel.host} refused every recipient: {_replies(error.recipients)}") from None
    except smtplib.SMTPResponseException as error:
        said = f"{error.smtp_code} {plain(_text(error.smtp_error))}"
        what = "the login" if isinstance(error, smtplib.SMTPAuthenticationError) else "the mail"
        raise DeliveryError(f"{channel.host} refused {what}: {said}") from None
    except (smtplib.SMTPException, OSError) as error:
        raise DeliveryError(f"{channel.host}:{channel.port}: {type(error).__name__}: {plain(str(error))}") from None
    return f"refused: {_replies(refused)}" if refused else ""


def _connected(channel: EmailChannel, own_name: str) -> smtplib.SMTP:
    if channel.tls is Tls.IMPLICIT:
        return smtplib.SMTP_SSL(channel.host, channel.port, own_name, timeout=TIMEOUT_S, context=_context(channel))
    return smtplib.SMTP(channel.host, channel.port, own_name, timeout=TIMEOUT_S)


def _context(channel: EmailChannel) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=channel.ca_file or None)


def _replies(refused: dict[str, tuple[int, bytes]]) -> str:
    return "; ".join(f"{whom}: {code} {plain(_text(text))}" for whom, (code, text) in sorted(refused.items()))


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _post(message: Message, channel: SlackChannel) -> str:
    host = urlsplit(channel.webhook).hostname
    try:
        answer = requests.post(
            channel.webhook, json=slack_body(message), timeout=TIMEOUT_S, allow_redirects=False, stream=True
        )
        with answer:
            said = answer.raw.read(LONGEST_ANSWER, decode_content=True)
    except (requests.RequestException, OSError) as error:
        # The text of the error has the webhook's path in it (rule 4).
        raise DeliveryError(f"{host}: {type(error).__name__}") from None
    except urllib3.exceptions.HTTPError as error:
        raise DeliveryError(f"{host}: {type(error).__name__}") from None
    if answer.status_code != requests.codes.ok:
        text = plain(_text(said), 100)
        raise DeliveryError(f"{host} answered {answer.status_code} {text}".rstrip(), _retry_after_s(answer))
    return ""


def _retry_after_s(answer: requests.Response) -> float | None:
    """What the server asks for, in seconds; the form with a date is not used by those who rate-limit webhooks."""
    text = answer.headers.get("Retry-After", "")
    return min(float(text), LONGEST_WAIT_S) if text.isdecimal() and len(text) < 10 else None


def _wait_s(attempts: int) -> float:
    return min(FIRST_WAIT_S * 2.0 ** min(attempts - 1, 10), LONGEST_WAIT_S)


# ---- from here on: the writer's thread


def _overdue(conn: sqlite3.Connection, now: float) -> list[Notice]:
    found = []
    for request, event in tables.requests(conn):
        why = delist.overdue(request, event, now) if event.is_open else ""
        found += [alert.of_overdue(request, event, why, now)] if why else []
    return found


def _digest(conn: sqlite3.Connection, key: str, now: float, unasked: Sequence[str]) -> Notice:
    return digest(
        key, tables.events(conn, closed_since=now - DAY_S), tables.newest_answers(conn), tables.requests(conn), now,
        unasked,
    )  # fmt: skip
