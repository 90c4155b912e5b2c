"""`engine verify`: a list in, verdicts with evidence out."""

from __future__ import annotations

import gc
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import gevent

from engine.cli.lanes import lane_lines
from engine.cli.options import (
    MODES,
    Asking,
    asking,
    asking_options,
    listen_address,
    missing_identity,
    number,
    option,
    seconds,
)
from engine.cli.tables import forecast_lines, verdict_lines
from engine.core.identity import Mode
from engine.core.reasons import ENDINGS
from engine.flow.forecast import Outlook
from engine.flow.intake import open_intake
from engine.flow.job import WrongUse
from engine.flow.machine import FILES_BESIDE
from engine.flow.output import check_output
from engine.flow.verification import Request, Verification
from engine.log import log
from engine.metrics import Metrics, watch_hub
from engine.reputation.listed import asks

if TYPE_CHECKING:
    from engine.cli.progress import Progress

# A run keeps up to some million objects and makes hardly any cycles: reference counts free nearly all. Python's own
# thresholds (700, 10, 10) walk through all of them over and over, and nothing else of the process runs meanwhile.
COLLECT_AT = (5_000, 20, 1_000)


@click.command(short_help="Verify a list of addresses.")
@click.argument("source", metavar="INPUT", default="")
@click.option(
    "-o",
    "--output",
    metavar="OUTPUT",
    default="",
    help="Where the rows go: .csv, .jsonl, or - for stdout; never the input.",
)
@click.option("--mode", default="", metavar="MODE", help="standard or enhanced; there is no default.")
@click.option("--column", metavar="NAME", help="The address column or JSON key; found by itself where it can be.")
@click.option("--no-connect", is_flag=True, help="End at the mail hosts: syntax and DNS only, no identity needed.")
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The job's journal; OUTPUT.journal, if not given.",
)
@click.option("--resume", is_flag=True, help="Go on where a run of this job stopped or was killed.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 20000),
    help="Sessions open at once; 500, or what the file limit allows, if not given.",
)
@click.option(
    "--deadline",
    metavar="DURATION",
    help="End after this time (90m, 6h); what still waits is written as deadline_exceeded.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics, /healthz and /readyz there; a port: on loopback; off, if not given.",
)
@click.option("--no-progress", is_flag=True, help="No progress display on a terminal.")
@asking_options
def verify(source: str, output: str, mode: str, **flags: Any) -> None:
    """Verify the addresses of INPUT (CSV, JSONL or lines; - is stdin) and write OUTPUT.

    The rows come out in input order with the caller's own columns first, untouched, and a verdict beside each:
    category (valid, invalid, risky), reason, and the reply that proves it. A run that was stopped or killed
    goes on with --resume, and asks nothing twice that is settled.

    \b
    Two modes:
      standard  syntax, domain, mail hosts, and one connection a site up to EHLO; no mailbox is asked about
      enhanced  the same, and RCPT for each address; it needs a consent record (--consent, --consent-by)

    \b
    Examples:
      engine verify list.csv -o out.csv --mode standard --no-connect
      engine verify list.csv -o out.csv --mode enhanced --consent TICKET-7 --consent-by "A. Owner" \\
        --identity node.yaml
    """
    if not source:
        raise WrongUse("INPUT is missing: name the file that holds the addresses, or - for standard input.")
    chosen = _mode(mode, source, output)
    if not output:
        raise WrongUse("OUTPUT is missing: name the file for the results with -o FILE, or -o - for standard output.")
    if output == "-" and flags["resume"]:
        raise WrongUse(
            "--resume can't know what a pipe has received; write to a file instead: "
            f"engine verify {shlex.quote(source)} -o FILE --mode {chosen.value} --resume --journal JOURNAL ..."
        )
    check_output(output, source)
    with open_intake(source, flags["column"]) as intake, asking(chosen, flags) as who:
        if next(intake.rows(), None) is None:
            raise WrongUse(f"{source}: there is a header and no row; give a list of addresses.")
        if not who.identities and not flags["no_connect"]:
            raise missing_identity("A run that connects")
        if who.allow_private and not flags["lab"]:
            print("engine: private mail hosts are admitted (--allow-private): for test networks only.", file=sys.stderr)
        served = option(who, "metrics", flags["metrics"])
        deadline_s = seconds(option(who, "deadline", flags["deadline"]), "--deadline")
        request = Request(
            intake=intake, mode=chosen, policies=who.policies, journal=_journal(flags["journal"], output, who),
            state=who.state, output=None if output == "-" else Path(output),
            pipe=sys.stdout.buffer if output == "-" else None, identities=who.identities, consent=who.consent,
            suppression=who.suppression, resume=flags["resume"], dns=who.dns, smtp_port=who.smtp_port,
            allow_private=who.allow_private, connect=not flags["no_connect"],
            concurrency=_concurrency(flags["concurrency"], who), deadline_s=deadline_s, accepted_risk=who.accepted_risk,
            policy_dirs=who.policy_dirs,
        )  # fmt: skip
        show_progress = not flags["no_progress"] and sys.stderr.isatty()
        counts = Metrics()
        with _watched(request, who, counts) as request:
            where = listen_address(str(served)) if served else None
            _run(request, output, where, counts, show_progress=show_progress)


def _watched(request: Request, who: Asking, counts: Metrics) -> AbstractContextManager[Request]:
    """Block lists that may forbid to probe are asked before; all, where the settings speak of them, beside the run."""
    if who.settings is None or not who.identities or not request.connect:
        return nullcontext(request)
    if not asks(who.settings, allow_private=who.allow_private):
        return nullcontext(request)
    from engine.cli.watched import watched  # noqa: PLC0415 - a run that asks no list loads nothing of them

    return watched(request, who.settings, counts)


