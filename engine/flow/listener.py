"""The pages for whoever watches the engine: /metrics, /healthz, /readyz.

1. Bounded: CONNECTIONS at once, one request each, REQUEST_S for all of it; a body is refused unread.
2. On loopback unless a host is named. It is no server for the public: no TLS, no log-in, nothing of an address in it.
3. /healthz answers 200 while the hub turns: a process that hangs does not answer. /readyz answers 200 while `complaint`
   has nothing to say, else 503 with its line; `remark` adds what is no obstacle, and not to be forgotten.
4. Nothing is logged for a request; an error of ours is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer

from engine.flow.job import WrongUse
from engine.log import log
from engine.metrics import Metrics
from engine.scrape import CONTENT_TYPE, page

CONNECTIONS = 8  # a scraper and an orchestrator need one each
BACKLOG = 16
REQUEST_S = 10.0  # Prometheus gives a scrape 10 s by default

_PLAIN = "text/plain; charset=utf-8"
_PAGES = ("/metrics", "/healthz", "/readyz")


class Listener:
    """Serves the three pages; `start` binds, `stop` gives requests in flight a second."""

    def __init__(
        self,
        where: tuple[str, int],
        metrics: Metrics,
        complaint: Callable[[], str],
        *,
        remark: Callable[[], str] = lambda: "",
        request_s: float = REQUEST_S,
    ) -> None:
        self._where = where
        self._metrics = metrics
        self._complaint = complaint
        self._remark = remark
        self._request_s = request_s
        self._server: WSGIServer | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        host, port = self._server.address[:2] if self._server else self._where
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> None:
        """Listen from now on; raises WrongUse where the address can't be had."""
        self._server = WSGIServer(
            self._bind(), self._answer, spawn=Pool(CONNECTIONS), log=None, error_log=None, handler_class=_OneRequest,
            environ={"SERVER_NAME": self._where[0]},  # else it is looked up, on a native thread
        )  # fmt: skip
        self._server.request_s = self._request_s
        self._server.start()

    def _bind(self) -> socket.socket:
        """The listening socket; one that pywsgi binds stays open when that fails."""
        host, port = self._where
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(self._where)
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            why = error.strerror or str(error)
            raise WrongUse(f"--metrics {host}:{port}: can't listen there ({why}); name another port.") from error
        return listening

    def stop(self) -> None:
        """Close the listener. A second call does nothing."""
        if self._server is not None:
            self._server.stop(timeout=1.0)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            status, kind, body = self._page(environ)
        except Exception:  # noqa: BLE001 - whatever it is: the scraper gets a 500, the log the rest
            log.exception("page_failed", path=environ["PATH_INFO"])
            status, kind, body = "500 Internal Server Error", _PLAIN, b"an error of the engine's; its log tells more\n"
        headers = [
            ("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close"),
            ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"),
        ]  # fmt: skip
        if status.startswith("405"):
            headers.append(("Allow", "GET, HEAD"))
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _page(self, environ: dict[str, Any]) -> tuple[str, str, bytes]:
        """(status, content type, body)."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", _PLAIN, b"only GET and HEAD\n"
        if environ.get("engine.body"):
            return "413 Content Too Large", _PLAIN, b"no body is taken here\n"
        match environ["PATH_INFO"]:
            case "/metrics":
                return "200 OK", CONTENT_TYPE, page(self._metrics)
            case "/healthz":
                return "200 OK", _PLAIN, b"alive\n"
            case "/readyz":
                complaint = self._complaint()
                status = "503 Service Unavailable" if complaint else "200 OK"
                remark = self._remark()
                return status, _PLAIN, f"{complaint or 'ready'}{f'; {remark}' if remark else ''}\n".encode()
            case _:
                return "404 Not Found", _PLAIN, f"there are {', '.join(_PAGES)}\n".encode()


class _OneRequest(WSGIHandler):  # type: ignore[misc, unused-ignore]
    """One request of a connection, within the listener's time; pywsgi by itself waits for a silent peer for ever."""

    def handle(self) -> None:
        limit_s = self.server.request_s
        self.socket.settimeout(limit_s)
        with gevent.Timeout(limit_s, False):  # a peer that drips never trips the socket's own time-out
            super().handle()

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        body = self.wsgi_input
        environ["engine.body"] = bool(body.content_length or body.chunked_input)
        body.content_length, body.chunked_input = 0, False  # unread: the connection ends with the answer
        return environ

    def handle_error(self, *_: object) -> None:
        """The peer went away or its time was over while it was answered: no more is said, and no traceback."""
        self.close_connection = True

    def _handle_client_error(self, _: BaseException) -> tuple[str, bytes]:
        return "400", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
