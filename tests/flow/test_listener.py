"""The listener over real HTTP: what it answers, and that nobody can hold it up."""

from __future__ import annotations

import io
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.message import Message
from typing import Any

import gevent
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.cli.options import listen_address
from engine.core.identity import Status
from engine.families import LaneState
from engine.flow.job import WrongUse
from engine.flow.listener import CONNECTIONS, Listener
from engine.log import log
from engine.metrics import Metrics
from engine.views import LaneView, Live

PATIENCE_S = 20.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Message
    body: str


def away(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it on a native thread: this process is not patched, and the hub has to go on serving."""
    return gevent.get_hub().threadpool.apply(function, arguments)


def get(url: str, method: str = "GET", body: bytes | None = None) -> Reply:
    """One request by urllib."""
    return away(_get, url, method, body)


def _get(url: str, method: str, body: bytes | None) -> Reply:
    request = urllib.request.Request(url, method=method, data=body)
    try:
        with _OPENER.open(request, timeout=PATIENCE_S) as answer:
            return Reply(answer.status, answer.headers, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read().decode())


def raw(listener: Listener, data: bytes) -> bytes:
    """What the listener says to these bytes until it closes; nothing more is sent."""
    return away(_raw, _address(listener), data)


def _raw(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, timeout=PATIENCE_S) as line:
        line.sendall(data)
        heard = b""
        while more := line.recv(65536):
            heard += more
        return heard


def _address(listener: Listener) -> tuple[str, int]:
    host, _, port = listener.url.removeprefix("http://").rpartition(":")
    return host, int(port)


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of their own."""
    return Metrics()


@pytest.fixture
def complaints() -> list[str]:
    """What /readyz has to complain of, the first of it."""
    return []


@pytest.fixture
def serve(metrics: Metrics, complaints: list[str]) -> Iterator[Callable[..., Listener]]:
    """Starts listeners on a free port of loopback."""
    with ExitStack() as started:

        def start(**changes: Any) -> Listener:
            listener = Listener(("127.0.0.1", 0), metrics, lambda: next(iter(complaints), ""), **changes)
            listener.start()
            started.callback(listener.stop)
            return listener

        yield start


def test_a_scrape_reads_the_run_as_it_is(serve: Callable[..., Listener], metrics: Metrics) -> None:
    """What was counted and what is the case now come out of one page that Prometheus can read."""
    metrics.settled("gmail", "rcpt_ok", 3)
    view = LaneView("gmail", "node-1", LaneState.WAITING_BUDGET, 12, 2, 1.0, 0.5)
    metrics.watch(lambda: Live([view], {"node-1": Status.ENABLED}, 0.0))
    reply = get(serve().url + "/metrics")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=")
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(reply.body)
        for sample in family.samples
        if sample.value
    }
    assert samples["engine_probes_total"] == 3
    assert samples["engine_lane_queue"] == 12
    assert samples["engine_refusal_budget_used_ratio"] == 1


def test_ready_is_what_the_run_says(serve: Callable[..., Listener], complaints: list[str]) -> None:
    """A complaint makes /readyz a 503 with its line, and leaves /healthz alone."""
    url = serve().url
    assert (get(url + "/readyz").status, get(url + "/readyz").body) == (200, "ready\n")
    complaints.append("the identity node-1 is quarantined")
    reply = get(url + "/readyz")
    assert (reply.status, reply.body) == (503, "the identity node-1 is quarantined\n")
    assert (get(url + "/healthz").status, get(url + "/healthz").body) == (200, "alive\n")


