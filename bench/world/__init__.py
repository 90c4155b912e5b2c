"""A fast mail world on loopback: one SMTP process for any number of hosts, NSD for the zones, and its log as the judge.

1. It is no part of what is measured: processes of its own, and it says what it could have done at most.
2. A host is an address of 127.0.0.0/8; its persona says how it answers. Who is asked decides nothing but the reply:
   `user<number>` exists at every domain, nobody else does, so a million mailboxes cost no memory.
3. Its clock is the machine's monotonic one, the same in all processes.
"""

from __future__ import annotations

from bench.world.plan import Plan
from bench.world.process import World

__all__ = ["Plan", "World"]
