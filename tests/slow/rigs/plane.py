"""A control plane on loopback: away with 503 until it is told to be there, and then it takes everything."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "a-token"


class PlaneRig:
    """Its `records` are those it took, in order; `there` says whether it takes any."""

    def __init__(self) -> None:
        self.there = False
        self.records: list[dict[str, Any]] = []
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(plane._take(body, self.headers["Authorization"]))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.settings = {"url": f"http://127.0.0.1:{self._server.server_address[1]}/reputation", "token": TOKEN}

    def _take(self, body: bytes, authorization: str) -> int:
        if authorization != f"Bearer {TOKEN}":
            return 401
        if not self.there:
            return 503
        self.records += json.loads(body)["records"]
        return 200

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
