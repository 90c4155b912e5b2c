"""Laws of the push: what was checked and what happened reaches the control plane, once by its id, or waits on disk."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgpack
import pytest

from engine.core.listing import Check, Listing, Severity, Status
from engine.reputation import push as push_module
from engine.reputation.control_plane import ControlPlane, Format, PushError, PushSettings, read_push
from engine.reputation.push import LONGEST_WAIT_S, Push, spool_folder
from engine.reputation.record import Events
from engine.settings import SettingsError, load_configuration
from engine.store import push_outbox
from engine.store.state import State
from engine.store.writer import Writer

NOW = 1_790_000_000.0
TOKEN = "7|very-secret-indeed"
SBL = Listing("sbl", "127.0.0.2", Severity.CRITICAL, "a manual listing")


class Plane:
    """A control plane on loopback that keeps the contract, and misbehaves where it is told to."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []  # bodies that were taken
        self.headers: list[dict[str, str]] = []
        self.records: dict[str, dict[str, Any]] = {}  # by id: what a real one would have in its tables
        self.answers: list[tuple[int, str, dict[str, str]]] = []  # for the next posts; then 200
        self.poison: set[int] = set()  # batches with such a seq are refused with 422
        self.most = 10**9  # records that a batch may have, else 413
        self.down = False
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                packed = self.headers["Content-Type"] == "application/msgpack"
                code, text, headers = plane.take(
                    msgpack.unpackb(raw) if packed else json.loads(raw), dict(self.headers)
                )
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/api/v1/reputation"

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str, dict[str, str]]:
        self.headers.append(headers)
        if self.down:
            return 503, "back soon", {}
        if headers["Authorization"] != f"Bearer {TOKEN}":
            return 401, '{"message": "Unauthenticated."}', {}
        if self.answers:
            return self.answers.pop(0)
        if len(body["records"]) > self.most:
            return 413, "", {}
        if self.poison & {record["seq"] for record in body["records"]}:
            return 422, "no such severity", {}
        self.posts.append(body)
        self.records |= {record["id"]: record for record in body["records"]}
        return 200, "{}", {}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def seqs(self) -> list[int]:
        """Of every record of every batch that was taken, in the order of their arrival."""
        return [record["seq"] for body in self.posts for record in body["records"]]


@pytest.fixture
def plane() -> Iterator[Plane]:
    made = Plane()
    yield made
    made.close()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[State]:
    with Writer() as writer:
        yield State(writer, tmp_path / "state" / "state.db")


class Counts:
    def __init__(self) -> None:
        self.records: dict[str, int] = {}
        self.posts: dict[str, int] = {}

    def pushed(self, outcome: str, count: int) -> None:
        self.records[outcome] = self.records.get(outcome, 0) + count

    def posted(self, outcome: str) -> None:
        self.posts[outcome] = self.posts.get(outcome, 0) + 1


def settings(plane: Plane, **more: Any) -> PushSettings:
    return PushSettings(**({"url": plane.url, "token": TOKEN, "node": "node-1"} | more))


def pusher(kept: State, plane: Plane, counts: Counts | None = None, **more: Any) -> Push:
    return Push(kept, settings(plane, **more), counts, rng=random.Random(1))


def checks(kept: State, count: int, start: int = 0) -> None:
    events = Events(kept, pushes=True)
    for number in range(start, start + count):
        events.observe(Check(f"203.0.113.{number}", "zen", Status.CLEAN, NOW + number, latency_ms=3.5, ttl_s=300))


# --- what arrives