def _run(
    request: Request, output: str, served: tuple[str, int] | None, metrics: Metrics, *, show_progress: bool
) -> None:
    gc.freeze()  # modules and policies are no garbage
    gc.set_threshold(*COLLECT_AT)
    log.open(level="error" if show_progress else "info")  # the display shows what is paused and why
    say = sys.stderr if output == "-" or show_progress else sys.stdout
    if request.pipe is not None:
        print(f"engine: the journal of this run is {request.journal}.", file=sys.stderr)
    progress, go_on = _progress() if show_progress else None, _resume_command(request)

    def tell_forecast(told: Outlook) -> None:
        for line in forecast_lines(told):
            if progress is not None:
                progress.say(line)
            else:
                print(line, file=say)

    with Verification(request, forecast=tell_forecast, metrics=metrics) as verification, _served(served, verification):
        gevent.signal_handler(signal.SIGUSR1, _tell_lanes, verification, progress)
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, _Stopper(verification, go_on))
        gevent.signal_handler(signal.SIGHUP, _HangUp(verification, at_terminal=sys.stderr.isatty()))
        if progress is not None:
            progress.start(verification)
        try:
            done = verification.run()
        except BrokenPipeError:  # main.py ends the process
            print(f"engine: nobody reads the rows any more; all that is settled is kept. Go on with: {go_on}", file=say)
            raise
        finally:
            if progress is not None:
                progress.stop()
        counts = verification.counts()
        for line in verdict_lines(counts):
            print(line, file=say)
    if not done:
        print(f"engine: stopped; everything settled is kept. Go on with: {go_on}", file=sys.stderr)
        sys.exit(1)
    if any(counts.get(code) for code in ENDINGS):
        print("What ended without a verdict is taken up again with --resume.", file=say)
    if output != "-":
        print(f"Written to {output}; the journal with the evidence is {request.journal}.", file=say)


def _progress() -> Progress:
    from engine.cli.progress import Progress  # noqa: PLC0415 - rich is for terminals

    return Progress(sys.stderr)


@contextmanager
def _served(where: tuple[str, int] | None, verification: Verification) -> Iterator[None]:
    """The metrics at this address, as long as the context lasts; None: nowhere."""
    if where is None:
        yield
        return
    from engine.flow.listener import Listener  # noqa: PLC0415 - an HTTP server is for who is scraped

    listener = Listener(where, verification.metrics, verification.complaint)
    listener.start()
    print(f"engine: metrics at {listener.url}/metrics", file=sys.stderr, flush=True)
    beat = gevent.spawn(watch_hub, verification.metrics.hub_lagged)
    try:
        yield
    finally:
        beat.kill()
        listener.stop()


def _tell_lanes(verification: Verification, progress: Progress | None) -> None:
    """SIGUSR1: how each lane stands, and what it waits for."""
    text = "\n".join(lane_lines(verification.lanes(), time.monotonic()))
    if progress is not None:
        progress.say(text)
    else:
        print(text, file=sys.stderr, flush=True)


class _Stopper:
    """The first signal stops politely, the second at once; the journal keeps everything either way."""

    def __init__(self, verification: Verification, go_on: str) -> None:
        self._verification = verification
        self._go_on = go_on
        self._asked = False

    def __call__(self) -> None:
        if self._asked:
            sys.stderr.write(f"engine: stopped at once. Go on with: {self._go_on}\n")
            sys.stderr.flush()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGKILL)
        self._asked = True
        self._verification.stop()


class _HangUp:
    """SIGHUP loads the policies anew; where it says that the terminal of this run is gone, the run stops politely."""

    def __init__(self, verification: Verification, *, at_terminal: bool) -> None:
        self._verification = verification
        self._at_terminal = at_terminal

    def __call__(self) -> None:
        if self._at_terminal and not os.isatty(sys.stderr.fileno()):
            self._verification.stop()
        else:
            self._verification.reload()


def _resume_command(request: Request) -> str:
    """What goes on where this run stops. Nobody knows what a pipe has received: all rows go to a file then."""
    words = ["engine", *sys.argv[1:]]
    if request.pipe is not None:
        named = {"-o-": "-oFILE", "--output=-": "--output=FILE"}
        after = zip(["", *words], words, strict=False)
        words = ["FILE" if before in ("-o", "--output") else named.get(word, word) for before, word in after]
        words += [] if any(word.startswith("--journal") for word in words) else ["--journal", str(request.journal)]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


def _mode(mode: str, source: str, output: str) -> Mode:
    given = f"engine verify {shlex.quote(source)} -o {shlex.quote(output or 'out.csv')}"
    example = f"For example:\n  {given} --mode standard\n  {given} --mode enhanced --consent REF --consent-by WHO"
    if not mode:
        raise WrongUse(f"--mode is missing, and has no default.\n{MODES}\n{example}")
    try:
        return Mode(mode)
    except ValueError:
        raise WrongUse(f"--mode {mode}: there is no such mode.\n{MODES}\n{example}") from None


def _journal(named: Path | None, output: str, who: Asking) -> Path:
    if named is not None:
        return named
    if output == "-":
        from engine.flow.verification import new_job_id  # noqa: PLC0415

        return who.state.parent / f"pipe-{new_job_id()}.journal"
    return Path(f"{output}.journal")


def _concurrency(flag: int | None, who: Asking) -> int:
    """Sessions at once, as far as this process may open files; the soft limit is raised to the hard one."""
    wanted = number(option(who, "concurrency", flag, 500), "concurrency", 1, 20_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    allowed = max(1, hard - FILES_BESIDE)
    if wanted > allowed:
        print(f"engine: {allowed} sessions at once, not {wanted}: this process may open {hard} files.", file=sys.stderr)
    return min(wanted, allowed)
