"""The picture in README.md: `python docs/made/run_picture.py` makes a run over the lab, and draws docs/run.svg of it.

1. It draws what the lab's log says: each mark is one reply to RCPT TO, where and when a server gave it.
2. Nothing of it is made up or moved; each run of it differs a little, so nobody checks whether it is fresh.
3. The numbers of the policy are small, so that half a minute shows what takes hours outside.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from engine.lab.process import LabProcess
from engine.lab.spec import SHIPPED

DOCS = Path(__file__).parents[1]
EACH = 60  # addresses of a site; every fifth is unknown there
BLOCKS_AT_S, BLOCKS_FOR_S = 6, 9
SITES = {  # domain -> (persona, what it does)
    "steady.lab": ("steady", "answers for each mailbox"),
    "greylist.lab": ("greylisting", "asks each recipient to come back after 4 s"),
    "everybody.lab": ("everybody", "accepts everybody, a made-up recipient too"),
    "blocking.lab": ("blocking", f"refuses our address from second {BLOCKS_AT_S} on, for {BLOCKS_FOR_S} s"),
}
PERSONAS: dict[str, dict[str, Any]] = {
    "steady": {"does": "knows its mailboxes"},
    "greylisting": {"does": "greylists", "greylist": "4s"},
    "everybody": {"does": "accepts all", "replies": {"unknown": "250 2.1.5 Ok"}},
    "blocking": {"does": "blocks for a while", "replies": {"block": "554 5.7.1 Blocked, see zen.spamhaus.org"}},
}
POLICY = """\
provider: picture
match: {mx: ["*.lab"]}
scope: site
sessions: {concurrency: 1, rate: 60/min, burst: 1}
recipients: {rate: 3/s..3/s, per_session: 10, per_transaction: 3}
refusals: {per_session: 9, rate: 1000/h..1000/h}
retry: {greylist: [5s, 5s], tempfail: [5s], give_up: 1m}
pace: {floor: 3/s}
breaker: {open: 2s, max_open: 10s}
sources: [{for: [match, scope, sessions, recipients, refusals, retry, pace, breaker], say: our guess}]
"""
KINDS = {  # kind of reply -> (colour, what it says, where in the row: from, height)
    "accepted": ("#2a9d5c", "accepted", 0, 19),
    "unknown": ("#c8442e", "no such mailbox", 21, 19),
    "later": ("#e0a325", "come back later", 0, 40),
    "refused": ("#6b4ba3", "refuses us", 0, 40),
}
COLOURS = {"valid": "#2a9d5c", "invalid": "#c8442e", "risky": "#8a6d1c"}
_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"
     role="img" aria-label="Replies to RCPT TO of four sites over one run">
<rect width="{width}" height="{height}" fill="#ffffff"/>
<text x="14" y="24" font-size="15" font-weight="bold" fill="#222">One run: each mark is a reply to RCPT TO</text>\
"""
LEFT, RIGHT, TOP, ROW, WIDTH = 270, 130, 66, 58, 960


def run(folder: Path) -> tuple[list[dict[str, Any]], float, dict[str, Counter[str]]]:
    """The lab's log, when blocking began on its clock, and the verdicts of each domain."""
    (folder / "policies").mkdir()
    (folder / "policies" / "picture.yaml").write_text(POLICY, "utf-8")
    listed = [f"{'x' if number % 5 == 0 else 'm'}{number}@{domain}" for number in range(EACH) for domain in SITES]
    (folder / "list.txt").write_text("".join(f"{address}\n" for address in listed), "utf-8")
    boxes = [f"m{number}" for number in range(EACH) if number % 5]
    domains = {name: {"persona": persona, "mailboxes": boxes} for name, (persona, _) in SITES.items()}
    spec = {
        "personas": PERSONAS,
        "domains": domains | {"probe.lab": {"persona": "steady", "mailboxes": ["probe"]}},
        "records": ["lab NS ns.lab", "ns.lab A 127.0.0.1", "1.0.0.127.in-addr.arpa PTR probe.lab"],
    }
    with LabProcess(spec) as lab:
        command = [sys.executable, "-P", "-m", "engine", "verify", "list.txt", "-o", "out.csv", "--mode", "enhanced"]
        command += ["--identity", str(SHIPPED.parent / "identity.yaml"), "--consent", "LAB", "--consent-by", "the lab"]
        command += ["--dns", "{}:{}".format(*lab.dns)]
        command += ["--smtp-port", str(lab.smtp_port), "--allow-private", "--accept-identity-risk", "the lab"]
        command += ["--policies", str(folder / "policies"), "--state", str(folder / "state.db")]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as engine:
            while not (begun := [row for row in lab.log() if row["event"] == "connect"]):
                if engine.poll() is not None:
                    sys.exit("the run ended before it began")
                time.sleep(0.1)
            start = begun[0]["t"]
            time.sleep(max(0.0, start + BLOCKS_AT_S - time.monotonic()))
            lab.set("blocking", block="rcpt")
            time.sleep(BLOCKS_FOR_S)
            lab.set("blocking", block="no")
            engine.wait(180)
        log = lab.log()
    with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_domain = {name: [row for row in rows if row["normalized"].endswith(f"@{name}")] for name in SITES}
    verdicts = {name: Counter(row["category"] for row in found) for name, found in by_domain.items()}
    return log, start, verdicts


