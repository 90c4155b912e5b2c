"""How well the classifier reads labelled replies, and how fast: `python -m bench replies FILE [--json] [--show N]`.

FILE holds one JSON object a line: code, enhanced, text, stage, provider, label, and alt (labels that are right too).
An *undeliverable* reply is one labelled user_unknown, domain_unknown or mailbox_disabled; a call of `invalid` is false
when neither label nor alt is one of these. A reason is right when its label, by `LABELS`, is the row's label or alt.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure.report import SHORT
from engine.core.classify import VERSION, Judgement, classify
from engine.core.policy import PolicySet
from engine.core.reasons import Category, Stage
from engine.flow.policies import load_policies

LIMIT_US = 20.0  # to read a reply
UNDELIVERABLE = frozenset({"user_unknown", "domain_unknown", "mailbox_disabled"})
_REASONS_OF = {
    "user_unknown": "mailbox_not_found rcpt_rejected mailbox_moved mailbox_bad_syntax",
    "mailbox_disabled": "mailbox_disabled",
    "mailbox_full": "mailbox_full",
    "domain_unknown": "domain_not_found domain_no_mail_host domain_null_mx host_accepts_no_mail",
    "blocked_ip": "ip_blocklisted ip_blocked ip_reputation_low ptr_missing",
    "rate_limited": "rate_limited too_many_connections too_many_recipients",
    "greylisted": "greylisted",
    "relay_denied": "relay_denied",
    "auth_required": "auth_required tls_required sender_auth_failed",
    "policy_reject": "policy_rejected sender_rejected helo_rejected recipient_restricted",
    "spam_reject, size": "message_rejected",
    "system_error": "server_busy server_storage smtp_tempfail mailbox_temporarily_unavailable",
    "protocol_error": "protocol_error",
    "other": "unclassified_reply",
}
LABELS: dict[str, str] = {reason: label for label, codes in _REASONS_OF.items() for reason in codes.split()}


@dataclass(frozen=True, slots=True)
class Judged:
    """One labelled row and what the classifier says of it."""

    row: dict[str, Any]
    judgement: Judgement

    @property
    def labels(self) -> set[str]:
        """The labels that are right."""
        return {self.row["label"], *(self.row.get("alt") or ())}

    @property
    def invalid(self) -> bool:
        """Whether the classifier calls it invalid."""
        return self.judgement.reason.category is Category.INVALID

    @property
    def right(self) -> bool:
        """Whether the reason is one of the right labels."""
        said = LABELS.get(self.judgement.reason.code, self.judgement.reason.code).split(", ")
        return bool(self.labels & set(said))

    @property
    def false_invalid(self) -> bool:
        """Whether it is called invalid and should not be."""
        return self.invalid and not self.labels & UNDELIVERABLE


def judge(row: dict[str, Any], policies: PolicySet) -> Judged:
    """Ask the classifier about one row; a provider that no policy knows gets the default policy, as in a run."""
    policy = policies.named(str(row.get("provider") or ""))
    code = str(row.get("code") or "")
    reply = (int(code) if code.isdigit() else None, str(row.get("enhanced") or ""), str(row.get("text") or ""))
    stage = Stage(row.get("stage") or "unknown")
    return Judged(row, classify(*reply, stage, (policy or policies.default).replies))


def summary(judged: Sequence[Judged]) -> dict[str, float | int]:
    """The figures that the classifier is held to; shares are of 1."""
    undeliverable = [one for one in judged if one.row["label"] in UNDELIVERABLE]
    invalid = [one for one in judged if one.invalid]
    return {
        "rows": len(judged),
        "recall": _share(sum(one.invalid for one in undeliverable), len(undeliverable)),
        "false_invalid": _share(sum(one.false_invalid for one in invalid), len(invalid)),
        "reason_right": _share(sum(one.right for one in judged), len(judged)),
        "answered": _share(sum(one.judgement.reason.answered for one in judged), len(judged)),
        "unclassified": _share(sum(one.judgement.reason.code == "unclassified_reply" for one in judged), len(judged)),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def confusion(judged: Sequence[Judged]) -> str:
    """What each label was called, as aligned text; a call that is right is starred."""
    lines = [f"{'label':18}{'rows':>6}{'right':>8}  called"]
    for label, count in sorted(Counter(one.row["label"] for one in judged).items()):
        ours = [one for one in judged if one.row["label"] == label]
        calls = Counter((one.judgement.reason.code, one.right) for one in ours)
        called = ", ".join(f"{'*' if right else ''}{code} {number}" for (code, right), number in calls.most_common())
        lines.append(f"{label:18}{count:6}{sum(one.right for one in ours) / count:8.1%}  {called}")
    return "\n".join(lines)


def microseconds_per_reply(rows: Sequence[dict[str, Any]], policies: PolicySet, *, rounds: int = 5) -> float:
    """The best of some rounds over all rows, reading of the row included."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for row in rows:
            judge(row, policies)
        times.append(time.perf_counter() - start)
    return round(min(times) / max(len(rows), 1) * 1e6, 1)


def main(arguments: list[str]) -> int:
    """Read the file, judge every row, print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench replies", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--policies", type=Path, action="append", default=[], help="a folder of more policies")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N misjudged rows")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--check", action="store_true", help=f"exit 1 when a reply takes {LIMIT_US} us or more")
    options = parser.parse_args(arguments)
    try:
        lines = options.file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        print(f"{options.file} can't be read as JSON lines: {error}", file=sys.stderr)
        return 2
    policies = load_policies(options.policies)
    judged = [judge(row, policies) for row in rows]
    figures = summary(judged) | {"us_per_reply": microseconds_per_reply(rows, policies), "classifier": VERSION}
    if options.json:
        print(json.dumps(figures))
    else:
        _print_text(figures, judged, options.show)
    return SHORT if options.check and figures["us_per_reply"] >= LIMIT_US else 0


def _print_text(figures: dict[str, Any], judged: Sequence[Judged], show: int) -> None:
    for name, value in figures.items():
        print(f"{name:16} {value:.1%}" if isinstance(value, float) and name != "us_per_reply" else f"{name:16} {value}")
    print(f"\n{confusion(judged)}")
    wrong = [one for one in judged if not one.right or one.false_invalid]
    for one in sorted(wrong, key=lambda one: not one.false_invalid)[:show]:
        mark = "FALSE INVALID" if one.false_invalid else "misjudged"
        row, said = one.row, one.judgement
        print(f"\n{mark}: {row['label']} called {said.reason.code} by {said.rule}")
        print(f"  {row.get('stage')} {row.get('code')} {row.get('enhanced') or ''} {row.get('text')}")
