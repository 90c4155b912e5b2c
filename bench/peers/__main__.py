"""Fetches and builds the peers that need it: `python -m bench.peers`. Without their tools they stay missing.

The exit status is 1 when a build failed, 3 when a tool is missing, else 0.
"""

from __future__ import annotations

import shutil
import sys
import time

from bench.measure.report import MISSING, SHORT
from bench.peers import peers
from bench.peers.build import BuildError


def main() -> int:
    """Build what is not built."""
    statuses = {0}
    for peer in peers():
        if peer.build is not None and shutil.which(peer.build.tool) and peer.build.stale:
            print(f"{peer.name}: fetching and building ...", flush=True)
            began = time.monotonic()
            try:
                peer.build.build()
            except BuildError as error:
                print(f"{peer.name}: {error}", flush=True)
                statuses.add(SHORT)
                continue
            print(f"{peer.name}: built in {time.monotonic() - began:.0f} s", flush=True)
        elif why := peer.missing():
            print(f"{peer.name}: {why}", flush=True)
            statuses.add(MISSING)
        else:
            print(f"{peer.name}: is here", flush=True)
    return SHORT if SHORT in statuses else max(statuses)


if __name__ == "__main__":
    sys.exit(main())
