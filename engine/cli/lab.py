"""`engine lab`: serves the lab until Ctrl-C."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import click

from engine.cli.verify import verify
from engine.lab.persona import LabError
from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(invoke_without_command=True)
@click.option("--spec", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Another lab file.")
@click.option(
    "--smtp-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The port of all SMTP servers; a free one, if not given.",
)
@click.option(
    "--dns-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The port of the name server; a free one, if not given.",
)
@click.option("--log", type=_FILE, help="Write every connection, command and reply to this file (JSONL).")
@click.pass_context
def lab(context: click.Context, spec: Path | None, smtp_port: int, dns_port: int, log: Path | None) -> None:
    """Serve a small mail internet on loopback: DNS zones and SMTP servers with all kinds of manners."""
    if context.invoked_subcommand is not None:
        return
    try:
        running = LabProcess(spec, smtp_port=smtp_port, dns_port=dns_port, log=log or False)
    except LabError as error:
        raise click.ClickException(str(error)) from None
    with running:
        signal.signal(signal.SIGINT, lambda *_: running.end())
        for line in _where(running, spec):
            click.echo(line)
        status = running.wait()
    if status:
        raise click.ClickException(f"the lab's process ended by itself with status {status}")


def _where(running: LabProcess, spec: Path | None) -> list[str]:
    folder = SHIPPED.parent
    return [
        f"The lab serves {running.domains} domains on {running.hosts} hosts. Ctrl-C ends it.",
        f"  File  {spec or SHIPPED}",
        f"  DNS   127.0.0.1:{running.dns_port} (UDP and TCP)",
        f"  SMTP  port {running.smtp_port} of 127.20.0.0/16",
        "To verify addresses against it from another terminal:",
        f"  engine verify {folder / 'demo.csv'} -o out.csv --mode enhanced --consent LAB --consent-by lab \\",
        f"    --identity {folder / 'identity.yaml'} --policies {folder / 'policies'} \\",
        f"    --dns 127.0.0.1:{running.dns_port} --smtp-port {running.smtp_port} --allow-private",
    ]


@lab.command(short_help="Verify the shipped list against the lab.")
@click.option(
    "-o",
    "--output",
    type=_FILE,
    default=Path("demo-out/verdicts.csv"),
    help="Where the rows go; demo-out/verdicts.csv, if not given.",
)
def demo(output: Path) -> None:
    """Verify the shipped list of a few hundred addresses against the lab, and print the table of verdicts."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", ".part", ".journal", ".journal-wal", ".journal-shm"):  # of the last demo
        output.with_name(output.name + suffix).unlink(missing_ok=True)
    shipped = str(SHIPPED.with_name("demo.csv"))
    # A state of its own, each time anew: what refused an earlier demo would else be left alone for a while.
    state = output.with_name(output.name + ".state")
    for suffix in ("", "-wal", "-shm"):
        state.with_name(state.name + suffix).unlink(missing_ok=True)
    words = [shipped, "-o", str(output), "--mode", "enhanced", "--lab", "--state", str(state)]
    click.echo(shlex.join(["engine", "verify", *words]))
    verify.main(words, standalone_mode=False)
