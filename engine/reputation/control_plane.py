"""A control plane that takes pushes over HTTP: who it is (the section `push`), and one post to it.

1. The token comes from `ENGINE_PUSH_TOKEN`, from the file that `ENGINE_PUSH_TOKEN_FILE` names, or from the settings, in
   this order. No `repr`, error or log line shows it, and it goes to the named address alone: nobody is followed
   elsewhere, and a .netrc changes nothing.
2. It is never sent without TLS, except on this machine.
3. Only a 2xx says that records arrived. 400, 413 and 422 speak of the batch; everything else speaks of the plane or of
   us, and the same records are posted again.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
import msgpack
import requests
import requests.auth
import urllib3

from engine.reputation.push_record import VERSION as CONTRACT
from engine.reputation.wording import plain
from engine.settings import Configuration, Part
from engine.version import VERSION

FIELDS = ("url", "token", "node", "format", "ca_file", "spool_mib")
TIMEOUT_S = 15.0  # of each step of a post
TOTAL_S = 60.0
LONGEST_ANSWER = 64 * 1024  # octets
LONGEST_WAIT_S = 3600.0  # that a Retry-After may ask for
_LOCAL = ("localhost", "127.0.0.1", "::1")
_OF_THE_BATCH = frozenset({400, 413, 422})
_TOKEN = re.compile(r"[\x21-\x7e]+")  # RFC 6750 allows fewer; Sanctum's `id|secret` is one of those it forgot
_SAID = {
    401: "does not know the token; give a new one by ENGINE_PUSH_TOKEN or push.token",
    403: "does not allow this token to push",
    404: "has nothing at that path; correct push.url",
    405: "takes no POST at that path; correct push.url",
    415: "does not read that format; set push.format to json",
}


class Format(StrEnum):
    """How a batch is written."""

    JSON = "json"
    MSGPACK = "msgpack"


_CONTENT_TYPES = {Format.JSON: "application/json", Format.MSGPACK: "application/msgpack"}


@dataclass(frozen=True, slots=True)
class PushSettings:
    """Where pushes go."""

    url: str
    token: str = field(repr=False)
    node: str
    format: Format = Format.JSON
    ca_file: str = ""
    spool_bytes: int = 256 * 1024 * 1024

    @property
    def where(self) -> str:
        """Whom this is, in messages."""
        return urlsplit(self.url).netloc


class PushError(Exception):
    """A batch that was not taken: why, in words; whether the batch itself is at fault; when to ask again (seconds)."""

    def __init__(self, problem: str, *, of_batch: bool = False, wait_s: float | None = None) -> None:
        super().__init__(problem, of_batch, wait_s)
        self.problem, self.of_batch, self.wait_s = problem, of_batch, wait_s

    def __str__(self) -> str:
        return self.problem


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that the control plane does not want, though it took the rest."""

    id: str
    why: str


def read_push(settings: Configuration, host: str = "") -> PushSettings | None:
    """The section `push`; None where neither it nor ENGINE_PUSH_URL is given. `host`: the node, if it is not named."""
    part = settings.section("push")
    url = settings.environ.get("ENGINE_PUSH_URL", "")
    if part.value is None and not url:
        return None
    if part.value is not None:
        part.keys(FIELDS)
    url = url or part.at("url").text(
        needed="the address that takes the records: https://control.example/api/v1/reputation"
    )
    split = urlsplit(url)
    if not split.hostname or split.scheme not in ("http", "https") or split.username or split.password:
        raise part.at("url").wrong("is no web address (expected https://HOST/PATH, and the token apart)")
    if split.scheme != "https" and split.hostname not in _LOCAL:
        raise part.at("url").wrong("a token is not sent without TLS (expected https://...)")
    token = settings.secret("push_token") or part.at("token").text()
    if not token:
        raise part.at("token").wrong("is missing (or give ENGINE_PUSH_TOKEN or ENGINE_PUSH_TOKEN_FILE)")
    if not _TOKEN.fullmatch(token):
        raise part.at("token").wrong("the token has a blank or a letter in it that no header can hold")
    named = part.at("format").text() or Format.JSON
    if named not in list(Format):
        raise part.at("format").wrong(f"{named!r} is not a format (expected {' or '.join(Format)})")
    ca_file = part.at("ca_file").text()
    if ca_file and not Path(ca_file).is_file():
        raise part.at("ca_file").wrong(f"{ca_file}: there is no such file")
    node = part.at("node").text() or host or socket.gethostname()
    return PushSettings(url, token, node, Format(named), ca_file, _mib(part.at("spool_mib")))


