"""`engine lab` on a command line."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = "from gevent import monkey; monkey.patch_all()\nfrom engine.cli.lab import lab\nlab()"


def test_it_serves_until_ctrl_c_and_says_where() -> None:
    """The page names ports that answer; Ctrl-C ends it with status 0 and no traceback."""
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        page = "".join(process.stdout.readline() for _ in range(8))
        port = int(re.findall(r"--smtp-port (\d+)", page)[0])
        with socket.create_connection(("127.20.0.1", port), timeout=3) as sock:
            assert sock.recv(100).startswith(b"220 ")
        process.send_signal(signal.SIGINT)
        assert (process.wait(10), process.stderr.read()) == (0, "")


def test_a_wrong_spec_is_one_sentence(tmp_path: Path) -> None:
    """Exit 1 and the place of the mistake, no traceback."""
    spec = tmp_path / "bad.yaml"
    spec.write_text("domains: {a.lab: {persona: nobody}}")
    command = [sys.executable, "-c", f"import sys; sys.argv = ['lab', '--spec', {str(spec)!r}]\n{SCRIPT}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: domains.a.lab: there is no persona 'nobody'\n")
