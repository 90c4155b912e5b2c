"""The one place where gevent patches the standard library; the console script points here."""

from gevent import events, monkey

# gevent asks every installed distribution for plugins to its patching, anew for each module that it patches: a third of
# what `engine --help` took. Who patches this process is our own affair.
events.notify_and_call_entry_points = events.notify
monkey.patch_all()

import sys  # noqa: E402


def main() -> None:
    """Run the command line."""
    from engine.cli.main import cli  # noqa: PLC0415 - after the patch

    sys.exit(cli())


if __name__ == "__main__":
    main()
