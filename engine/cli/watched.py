"""Block lists around a run: those that may forbid to probe are asked before it, all of them watched beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from engine.cli.rbl import Lists
from engine.core.identity import Mode
from engine.flow.verification import Request
from engine.metrics import Metrics
from engine.reputation.charge import read_charge
from engine.reputation.forbidding import forbidding
from engine.reputation.registry import load_registry
from engine.settings import Configuration


@contextmanager
def watched(request: Request, settings: Configuration, counts: Metrics) -> Iterator[Request]:
    """The request, with who asks the lists before an Enhanced run; a monitor is at work as long as the context lasts,
    where the settings speak of one."""
    charge = read_charge(settings, request.identities)
    if request.mode is not Mode.ENHANCED and not charge.beside_jobs:
        yield request
        return
    lists = Lists(load_registry(settings), tuple(request.dns or ()))
    request = replace(request, listed=forbidding(lists.registry, lists.servers))
    if not charge.beside_jobs:
        yield request
        return
    from engine.cli.monitor import beside  # noqa: PLC0415 - alerts and pushes load an HTTP client

    request.state.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with beside(request.state, settings, charge, lists, counts):
        yield request