def test_checks_and_events_arrive_with_the_names_of_the_contract(kept: State, plane: Plane) -> None:
    """Two answers and what they opened, in this order, with the token."""
    events = Events(kept, pushes=True)
    for at in (NOW - 300, NOW):
        events.observe(Check("203.0.113.7", "zen", Status.LISTED, at, (SBL,), ("see https://x.example/",), "", 4.2, 60))
    assert pusher(kept, plane).turn(NOW) == 3
    (body,) = plane.posts
    assert (body["version"], body["node"], len(body["origin"])) == (1, "node-1", 16)
    first, second, opened = body["records"]
    assert first == {
        "id": f"{body['origin']}-1", "seq": 1, "kind": "check", "ip": "203.0.113.7", "rbl": "zen", "status": "listed",
        "checked_at": "2026-09-21T14:08:20.000Z", "reliable": True, "detail": "", "latency_ms": 4.2, "ttl_s": 60,
        "listings": [
            {"sublist": "sbl", "code": "127.0.0.2", "severity": "critical", "meaning": "a manual listing"}
        ],
        "txt": ["see https://x.example/"],
    }  # fmt: skip
    assert second["kind"] == "check"
    assert (opened["kind"], opened["change"], opened["event"], opened["sublist"]) == ("event", "opened", 1, "sbl")
    assert (opened["first_seen"], opened["last_seen"]) == ("2026-09-21T14:08:20.000Z", "2026-09-21T14:13:20.000Z")
    assert (opened["severity"], opened["closed_at"], opened["close_reason"]) == ("critical", None, None)
    assert plane.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    assert plane.headers[0]["Idempotency-Key"] == f"{body['origin']}-1..3"


def test_msgpack_says_the_same_as_json(kept: State, plane: Plane) -> None:
    """By content type; the body is the same map."""
    checks(kept, 1)
    pusher(kept, plane, format=Format.MSGPACK).turn(NOW)
    checks(kept, 1)
    pusher(kept, plane).turn(NOW)
    assert [each["Content-Type"] for each in plane.headers] == ["application/msgpack", "application/json"]
    packed, plain = (body["records"][0] for body in plane.posts)
    assert {**packed, "id": "", "seq": 0} == {**plain, "id": "", "seq": 0}


def test_a_lists_failure_and_its_end_arrive(kept: State, plane: Plane) -> None:
    """What it threw doubt on is named, and the event that it takes back."""
    events = Events(kept)  # without checks: those are pushed only where the settings say so
    for at in (NOW - 300, NOW):
        events.observe(Check("203.0.113.7", "zen", Status.LISTED, at, (SBL,)))
    for _ in range(2):
        events.list_failed(
            "zen", "lists the world", last_good=NOW - 600, severity=Severity.CRITICAL, now=NOW + 60,
            doubted=frozenset({Status.LISTED}),
        )  # fmt: skip
    events.list_usable("zen", severity=Severity.CRITICAL, last_good=NOW - 600, now=NOW + 900)
    pusher(kept, plane).turn(NOW)
    told = [(each["kind"], each.get("change"), each.get("close_reason"), each.get("usable"), each.get("doubted"))
            for each in plane.posts[0]["records"]]  # fmt: skip
    assert told == [
        ("event", "opened", None, None, None),
        ("event", "closed", "list_failure", None, None),
        ("list", None, None, False, "listed"),
        ("list", None, None, True, None),
    ]


