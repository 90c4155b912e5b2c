"""How a mail server of the lab behaves: the values of one persona, and the texts that it says.

1. A persona is data. What it does with a command is decided in `conversation`, when bytes leave in `smtp`.
2. Every text that a server says has a name (`replies`); a persona states only those in which it differs.
3. The names of its fields are those of lab.yaml, so that the file, `LabProcess.set` and this class can't disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

STAGES = ("connect", "ehlo", "mail", "rcpt")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class LabError(Exception):
    """The lab's file, or the lab itself, is not as it must be; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Counts after which a server says no: recipients and domains of one transaction, recipients and errors of one
    session, and recipients of one client in a window (`rate`: count and seconds). Zero stands for no limit."""

    per_mail: int = 0
    domains: int = 0
    per_session: int = 0
    errors: int = 0
    rate: tuple[int, float] = (0, 0.0)


@dataclass(frozen=True, slots=True)
class Persona:
    """One way to behave. `replies` maps names of texts to texts, `does` is its sentence in the docs."""

    name: str
    does: str = ""
    replies: Mapping[str, str] = field(default_factory=dict)
    listen: str = "yes"  # no: connections are refused; full: connection attempts are never answered
    ehlo: bool = True
    pipelining: bool = True
    smtputf8: bool = False
    starttls: str = "offered"  # no | offered | required | unavailable (454) | broken (no handshake after the 220)
    serves: bool = True  # false: feels responsible for no domain
    block: str = "no"  # greeting | mail | rcpt: refuses the client there with `replies.block`
    hangup: str = "no"  # connect | ehlo | mail | rcpt: where it leaves the dialogue, in the manner of `manner`
    manner: str = "close"  # close | reset (RST) | silence (open, no more replies) | flood (an endless reply)
    greylist: float | None = None  # seconds from the first sight of (client, HELO, sender, recipient) to acceptance
    busy: int = 0  # sessions of a client that get `replies.busy` before it works
    busy_at: str = "connect"
    delay: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds before its reply
    drip: float = 0.0  # seconds between two bytes of a reply
    limits: Limits = Limits()

    def changed(self, values: Mapping[str, Any], *, where: str) -> Persona:
        """This persona with fields as lab.yaml writes them. `replies` and `limits` are merged, the rest replaced.

        Raises:
            LabError: a field or value is not known.
        """
        changes: dict[str, Any] = {}
        for key, value in values.items():
            check = _CHECKS.get(key)
            if check is None:
                raise LabError(f"{where}: {key!r} is no field of a persona; it has {', '.join(sorted(_CHECKS))}")
            try:
                changes[key] = check(self, value)
            except (TypeError, ValueError) as error:
                raise LabError(f"{where}: {key}: {value!r} is not {error}") from None
        return replace(self, **changes)


def seconds(value: object) -> float:
    """A duration such as `400ms`, `1s`, `2m`, or a plain number of seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = _DURATION.fullmatch(str(value))
    if match is None:
        raise ValueError("a duration such as 400ms, 2s or 1m")
    return float(match[1]) * _UNITS[match[2]]


def _one_of(*choices: str) -> Any:
    def check(_: Persona, value: object) -> str:
        text = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(text)

    return check


def _flag(_: Persona, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("yes or no")
    return value


def _count(_: Persona, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a count")
    return value


def _texts(persona: Persona, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError("a map of names of replies to texts")
    return {**persona.replies, **value}


def _delays(_: Persona, value: object) -> Mapping[str, float]:
    if not isinstance(value, Mapping) or not set(value) <= set(STAGES):
        raise TypeError(f"a map of {', '.join(STAGES)} to durations")
    return {stage: seconds(wait) for stage, wait in value.items()}


def _limits(persona: Persona, value: object) -> Limits:
    if not isinstance(value, Mapping) or not set(value) <= {each.name for each in fields(Limits)}:
        raise TypeError(f"a map with {', '.join(each.name for each in fields(Limits))}")
    values: dict[str, Any] = dict(value)
    if values.get("rate"):
        count, _, period = str(values["rate"]).partition("/")
        values["rate"] = (int(count), seconds(period))
    elif "rate" in values:
        values["rate"] = (0, 0.0)
    return replace(persona.limits, **values)


_CHECKS: dict[str, Any] = {
    "does": lambda _, value: str(value),
    "replies": _texts,
    "listen": _one_of("yes", "no", "full"),
    "ehlo": _flag,
    "pipelining": _flag,
    "smtputf8": _flag,
    "starttls": _one_of("no", "offered", "required", "unavailable", "broken"),
    "serves": _flag,
    "block": _one_of("no", "greeting", "mail", "rcpt"),
    "hangup": _one_of("no", *STAGES),
    "manner": _one_of("close", "reset", "silence", "flood"),
    "greylist": lambda _, value: None if value in (None, False) else seconds(value),
    "busy": _count,
    "busy_at": _one_of("connect", "rcpt"),
    "delay": _delays,
    "drip": lambda _, value: seconds(value),
    "limits": _limits,
}
