"""The world's process: `python -m bench.world`, orders on standard input as JSON lines, an answer a line.

It ends when its input does, so that it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
from pathlib import Path
from typing import Any

from bench.world.log import Writer
from bench.world.server import Server, Session, listener


def loop_and_name() -> tuple[asyncio.AbstractEventLoop, str]:
    """uvloop where it is installed, else asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415 - it need not be there
    except ImportError:
        return asyncio.new_event_loop(), "asyncio (uvloop is not installed: a slower world)"
    return uvloop.new_event_loop(), f"uvloop {uvloop.__version__}"


async def serve(order: dict[str, Any], name: str) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    log = Writer(Path(order["log"]) if order["log"] else None)
    server = Server(order["hosts"], order["personas"], log, order["level"])
    socket = listener(order["port"])
    listening = await loop.create_server(lambda: Session(server, loop), sock=socket, backlog=4096)
    ended = asyncio.Event()

    def obey() -> None:
        line = sys.stdin.readline()
        if not line:
            ended.set()
            return
        asked, answer = json.loads(line), {}
        try:
            if asked["do"] == "set":
                server.change(asked["persona"], asked["values"])
            elif asked["do"] == "peak":
                server.peak = server.open
            log.flush()
            answer = server.stats()
        except (KeyError, ValueError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)

    gc.freeze()  # hundreds of thousands of hosts are no garbage
    loop.add_reader(sys.stdin.fileno(), obey)
    print(json.dumps({"port": socket.getsockname()[1], "loop": name}), flush=True)
    await ended.wait()
    listening.close()
    log.flush()


def main() -> None:
    """Read the first order and serve."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    order = json.loads(sys.stdin.readline())
    loop, name = loop_and_name()
    loop.run_until_complete(serve(order, name))


if __name__ == "__main__":
    main()
