"""`engine monitor`: the watch over what block lists say of us, as a service or once; and beside a run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import gevent

from engine.cli.machine import state_option, state_path
from engine.cli.options import listen_address
from engine.cli.rbl import LISTED, UNCHECKED, Lists, asking_options, opened
from engine.cli.rbl_check import lines
from engine.core.identity import Identity
from engine.core.listing import Check
from engine.flow.job import WrongUse
from engine.flow.listener import Listener
from engine.identity_file import find_identities
from engine.log import log
from engine.metrics import Metrics, watch_hub
from engine.reputation.channels import read_alerts
from engine.reputation.charge import Charge, read_charge
from engine.reputation.control_plane import read_push
from engine.reputation.delivery import Alerts
from engine.reputation.monitor import Monitor
from engine.reputation.push import Push
from engine.reputation.standing import State as Stands
from engine.reputation.standing import standing, worst
from engine.settings import Configuration, load_configuration
from engine.store.lock import MonitorLock, Watched
from engine.store.state import State, default_path
from engine.store.writer import Writer

_EXITS = {Stands.CLEAN: 0, Stands.LISTED: LISTED, Stands.UNCHECKED: UNCHECKED}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Watch what block lists say of us, alert, and hold back who is listed.")
@click.option("--once", is_flag=True, help="Ask every list once, react, print how each target stands, and end.")
@click.option("--metrics", metavar="HOST:PORT", help="Serve /metrics, /healthz and /readyz there; a port: on loopback.")
@click.option(
    "--identity",
    "identity_file",
    type=_FILE,
    metavar="FILE",
    help="Whose addresses and domains: a YAML file; those of the settings, if not given.",
)
@state_option
@asking_options
def monitor(
    once: bool, metrics: str | None, identity_file: Path | None, state: Path | None, dns: Sequence[str],
    files: Sequence[Path], force: bool, config: Path | None, lab: bool,
) -> None:  # fmt: skip
    """Watch what block lists say of the addresses and domains of our identities, and of `monitor.targets`.

    A listing is believed after a second answer. It opens an event, tells people (section `alerts`), and a critical one
    of our own address stops its identity in every engine of this machine until it is over.

    SIGTERM ends it, SIGHUP loads settings, identities and lists anew; a section `push` that was
    not there before needs a new start. With --once the exit code is that of
    `engine rbl check`: 0 clean, 3 listed, 4 a critical list was not checked, 1 failed: the resolver is unfit to ask
    through, or the disk.

    \b
    Examples:
      engine monitor --metrics 127.0.0.1:9464
      engine monitor --once
    """

    def told() -> tuple[Charge, Configuration]:
        settings = load_configuration(config)
        identities = _lab_identities() if lab else find_identities(settings, file=identity_file)
        charge = read_charge(settings, identities)
        if not charge.targets:
            raise WrongUse(
                "There is nothing to watch: no identity is set up, and monitor.targets names nobody; give --identity "
                "FILE, or run `engine identity init` once."
            )
        return charge, settings

    log.open(level="error" if once else "info")
    charge, settings = told()
    where = _lab_state(state) if lab else state_path(state, settings)
    where.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    served = settings.option("metrics", metrics)
    with opened(files, force, config, lab, dns) as lists, ExitStack() as held:
        counts = Metrics()
        watch = held.enter_context(watching(where, lists, charge, settings, counts))
        if once:
            sys.exit(_once(watch, lists))
        if served:
            held.enter_context(_served(str(served), counts, watch))

        def reload() -> None:
            try:
                again, fresh = told()
                with opened(files, force, config, False, dns) if not lab else _same(lists) as found:
                    watch.adopt(found.registry, again, read_alerts(fresh), read_push(fresh))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the old settings hold on
                log.warning("settings_refused", problem=str(error))
            else:
                log.info("settings_loaded", targets=len(again.targets), file=fresh.file.file)

        _serve(watch, reload)


@contextmanager
def watching(where: Path, lists: Lists, charge: Charge, settings: Configuration, counts: Metrics) -> Iterator[Monitor]:
    """A monitor that holds the watch of this machine; raises WrongUse where another process has it."""
    named, pushed = read_alerts(settings), read_push(settings)  # what is wrong with them is told before all else
    with ExitStack() as held:
        try:
            held.enter_context(MonitorLock(where.parent))
        except Watched as watched:
            raise WrongUse(str(watched)) from watched
        state = State(held.enter_context(Writer()), where)
        alerts = Alerts(state, named, counts.alerted)
        push = Push(state, pushed, counts) if pushed is not None else None
        found = Monitor(
            state, lists.registry, charge, servers=lists.servers, alerts=alerts, push=push, counts=counts,
            nowhere=lists.nowhere,
        )  # fmt: skip
        counts.watch_reputation(found.view)
        try:
            yield found
        finally:
            counts.watch_reputation(None)


@contextmanager
def beside(where: Path, settings: Configuration, charge: Charge, lists: Lists, counts: Metrics) -> Iterator[None]:
    """Watch beside a run, as long as the context lasts; where another process does already, leave it to that one."""
    with ExitStack() as held:
        try:
            watch = held.enter_context(watching(where, lists, charge, settings, counts))
        except WrongUse as taken:
            log.info("watched_elsewhere", why=str(taken))
            yield
            return
        work = gevent.spawn(watch.serve)
        work.link_exception(lambda dead: log.error("watch_ended", why=str(dead.exception)))
        try:
            yield
        finally:
            work.kill()


def remark(watch: Monitor) -> str:
    """What /readyz says beside `ready`: critical lists that nobody asks."""
    gone = watch.unchecked
    return f"NOT CHECKED: {', '.join(gone)}" if gone else ""


def _serve(watch: Monitor, reload: object) -> None:
    work = gevent.spawn(watch.serve)
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, work.kill, block=False)
    gevent.signal_handler(signal.SIGHUP, reload)
    targets, asked = len(watch.charge.targets), len(watch.registry.enabled)
    log.info("watching", targets=targets, lists=asked, not_checked=len(watch.registry.unchecked))
    try:
        work.get()
    finally:
        work.kill()


@contextmanager
def _served(where: str, counts: Metrics, watch: Monitor) -> Iterator[None]:
    listener = Listener(listen_address(where), counts, lambda: watch.trouble, remark=lambda: remark(watch))
    listener.start()
    print(f"engine: metrics at {listener.url}/metrics", file=sys.stderr, flush=True)
    beat = gevent.spawn(watch_hub, counts.hub_lagged)
    try:
        yield
    finally:
        beat.kill()
        listener.stop()


def _once(watch: Monitor, lists: Lists) -> int:
    checks: list[Check] = watch.once()
    if watch.trouble:
        print(f"engine: {watch.trouble}", file=sys.stderr)
        return 1
    found = [standing(lists.registry, each, checks) for each in watch.charge.targets]
    for number, each in enumerate(found):
        print("\n".join([*([""] if number else []), *lines(lists.registry, each)]))
    return _EXITS[worst(found)]


@contextmanager
def _same(lists: Lists) -> Iterator[Lists]:
    yield lists


def _lab_identities() -> tuple[Identity, ...]:
    from engine.identity_file import load_identity  # noqa: PLC0415 - only the lab needs these
    from engine.lab.spec import SHIPPED  # noqa: PLC0415

    return load_identity(SHIPPED.with_name("identity.yaml"))


def _lab_state(given: Path | None) -> Path:
    environ = {name: value for name, value in os.environ.items() if name != "ENGINE_STATE"}
    return given or default_path(environ).with_name("lab") / "state.db"
