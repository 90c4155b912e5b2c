"""Sessions open at once with STARTTLS: memory and CPU a session, beside those of sessions in the clear.

Every host offers STARTTLS and every session takes it, with contexts that are shared. The same as
`python -m bench concurrency --tls`, and the smallest size is run in the clear too, for what TLS adds.

    python -m bench tls [--short] [--sizes 1000 2000 5000]
"""

from __future__ import annotations

from bench import concurrency


def main(arguments: list[str]) -> int:
    """Run it and report."""
    return concurrency.main([*arguments, "--tls"])
