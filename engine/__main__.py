"""The one place where gevent patches the standard library; the console script points here."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402


def main() -> None:
    """Run the command line."""
    from engine.cli.main import cli  # noqa: PLC0415 - after the patch

    sys.exit(cli())


if __name__ == "__main__":
    main()