def marks(log: list[dict[str, Any]], start: float) -> list[tuple[str, float, str]]:
    """(domain, seconds from the start, kind) of each reply to RCPT TO."""
    found = []
    for row in log:
        if row["event"] != "reply" or row["stage"] != "rcpt" or not row["domain"]:
            continue
        text = row["text"]
        kind = "accepted" if text[0] == "2" else "later" if text[0] == "4" else "refused"
        found.append((row["domain"], row["t"] - start, "unknown" if text.startswith("550 5.1.1") else kind))
    return found


def drawn(log: list[dict[str, Any]], start: float, verdicts: dict[str, Counter[str]]) -> str:
    """The picture."""
    replies = marks(log, start)
    last = max(at for _, at, _ in replies)
    scale = (WIDTH - LEFT - RIGHT) / (last + 0.5)
    parts = [_HEAD.format(width=WIDTH, height=TOP + ROW * len(SITES) + 34)]
    for place, (colour, what, *_) in enumerate(KINDS.values()):
        x = 14 + place * 130
        parts.append(f'<rect x="{x}" y="36" width="3" height="14" fill="{colour}"/>')
        parts.append(f'<text x="{x + 9}" y="48" fill="#222">{what}</text>')
    for place, (domain, (_, does)) in enumerate(SITES.items()):
        top = TOP + place * ROW
        if domain == "blocking.lab":
            x, width = LEFT + BLOCKS_AT_S * scale, BLOCKS_FOR_S * scale
            parts.append(f'<rect x="{x:.1f}" y="{top + 2}" width="{width:.1f}" height="{ROW - 8}" fill="#ece6f6"/>')
        parts.append(f'<text x="14" y="{top + 24}" font-weight="bold" fill="#222">{domain}</text>')
        parts.append(f'<text x="14" y="{top + 41}" font-size="11" fill="#555">{escape(does)}</text>')
        parts.append(f'<path d="M{LEFT} {top + ROW - 4}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        counts = [(name, verdicts[domain][name]) for name in COLOURS if verdicts[domain][name]]
        for line, (name, count) in enumerate(counts):
            y = top + 22 + line * 15
            parts.append(f'<text x="{WIDTH - RIGHT + 14}" y="{y}" fill="{COLOURS[name]}">{count} {name}</text>')
    tops = {domain: TOP + place * ROW + 8 for place, domain in enumerate(SITES)}
    for kind, (colour, _, down, high) in KINDS.items():
        at_kind = [(domain, at) for domain, at, each in replies if each == kind]
        lines = "".join(f"M{LEFT + at * scale:.1f} {tops[domain] + down}v{high}" for domain, at in at_kind)
        parts.append(f'<path d="{lines}" stroke="{colour}" stroke-width="1.6" stroke-opacity=".8"/>')
    foot = TOP + ROW * len(SITES) + 14
    for second in range(0, int(last) + 1, 5):
        x = LEFT + second * scale
        parts.append(f'<text x="{x:.1f}" y="{foot}" fill="#555" text-anchor="middle">{second} s</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        (DOCS / "run.svg").write_text(drawn(*run(Path(name))), "utf-8")
