"""`engine classify`: what SMTP replies mean, out of a pipe or out of a job's journal; nothing is sent."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from engine.core.classify import VERSION, Judgement
from engine.core.classify import classify as judge
from engine.core.policy import Policy, PolicySet
from engine.core.reasons import Stage
from engine.flow.policies import load_policies

_STAGES = ("connect", "ehlo", "tls", "mail", "rcpt", "data", "unknown")


class LineError(ValueError):
    """A line that holds no reply; the message says what is wrong with it."""


@click.command()
@click.option(
    "--policies",
    "directories",
    metavar="DIR",
    multiple=True,
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Files that lie over the shipped ones, key by key; may be given more than once.",
)
@click.option(
    "--journal",
    metavar="FILE",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Judge the replies of a job's journal again and print those that would get another reason.",
)
def classify(directories: tuple[Path, ...], journal: Path | None) -> None:
    """Read JSON lines {code, enhanced, text, stage, provider} and write {category, reason, answered, fault, retry,
    reach, rule} for each.

    STAGE is connect, ehlo, tls, mail, rcpt, data or unknown. PROVIDER is a policy's name, an alias or an MX host name.
    A line that can't be read gives {"error": ...} in its place, and exit 1 at the end.
    """
    policies = load_policies(directories)
    if journal is not None:
        _again(journal, policies)
        return
    failed = False
    for line in sys.stdin.buffer:
        if not line.strip():
            continue
        try:
            found = as_json(_judge_line(line, policies))
        except LineError as error:
            failed, found = True, {"error": str(error)}
        click.echo(json.dumps(found))
    if failed:
        sys.exit(1)


def as_json(judgement: Judgement) -> dict[str, Any]:
    """A judgement as the command writes it."""
    reason = judgement.reason
    return {
        "category": reason.category,
        "reason": reason.code,
        "answered": reason.answered,
        "fault": reason.fault,
        "retry": reason.retry,
        "reach": judgement.reach,
        "rule": judgement.rule,
    }


def _judge_line(line: bytes, policies: PolicySet) -> Judgement:
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(f"not a JSON line: {error}") from error
    if not isinstance(reply, dict):
        raise LineError("not a JSON object (expected code, enhanced, text, stage, provider)")
    text = reply.get("text")
    if text is not None and not isinstance(text, str):
        raise LineError(f"text is {text!r} (expected a string)")
    enhanced = reply.get("enhanced")
    policy = _policy(reply.get("provider"), policies)
    return judge(
        _code(reply.get("code")), "" if enhanced is None else str(enhanced), text or "", _stage(reply), policy.replies
    )


def _code(value: object) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, float):  # NaN and 550.0: what tables hold
        value = "" if math.isnan(value) else int(value) if value.is_integer() else value
    text = str(value).strip()
    if text in {"", "0"}:
        return None
    if isinstance(value, bool) or not (text.isascii() and text.isdigit() and len(text) == 3):
        raise LineError(f"code is {value!r} (expected three digits, or nothing)")
    return int(text)


def _stage(reply: dict[str, Any]) -> Stage:
    value = str(reply.get("stage") or "unknown").strip().lower()
    if value not in _STAGES:
        raise LineError(f"stage is {value!r} (expected {', '.join(_STAGES)})")
    return Stage(value)


def _policy(provider: object, policies: PolicySet) -> Policy:
    """The policy of that name, alias or MX host; the default one for anything else, as in a run."""
    return (policies.named(provider) if isinstance(provider, str) and provider else None) or policies.default


def _again(path: Path, policies: PolicySet) -> None:
    """Print each stored refusal that today's rules read otherwise, and on stderr how many they are."""
    judged = changed = erased = 0
    for row in _refusals(path):
        if row["text"] is None:
            erased += 1
            continue
        judged += 1
        rows = _policy(row["mx_host"], policies).replies
        found = judge(
            row["code"], row["enhanced"], row["text"], Stage(row["stage"]), rows, echoed=(row["address"] or "",)
        )
        if found.reason.code != row["reason"]:
            changed += 1
            told = {key: row[key] for key in ("seq", "address", "stage", "code", "enhanced", "text")}
            click.echo(json.dumps(told | {"was": row["reason"], "now": as_json(found)}))
    click.echo(
        f"{path}: {judged} replies judged by classifier {VERSION}, {changed} would change, {erased} are erased.",
        err=True,
    )


def _refusals(path: Path) -> Iterator[dict[str, Any]]:
    from engine.store import audit  # noqa: PLC0415 - a pipe needs no store
    from engine.store.database import JOURNAL, StoreError, open_read_only  # noqa: PLC0415

    try:
        with open_read_only(path, JOURNAL) as conn:
            for row in audit.export(conn):
                if row["code"] is not None and row["code"] >= 400:
                    yield row
    except StoreError as error:
        raise click.UsageError(str(error)) from error
