"""Laws of `engine push`: whether the control plane takes what is pushed, in a sentence and an exit code."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engine.cli.main import cli
from engine.reputation.push import spool_folder
from engine.reputation.spool import Spool
from engine.store import push_outbox
from engine.store.state import State
from engine.store.writer import Writer


@pytest.fixture
def plane() -> Iterator[tuple[HTTPServer, list[int]]]:
    """A control plane, and the codes that it answers with; the last one for ever."""
    codes = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server, codes
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def config(tmp_path: Path, plane: tuple[HTTPServer, list[int]]) -> Path:
    path = tmp_path / "engine.yaml"
    path.write_text(
        f"push: {{url: 'http://127.0.0.1:{plane[0].server_address[1]}/v1', token: s3cret, node: node-1}}\n"
        f"state: {tmp_path / 'state.db'}\n"
    )
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["push", *map(str, arguments)])


def test_a_plane_that_takes_pushes_exits_0(config: Path) -> None:
    """It says who would push, and how."""
    done = run("test", "--config", config)
    assert done.exit_code == 0
    assert done.output.endswith("takes pushes of node-1 as json.\n")


def test_one_that_does_not_exits_1_with_what_to_do(config: Path, plane: tuple[HTTPServer, list[int]]) -> None:
    """Without the token."""
    plane[1][:] = [401]
    done = run("test", "--config", config)
    assert done.exit_code == 1
    assert "does not know the token; give a new one" in done.output
    assert "s3cret" not in done.output


def test_without_a_plane_it_is_wrong_use(tmp_path: Path) -> None:
    """It says where to name one."""
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    done = run("test", "--config", empty)
    assert done.exit_code == 2
    assert "the section push" in done.stderr


def test_what_waits_is_told_by_place(config: Path, tmp_path: Path) -> None:
    """In the state and in the spool; exit 1 so that a script sees it."""
    assert run("waiting", "--config", config).output == "Nothing waits.\n"
    with Writer() as writer:
        kept = State(writer, tmp_path / "state.db")
        assert run("waiting", "--config", config).exit_code == 0
        kept.enqueue(lambda conn: push_outbox.put(conn, "event", 1.0, {})).wait()
    Spool(spool_folder(tmp_path / "state.db")).append([{"id": "o-1"}])
    done = run("waiting", "--config", config)
    assert done.exit_code == 1
    assert done.output.startswith("1 record in the state, 0.0 KiB in ")
    assert run("waiting", "--config", config, "--json").output.startswith('{"in_state": 1, "spool_bytes": ')