def _mib(part: Part) -> int:
    if part.value is None:
        return 256 * 1024 * 1024
    if type(part.value) is not int or not 1 <= part.value <= 1_000_000:
        raise part.wrong(f"{part.value!r} is not a size (expected MiB, a number from 1 on)")
    return part.value * 1024 * 1024


class ControlPlane:
    """One control plane, and the connection to it."""

    def __init__(self, settings: PushSettings) -> None:
        self.settings = settings
        self._session = requests.Session()

    def post(self, origin: str, records: Sequence[Mapping[str, Any]]) -> list[Refused]:
        """Post a batch; says which of it the plane refused. Raises PushError where the batch was not taken."""
        settings = self.settings
        body = {"version": CONTRACT, "node": settings.node, "origin": origin, "records": list(records)}
        headers = {
            "Content-Type": _CONTENT_TYPES[settings.format],
            "Accept": "application/json",
            "User-Agent": f"probe-engine/{VERSION}",
        }
        if records:
            headers["Idempotency-Key"] = f"{records[0]['id']}..{records[-1]['seq']}"
        try:
            with gevent.Timeout(TOTAL_S, PushError(f"{settings.where} took longer than {TOTAL_S:.0f} s")):
                answer = self._session.post(
                    settings.url, data=_packed(body, settings.format), headers=headers, auth=_Bearer(settings.token),
                    timeout=TIMEOUT_S, allow_redirects=False, stream=True, verify=settings.ca_file or True,
                )  # fmt: skip
                with answer:
                    said = answer.raw.read(LONGEST_ANSWER, decode_content=True)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise PushError(f"{settings.where}: {_cause(error)}") from None
        code = answer.status_code
        if 200 <= code < 300:
            return _refused(said)
        raise PushError(
            f"{settings.where} answered {code}: {_SAID.get(code) or _first_line(said)}".rstrip(": "),
            of_batch=code in _OF_THE_BATCH,
            wait_s=_retry_after_s(answer),
        )


class _Bearer(requests.auth.AuthBase):
    """RFC 6750. As `auth`, so that no .netrc takes its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _packed(body: Mapping[str, Any], how: Format) -> bytes:
    if how is Format.MSGPACK:
        packed: bytes = msgpack.packb(body)
        return packed
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _refused(said: bytes) -> list[Refused]:
    """What a 2xx says of single records; most planes say nothing."""
    try:
        body = json.loads(said)
    except (ValueError, UnicodeDecodeError, RecursionError):
        return []
    rows = body.get("refused") if isinstance(body, dict) else None
    if not isinstance(rows, list):
        return []
    return [
        Refused(plain(str(row["id"]), 80), plain(str(row.get("why") or "no reason given"), 200))
        for row in rows
        if isinstance(row, dict) and "id" in row
    ]


def _first_line(said: bytes) -> str:
    text = said.decode("utf-8", "replace").strip()
    return "" if text.startswith("<") else plain(text, 120)


def _cause(error: BaseException) -> str:
    """The innermost reason that says something; texts of `requests` hold addresses and objects."""
    found = type(error).__name__
    inner: BaseException | None = error
    for _ in range(8):
        if inner is None:
            break
        if isinstance(inner, OSError) and inner.strerror:
            found = inner.strerror
        inner = inner.__cause__ or inner.__context__
    return plain(found, 120)


def _retry_after_s(answer: requests.Response) -> float | None:
    """In seconds; a date is not taken: two clocks are none."""
    text = answer.headers.get("Retry-After", "").strip()
    return min(float(text), LONGEST_WAIT_S) if text.isdecimal() and len(text) < 10 else None
