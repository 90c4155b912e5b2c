"""Laws of the table of reasons."""

from __future__ import annotations

from pathlib import Path

from engine.cli.reasons import markdown
from engine.core.reasons import ENDINGS, REASONS, Category, Fault, Reach, Retry

PAGE = Path(__file__).parents[2] / "docs" / "reasons.md"


def test_the_documentation_is_the_table() -> None:
    """`docs/reasons.md` is what `engine reasons --markdown` prints; `make docs` writes it."""
    assert markdown() == PAGE.read_text(encoding="utf-8")


def test_the_names_that_others_rely_on_are_there() -> None:
    """Codes are append-only; these names are fixed by design."""
    assert {"rcpt_ok", "rcpt_rejected", "catch_all", "smtp_tempfail", "accepted_unconfirmed"} <= set(REASONS)


def test_only_rcpt_ok_is_valid() -> None:
    """`valid` has one reason, and it takes a refused control."""
    assert [code for code, reason in REASONS.items() if reason.category is Category.VALID] == ["rcpt_ok"]


def test_whoever_is_refused_is_never_invalid() -> None:
    """A refusal of us (fault or reach) is risky and has told nothing about the mailbox."""
    for reason in REASONS.values():
        if reason.fault is Fault.US or reason.reach is not Reach.NONE:
            assert reason.category is Category.RISKY
            assert not reason.answered


def test_an_invalid_is_answered_and_not_asked_again() -> None:
    """An invalid speaks of the recipient, its domain or its spelling, for good."""
    for reason in REASONS.values():
        if reason.category is Category.INVALID:
            assert reason.answered
            assert reason.retry is Retry.NONE


def test_endings_are_no_verdicts() -> None:
    """What a resume takes up again is risky, unanswered, and waits."""
    for code in ENDINGS:
        reason = REASONS[code]
        assert reason.ending
        assert (reason.category, reason.answered, reason.retry) == (Category.RISKY, False, Retry.PAUSE)