def test_many_records_go_in_batches_and_in_order(kept: State, plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is bounded; nothing is left behind."""
    monkeypatch.setattr(push_module, "AT_ONCE", 10)
    checks(kept, 35)
    push = pusher(kept, plane)
    assert push.turn(NOW) == 35
    assert [len(body["records"]) for body in plane.posts] == [10, 10, 10, 5]
    assert plane.seqs == list(range(1, 36))
    assert push.waiting == 0
    assert list(spool_folder(kept.path).glob("*.spool")) == []


# --- while it is away


def test_what_a_plane_does_not_take_waits_on_disk_over_restarts(kept: State, plane: Plane) -> None:
    """It is asked again ever more rarely, and gets all of it in order when it is back, each record once."""
    plane.down = True
    counts = Counts()
    push = pusher(kept, plane, counts)
    at = NOW
    for number in range(0, 50, 5):
        checks(kept, 5, number)
        assert push.turn(at) == 0
        at += 1.0
    assert (push.waiting, push.problem) == (50, f"{settings(plane).where} answered 503: back soon")
    assert 2 <= counts.posts["failed"] < 8
    assert push.stalled_since == NOW
    assert kept.read(push_outbox.count) == 0
    plane.down = False
    again = pusher(kept, plane)
    assert again.turn(at) == 50
    assert plane.seqs == list(range(1, 51))
    assert (again.waiting, again.problem, again.stalled_since) == (0, "", None)


def test_a_retry_after_is_heeded_and_a_wait_has_an_end(kept: State, plane: Plane) -> None:
    """The plane's own word counts; else it is asked at least every few minutes."""
    push = pusher(kept, plane)
    checks(kept, 1)
    plane.answers = [(429, "", {"Retry-After": "1000"})]
    push.turn(NOW)
    assert push.turn(NOW + 999) == 0
    assert push.turn(NOW + 1000) == 1
    plane.down = True
    checks(kept, 1)
    for number in range(20):
        push.turn(NOW + 2000 + number * 2 * LONGEST_WAIT_S)
    asked = len(plane.headers)
    plane.down = False
    assert push.turn(NOW + 2000 + 21 * 2 * LONGEST_WAIT_S) == 1
    assert len(plane.headers) == asked + 1


def test_a_plane_that_nobody_hears_from_is_no_error(kept: State, plane: Plane) -> None:
    """The host is named with the reason; the token is not."""
    gone = Push(kept, PushSettings("http://127.0.0.1:1/x", TOKEN, "node-1"))
    checks(kept, 1)
    assert gone.turn(NOW) == 0
    assert gone.problem == "127.0.0.1:1: Connection refused"
    assert "secret" not in repr(settings(plane))


def test_a_batch_that_was_taken_without_a_word_comes_again_with_the_same_ids(kept: State, plane: Plane) -> None:
    """The answer was lost: a receiver that keeps records by id has each once."""
    checks(kept, 3)
    plane.answers = [(500, "", {})]
    push = pusher(kept, plane)
    push.turn(NOW)
    first = plane.headers[0]["Idempotency-Key"]
    assert push.turn(NOW + 60) == 3
    assert plane.headers[1]["Idempotency-Key"] == first
    assert len(plane.records) == 3


def test_a_new_token_is_used_at_once(kept: State, plane: Plane) -> None:
    """SIGHUP loads it; nothing waits for the end of a wait that the old one earned."""
    push = pusher(kept, plane, token="8|revoked")
    checks(kept, 1)
    assert push.turn(NOW) == 0
    assert "does not know the token" in push.problem
    push.adopt(settings(plane))
    assert push.turn(NOW) == 1


# --- what it refuses


def test_a_record_at_fault_is_passed_over_alone(kept: State, plane: Plane) -> None:
    """It is found by halves, counted, and holds up nobody."""
    checks(kept, 20)
    plane.poison = {7}
    counts = Counts()
    push = pusher(kept, plane, counts)
    assert push.turn(NOW) == 19
    assert plane.seqs == [seq for seq in range(1, 21) if seq != 7]
    assert counts.records == {"sent": 19, "refused": 1}
    assert push.waiting == 0


def test_a_plane_that_refuses_everything_gets_nothing_passed_over(kept: State, plane: Plane) -> None:
    """Its quarrel is with us: all of it waits."""
    checks(kept, 5)
    plane.answers = [(400, "wrong version", {})] * 20
    push = pusher(kept, plane)
    assert push.turn(NOW) == 0
    assert push.waiting == 5
    assert "answered 400: wrong version" in push.problem
    plane.answers = []
    assert push.turn(NOW + 60) == 5


def test_a_plane_that_takes_only_small_batches_gets_small_ones(kept: State, plane: Plane) -> None:
    """413 halves them."""
    plane.most = 3
    checks(kept, 12)
    assert pusher(kept, plane).turn(NOW) == 12
    assert plane.seqs == list(range(1, 13))


def test_single_refusals_inside_a_yes_are_counted(kept: State, plane: Plane) -> None:
    """A plane may take a batch and say which records it does not want."""
    checks(kept, 2)
    origin = kept.enqueue(push_outbox.origin_of).wait()
    plane.answers = [(200, json.dumps({"refused": [{"id": f"{origin}-2", "why": "too old"}]}), {})]
    counts = Counts()
    assert pusher(kept, plane, counts).turn(NOW) == 1
    assert counts.records == {"sent": 1, "refused": 1}


@pytest.mark.parametrize(
    ("code", "said"), [(401, "does not know the token"), (404, "correct push.url"), (415, "set push.format to json")]
)
def test_what_an_operator_has_to_mend_is_said(plane: Plane, code: int, said: str) -> None:
    """In words, with the host."""
    plane.answers = [(code, "<html>no</html>", {})]
    with pytest.raises(PushError, match=said) as failure:
        ControlPlane(settings(plane)).post("", [])
    assert not failure.value.of_batch


def test_the_token_follows_nobody_elsewhere(plane: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No redirect is followed, and a .netrc does not take its place."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    plane.answers = [(302, "", {"Location": plane.url})]
    with pytest.raises(PushError, match="answered 302"):
        ControlPlane(settings(plane)).post("", [])
    assert [each["Authorization"] for each in plane.headers] == [f"Bearer {TOKEN}"]


# --- disk and death


def test_a_full_spool_drops_checks_and_keeps_events(kept: State, plane: Plane) -> None:
    """The next sweep makes new checks; nothing makes an event anew."""
    plane.down = True
    counts = Counts()
    push = pusher(kept, plane, counts, spool_bytes=1)
    checks(kept, 3)
    push.turn(NOW)  # the first batch fills it
    events = Events(kept, pushes=True)
    for at in (NOW - 300, NOW):
        events.observe(Check("203.0.113.7", "zen", Status.LISTED, at, (SBL,)))
    push.turn(NOW + 1)
    assert counts.records == {"dropped": 2}
    plane.down = False
    push.turn(NOW + 1000)
    push.turn(NOW + 2000)
    assert [each["kind"] for body in plane.posts for each in body["records"]] == ["check"] * 3 + ["event"]


def test_a_spool_that_cant_be_made_is_a_problem_and_loses_nothing(kept: State, plane: Plane) -> None:
    """It is told with its path; the records stay in the state."""
    spool_folder(kept.path).write_text("a file")
    checks(kept, 2)
    push = pusher(kept, plane)
    assert push.turn(NOW) == 0
    assert str(spool_folder(kept.path)) in push.problem
    assert kept.read(push_outbox.count) == 2
    spool_folder(kept.path).unlink()
    assert push.turn(NOW + 600) == 2


def test_without_a_plane_only_events_are_kept_for_one(kept: State, plane: Plane) -> None:
    """Who sets one up later learns what happened; months of checks are not kept for nobody."""
    events = Events(kept)
    for at in (NOW - 300, NOW):
        events.observe(Check("203.0.113.7", "zen", Status.LISTED, at, (SBL,)))
    assert kept.read(push_outbox.count) == 1
    events.prune(NOW + push_outbox.KEEP_S + 1)
    assert kept.read(push_outbox.count) == 0


KILLED = """
import sys
from gevent import monkey
monkey.patch_all()
import gevent
from pathlib import Path
from engine.core.listing import Check, Listing, Severity, Status
from engine.reputation.control_plane import PushSettings
from engine.reputation.push import Push
from engine.reputation.record import Events
from engine.store.state import State
from engine.store.writer import Writer
path, url, token, start = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
with Writer() as writer:
    kept = State(writer, path)
    events, push = Events(kept, pushes=True), Push(kept, PushSettings(url, token, "node-1"))
    def work():
        while True:
            push.turn(NOW)
            gevent.sleep(0)
    gevent.spawn(work)
    sbl = Listing("sbl", "127.0.0.2", Severity.CRITICAL, "a manual listing")
    for number in range(start, start + 100000):
        target = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        for at in (NOW, NOW + 300):
            events.observe(Check(target, "zen", Status.LISTED, at, (sbl,)))
        print(target, flush=True)
""".replace("NOW", str(NOW))


def test_kill_9_loses_no_record_and_a_second_delivery_has_the_same_id(tmp_path: Path, plane: Plane) -> None:
    """Killed again and again while it spools and posts: every event that was committed arrives, and one only by id."""
    path = tmp_path / "state" / "state.db"
    told: list[str] = []
    for life in range(4):
        command = [sys.executable, "-W", "ignore", "-c", KILLED, str(path), plane.url, TOKEN, str(life * 1000)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(5 + 7 * life):
            told.append(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().split()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
    with Writer() as writer:
        kept = State(writer, path)
        pusher(kept, plane).turn(NOW)
        assert kept.read(push_outbox.count) == 0
    opened = [each for each in plane.records.values() if each["kind"] == "event"]
    assert "" not in told
    assert set(told) <= {each["ip"] for each in opened}
    assert len({each["event"] for each in opened}) == len(opened)
    assert sorted(each["seq"] for each in plane.records.values()) == list(range(1, len(plane.records) + 1))


# --- the settings


FILE = """
push:
  url: https://control.example/api/v1/reputation
  format: msgpack
  node: node-7
  spool_mib: 64
"""


def read(tmp_path: Path, text: str, **environ: str) -> PushSettings | None:
    path = tmp_path / "engine.yaml"
    path.write_text(text)
    return read_push(load_configuration(path, environ))


def test_the_section_is_read_with_its_token_from_elsewhere(tmp_path: Path) -> None:
    """From the environment or a file that it names; a container needs no section at all."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    found = read(tmp_path, FILE, ENGINE_PUSH_TOKEN_FILE=str(tmp_path / "token"))
    assert found == PushSettings(
        "https://control.example/api/v1/reputation", TOKEN, "node-7", Format.MSGPACK, "", 64 * 1024 * 1024
    )
    assert read(tmp_path, "") is None
    bare = read(tmp_path, "", ENGINE_PUSH_URL="https://c.example/", ENGINE_PUSH_TOKEN=TOKEN)
    assert bare is not None
    assert (bare.url, bare.format) == ("https://c.example/", Format.JSON)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("  url: https://control.example/api/v1/reputation\n", "", "push.url: is missing"),
        ("https://control", "http://control", "a token is not sent without TLS"),
        ("https://control", "https://me:pw@control", "push.url: is no web address"),
        ("format: msgpack", "format: xml", "'xml' is not a format (expected json or msgpack)"),
        ("spool_mib: 64", "spool_mib: lots", "push.spool_mib: 'lots' is not a size"),
        ("node: node-7", "nodes: node-7", "push.nodes: there is no such field (did you mean node?)"),
        ("node: node-7", "ca_file: /nowhere.pem", "/nowhere.pem: there is no such file"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, before: str, after: str, said: str) -> None:
    """File, line, field, and what is expected; never the token."""
    assert before in FILE
    with pytest.raises(SettingsError) as failure:
        read(tmp_path, FILE.replace(before, after), ENGINE_PUSH_TOKEN=TOKEN)
    assert said in str(failure.value)
    assert f"{tmp_path}/engine.yaml:" in str(failure.value)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(("token", "said"), [("", "is missing"), ("two words", "no header can hold")])
def test_a_token_that_is_none_is_named(tmp_path: Path, token: str, said: str) -> None:
    """It is not shown, right or wrong."""
    with pytest.raises(SettingsError, match=said) as failure:
        read(tmp_path, FILE, ENGINE_PUSH_TOKEN=token)
    assert "two words" not in str(failure.value)
