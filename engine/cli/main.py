"""The command line: `engine COMMAND`; each group of commands is a file beside this one, loaded when it is used.

1. Exit 0: done. 1: failed or stopped, and the message says how to resume. 2: wrong use, and nothing was sent.
2. Errors are one sentence that says what, where and what to do; a traceback only with --debug.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from engine.version import VERSION

COMMANDS = {  # name -> (module, object, one line for the overview)
    "verify": ("engine.cli.verify", "verify", "Verify a list of addresses and write a verdict beside each row."),
    "check": ("engine.cli.check", "check", "Check a few addresses now, and show what was said."),
    "classify": ("engine.cli.classify", "classify", "Say what SMTP replies mean, from stdin or a job's journal."),
    "policy": ("engine.cli.policy", "policy", "Check, explain and show provider policies."),
    "lane": ("engine.cli.lane", "lane", "Narrow what engines ask of a provider, for a while."),
    "identity": ("engine.cli.identity", "identity", "Set up, check, hold back or release the identity that asks."),
    "monitor": (
        "engine.cli.monitor",
        "monitor",
        "Watch what block lists say of us; alert, and hold back who is listed.",
    ),
    "alerts": ("engine.cli.alerts", "alerts", "Test whether alerts by mail and Slack arrive."),
    "push": ("engine.cli.push", "push", "Test whether a control plane takes what the monitor pushes."),
    "doctor": ("engine.cli.doctor", "doctor", "Look whether this machine is fit to probe from, and say what to mend."),
    "rbl": ("engine.cli.rbl", "rbl", "Ask block lists about addresses and domains, and say which can be believed."),
    "audit": ("engine.cli.audit", "audit", "Verify, export or erase the audit of a job."),
    "reasons": ("engine.cli.reasons", "reasons", "Print the table of reason codes."),
    "lab": ("engine.cli.lab", "lab", "Serve a small mail internet on loopback, to try everything out."),
}


class Commands(click.Group):
    """Loads a command's module only when it is asked for: `engine --help` needs no network code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without loading anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; whatever it can't do becomes one sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "engine"
            print(f"engine: {error.format_message()} See `{command} --help`.", file=sys.stderr)
            sys.exit(2)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # nobody reads any more: engine reasons | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except KeyboardInterrupt:
            print("engine: stopped.", file=sys.stderr)
            sys.exit(1)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            print(f"engine: {sentence(error)}", file=sys.stderr)
            sys.exit(_exit_code(error))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
First steps:
  engine lab demo                          a tour on this machine, nothing leaves it
  engine check ada@example.org             syntax, domain and mail hosts of one address
  engine identity init                     who asks: needed before a mail server is dialled
  engine verify list.csv -o out.csv --mode standard
""",
)
@click.version_option(VERSION, prog_name="engine")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Ask mail servers whether mailboxes exist, without ever sending a message.

    Every answer is valid, invalid or risky, with a stable reason code and the evidence for it.
    """


def sentence(error: Exception) -> str:
    """An error as the one sentence that the user gets."""
    text = str(error).strip()
    if _expected(error):
        return text if text.endswith((".", "!", "?")) or "\n" in text else f"{text}."
    return f"{type(error).__name__}: {text or 'no message'}. This is a fault of ours; --debug shows where it happened."


def _expected(error: Exception) -> bool:
    return type(error).__module__.startswith("engine.")


def _exit_code(error: Exception) -> int:
    return 2 if type(error).__name__ in WRONG_USE else 1


# Errors that are found before anything is sent, by name: their modules load only with the command that needs them.
WRONG_USE = frozenset(
    {"WrongUse", "Held", "SettingsError", "PolicyProblems", "InputProblem", "OutputProblem", "LabError", "GrammarError"}
)
