"""Where alerts go: the section `alerts` of the settings file, and the environment.

1. A secret comes from the environment (`ENGINE_ALERTS_EMAIL_PASSWORD`, `ENGINE_ALERTS_SLACK_WEBHOOK`), from the file
   that the same name with `_FILE` names, or from the settings file, in this order. No `repr` shows it.
2. A password is never sent without TLS, except on this machine.
3. What is wrong is a SettingsError that names file, line and field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from email.headerregistry import Address
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from engine.core.listing import Severity
from engine.reputation.alert import Habits, Quiet
from engine.settings import Configuration, Part

FIELDS = ("email", "slack", "quiet", "digest", "timezone")
EMAIL_FIELDS = ("host", "port", "tls", "ca_file", "username", "password", "from", "to", "least")
SLACK_FIELDS = ("webhook", "least")
QUIET_FIELDS = ("from", "to", "below")
LEAST = Severity.LOW
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Tls(StrEnum):
    """How the connection to the mail relay is protected."""

    STARTTLS = "starttls"
    IMPLICIT = "implicit"
    NONE = "none"


_PORTS = {Tls.STARTTLS: 587, Tls.IMPLICIT: 465, Tls.NONE: 25}


@dataclass(frozen=True, slots=True)
class EmailChannel:
    """A mail relay and who reads the mails."""

    host: str
    port: int
    tls: Tls
    sender: str
    to: tuple[str, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    least: Severity = LEAST
    name: str = "email"


@dataclass(frozen=True, slots=True)
class SlackChannel:
    """A Slack incoming webhook; its address is its secret."""

    webhook: str = field(repr=False)
    least: Severity = LEAST
    name: str = "slack"


Channel = EmailChannel | SlackChannel


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """Where alerts go, and when people want to be told."""

    channels: tuple[Channel, ...] = ()
    habits: Habits = field(default_factory=Habits)


def read_alerts(settings: Configuration) -> AlertSettings:
    """The section `alerts`; without it, and without a secret in the environment, there is no channel."""
    part = settings.section("alerts")
    if part.value is not None:
        part.keys(FIELDS)
    found = (_email(part.at("email"), settings), _slack(part.at("slack"), settings))
    channels = tuple(channel for channel in found if channel is not None)
    least = min((channel.least for channel in channels), default=LEAST)
    return AlertSettings(
        channels, Habits(least, _quiet(part.at("quiet")), _digest(part.at("digest")), _zone(part.at("timezone")))
    )


def _email(part: Part, settings: Configuration) -> EmailChannel | None:
    if part.value is None:
        return None
    part.keys(EMAIL_FIELDS)
    tls = _tls(part.at("tls"))
    host = part.at("host").text(needed="the mail relay that takes the alerts")
    username = part.at("username").text()
    password = settings.secret("alerts_email_password") or part.at("password").text()
    if username and not password:
        raise part.at("password").wrong("is missing (or give ENGINE_ALERTS_EMAIL_PASSWORD or ..._FILE)")
    if username and tls is Tls.NONE and host not in _LOCAL:
        raise part.at("tls").wrong("a password is not sent without TLS (expected starttls or implicit)")
    to = part.at("to")
    if to.value is None or to.value == []:
        raise to.wrong("is missing (who reads the alerts: one address, or a list of them)")
    ca_file = part.at("ca_file").text()
    if ca_file and not Path(ca_file).is_file():
        raise part.at("ca_file").wrong(f"{ca_file}: there is no such file")
    return EmailChannel(
        host, _port(part.at("port"), _PORTS[tls]), tls, _address(part.at("from"), "who sends the alerts"),
        tuple(_address(each, "who reads the alerts") for each in to.each()), username, password, ca_file,
        _severity(part.at("least"), LEAST),
    )  # fmt: skip


def _slack(part: Part, settings: Configuration) -> SlackChannel | None:
    if part.value is not None:
        part.keys(SLACK_FIELDS)
    webhook = settings.secret("alerts_slack_webhook") or part.at("webhook").text()
    if not webhook:
        if part.value is not None:
            raise part.at("webhook").wrong("is missing (or give ENGINE_ALERTS_SLACK_WEBHOOK or ..._FILE)")
        return None
    split = urlsplit(webhook)
    if not split.hostname or not (split.scheme == "https" or (split.scheme == "http" and split.hostname in _LOCAL)):
        raise part.at("webhook").wrong("is no https address (expected https://hooks.slack.com/services/...)")
    return SlackChannel(webhook, _severity(part.at("least"), LEAST))


def _quiet(part: Part) -> Quiet | None:
    if part.value is None:
        return None
    part.keys(QUIET_FIELDS)
    start, end = (_required_minute(part.at(key)) for key in ("from", "to"))
    return Quiet(start, end, _severity(part.at("below"), Severity.HIGH))


def _digest(part: Part) -> int | None:
    """YAML reads a bare `off` or `no` as false."""
    if part.value is False or part.value == "off":
        return None
    return Habits().digest_min if part.value is None else _required_minute(part)


def _required_minute(part: Part) -> int:
    """Minutes after midnight. YAML 1.1 reads a bare 22:00 as a number in base 60: 1320, which is the same."""
    if type(part.value) is int and 0 <= part.value < 24 * 60:
        return part.value
    found = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", str(part.value))
    if found is None:
        raise part.wrong(f"{part.value!r} is not a time of the day (expected HH:MM, for example 22:00)")
    return int(found[1]) * 60 + int(found[2])


def _zone(part: Part) -> tzinfo:
    name = part.text()
    if name in ("", "UTC"):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise part.wrong(
            f"{name!r} is no time zone of this machine (expected one as Europe/Amsterdam, or UTC)"
        ) from None


def _severity(part: Part, default: Severity) -> Severity:
    labels = {severity.label: severity for severity in Severity}
    text = part.text() or default.label
    if text not in labels:
        raise part.wrong(f"{text!r} is not a severity (expected {', '.join(labels)})")
    return labels[text]


def _tls(part: Part) -> Tls:
    text = part.text() or Tls.STARTTLS
    if text not in list(Tls):
        raise part.wrong(f"{text!r} is not a way to protect it (expected {', '.join(Tls)})")
    return Tls(text)


def _port(part: Part, default: int) -> int:
    if part.value is None:
        return default
    if type(part.value) is not int or not 0 < part.value < 65_536:
        raise part.wrong(f"{part.value!r} is not a port (expected a number from 1 to 65535)")
    return part.value


def _address(part: Part, needed: str) -> str:
    text = part.text(needed=needed)
    try:
        address = Address(addr_spec=text)
    except (ValueError, IndexError):
        raise part.wrong(f"{text!r} is not a mail address (expected one as oncall@example.net)") from None
    if not address.domain or not text.isascii():
        raise part.wrong(f"{text!r} is not a mail address (expected one as oncall@example.net)")
    return text