def test_there_is_nothing_else(serve: Callable[..., Listener]) -> None:
    """Another path, another method or a body gets its status, and no page."""
    url = serve().url
    assert get(url + "/").status == 404
    assert get(url + "/metrics/../secret").status == 404
    assert get(url + "/metrics", "DELETE").status == 405
    assert get(url + "/metrics", "DELETE").headers["Allow"] == "GET, HEAD"
    head = get(url + "/healthz", "HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, "", "6")


def test_a_body_is_refused_unread(serve: Callable[..., Listener]) -> None:
    """Whoever announces a body is answered at once, not when it has come, and never told to go on."""
    listener = serve()
    announced = b"GET /metrics HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n"
    for header in (
        b"Content-Length: 1000000000",
        b"Transfer-Encoding: chunked",
        b"Content-Length: 5\r\nExpect: 100-continue",
    ):
        answer = raw(listener, announced % header)
        assert answer.startswith(b"HTTP/1.1 413 "), header
        assert b"100 Continue" not in answer
    assert get(listener.url + "/healthz", "POST", b"x" * 10).status == 405


def test_a_connection_is_one_request(serve: Callable[..., Listener]) -> None:
    """No keep-alive: a second request in the same write is not answered, so no peer holds a place for long."""
    answer = raw(serve(), b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"Connection: close" in answer


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
)
def test_garbage_gets_a_client_error(
    serve: Callable[..., Listener], garbage: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is no request is told so, in silence: a port scanner fills no log."""
    listener = serve(request_s=1.0)
    try:
        answer = raw(listener, garbage)
    except ConnectionError:  # closed with our bytes unread: that is an answer too
        answer = b"HTTP/1.1 400 "
    assert answer.startswith(b"HTTP/1.1 4")
    assert get(listener.url + "/healthz").status == 200
    assert capfd.readouterr() == ("", "")


def test_silent_peers_hold_their_places_for_a_while_only(
    serve: Callable[..., Listener], capfd: pytest.CaptureFixture[str]
) -> None:
    """With every place taken by peers that say nothing, or a byte now and then, a scrape is answered in time."""
    listener = serve(request_s=0.5)
    with ExitStack() as stack:
        lines = [
            stack.enter_context(away(socket.create_connection, _address(listener), PATIENCE_S))
            for _ in range(CONNECTIONS)
        ]
        for number, line in enumerate(lines):
            line.sendall(b"GET /metrics HTTP/1.1\r\n" if number % 2 else b"")
        dripping = gevent.spawn(_drip, lines[1])
        began = time.monotonic()
        assert get(listener.url + "/healthz").status == 200
        assert time.monotonic() - began < 5.0
        dripping.kill()
    assert capfd.readouterr() == ("", "")


def _drip(line: socket.socket) -> None:
    while True:
        gevent.sleep(0.05)
        try:
            line.sendall(b"X")
        except OSError:
            return


def test_an_error_of_ours_is_a_500_and_is_logged(
    serve: Callable[..., Listener], metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    """The scraper is told that there is an error, the log which one, and the next page is served."""

    def broken() -> Live:
        raise LookupError("no such lane: ann@example.org")

    stream = io.StringIO()
    log.open(stream, as_json=True)
    metrics.watch(broken)
    listener = serve()
    reply = get(listener.url + "/metrics")
    log.close()
    assert reply.status == 500
    assert "lane" not in reply.body
    (line,) = [json.loads(each) for each in stream.getvalue().splitlines()]
    assert (line["event"], line["path"]) == ("page_failed", "/metrics")
    assert "no such lane: ***@example.org" in line["exception"]
    assert get(listener.url + "/healthz").status == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_is_wrong_use(serve: Callable[..., Listener], metrics: Metrics) -> None:
    """Found before anything is sent, and said in one sentence that names the port."""
    taken = _address(serve())
    with pytest.raises(WrongUse, match=rf"--metrics 127\.0\.0\.1:{taken[1]}: can't listen there .*another port"):
        Listener(taken, metrics, lambda: "").start()


def test_after_stop_nobody_listens(serve: Callable[..., Listener]) -> None:
    """The port is free again, and stopping twice is no error."""
    listener = serve()
    address = _address(listener)
    listener.stop()
    listener.stop()
    with pytest.raises(ConnectionRefusedError):
        away(_raw, address, b"")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("localhost:9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_without_a_host_it_is_loopback(text: str, where: tuple[str, int]) -> None:
    """Who wants other machines to read it names the address to listen on."""
    assert listen_address(text) == where


@pytest.mark.parametrize("text", ["", "metrics.example.org:9464", "127.0.0.1", "127.0.0.1:", ":70000", "::1", ":²"])
def test_what_is_no_address_and_port_is_wrong_use(text: str) -> None:
    """A name is not looked up: where to listen must not depend on a name server."""
    with pytest.raises(WrongUse, match="--metrics"):
        listen_address(text)
