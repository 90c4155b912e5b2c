"""Laws of `engine classify` and `engine reasons`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli.classify import classify
from engine.cli.reasons import markdown, reasons
from engine.core.reasons import REASONS
from engine.store.audit import AuditRow
from engine.store.journal import Journal
from engine.store.writer import Writer


def run(*lines: object, args: tuple[str, ...] = ()) -> Result:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    return CliRunner().invoke(classify, list(args), input=text, catch_exceptions=False)


def said(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_each_reply_gives_its_judgement_in_its_place() -> None:
    """One line out for each line in, with exactly these keys."""
    result = run({"code": 550, "text": "No such user", "stage": "rcpt"}, {"code": 421, "text": "greylisted"})
    assert result.exit_code == 0
    first, second = said(result)
    assert first == {
        "category": "invalid",
        "reason": "mailbox_not_found",
        "answered": True,
        "fault": "recipient",
        "retry": "none",
        "reach": "none",
        "rule": "words:unknown_user",
    }
    assert second["reason"] == "greylisted"


@pytest.mark.parametrize("code", ["550", 550, " 550 "])
@pytest.mark.parametrize("enhanced", ["5.1.1", "", None, 5.1])
def test_codes_may_be_strings_numbers_empty_or_null(code: object, enhanced: object) -> None:
    """Logs write them in every way."""
    assert said(run({"code": code, "enhanced": enhanced, "text": "user unknown"}))[0]["reason"] == "mailbox_not_found"


def test_without_a_code_nothing_is_invalid() -> None:
    """Empty and null are no code."""
    assert {row["category"] for row in said(run({"code": "", "text": "user unknown"}, {"code": None}, {}))} == {"risky"}


def test_a_bad_line_says_so_in_its_place_and_exits_1_at_the_end() -> None:
    """Nothing after it is lost."""
    bad = ("{", "[1]", {"code": "abc"}, {"code": True}, {"stage": "quit"}, {"text": 5})
    result = run(*bad, {"code": 550, "enhanced": "5.1.1"})
    assert result.exit_code == 1
    *errors, last = said(result)
    assert all(row.keys() == {"error"} and row["error"] for row in errors)
    assert len(errors) == len(bad)
    assert last["reason"] == "mailbox_not_found"


@pytest.mark.parametrize("provider", ["microsoft365", "office365", "b-example.mail.protection.outlook.com"])
def test_a_provider_is_named_by_policy_alias_or_mail_host(provider: str) -> None:
    """5.4.1 is an unknown user at Microsoft, and nowhere else."""
    reply = {"code": 550, "enhanced": "5.4.1", "text": "Recipient address rejected: Access denied", "stage": "rcpt"}
    there, elsewhere, nowhere = said(run(reply | {"provider": provider}, reply | {"provider": "mx.b.example"}, reply))
    assert there["reason"] == "mailbox_not_found"
    assert there["rule"].startswith("provider[")
    assert elsewhere == nowhere
    assert nowhere["reason"] == "policy_rejected"


def test_own_policies_bring_their_own_rows(tmp_path: Path) -> None:
    """`--policies DIR` lies over the shipped rows."""
    (tmp_path / "mine.yaml").write_text(
        "provider: mine\nmatch: {mx: [mx.mine.example]}\n"
        "replies: [{code: 550, text: gone fishing, reason: mailbox_disabled, examples: [550 Gone fishing]}]\n"
    )
    result = run({"code": 550, "text": "Gone fishing", "provider": "mine"}, args=("--policies", str(tmp_path)))
    assert said(result)[0]["reason"] == "mailbox_disabled"


def test_a_journal_is_judged_again_and_only_changes_are_told(tmp_path: Path) -> None:
    """Stored refusals that today's rules read otherwise are printed; nothing is written, acceptances are left alone."""
    path = tmp_path / "out.csv.journal"
    told = {"at": 1.0, "kind": "rcpt", "stage": "rcpt", "mx_host": "mx.b.example", "address": "a@b.example"}
    rows = [
        AuditRow(**told, code=250, reason="rcpt_ok", text="OK"),
        AuditRow(**told, code=550, enhanced="5.1.1", reason="mailbox_not_found", text="User unknown"),
        AuditRow(**told, code=550, enhanced="5.1.1", reason="mailbox_not_found", text="Your IP is on our blacklist"),
    ]
    with Writer() as writer:
        journal = Journal(path, writer)
        journal.begin("job-1")
        journal.audit(rows).wait()
        journal.close()
    result = run(args=("--journal", str(path)))
    assert result.exit_code == 0
    (change,) = said(result)
    assert (change["seq"], change["was"], change["now"]["reason"]) == (3, "mailbox_not_found", "ip_blocklisted")
    assert "2 replies judged" in result.stderr
    assert "1 would change" in result.stderr


def test_reasons_print_as_table_json_and_markdown() -> None:
    """Every code is in each form, and the JSON says what the table says."""
    table, page = (CliRunner().invoke(reasons, args).stdout for args in ([], ["--markdown"]))
    rows = [json.loads(line) for line in CliRunner().invoke(reasons, ["--json"]).stdout.splitlines()]
    assert page == markdown()
    assert [row["reason"] for row in rows] == list(REASONS)
    assert all(code in table and f"`{code}`" in page for code in REASONS)
    assert all(row["answered"] is REASONS[row["reason"]].answered for row in rows)
