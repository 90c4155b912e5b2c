"""A message as a mail and as a post to Slack. Pure.

Plain text in both: nothing that a list or a server sent can become a link, a mention or mark-up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from typing import Any

from engine.core.listing import Severity
from engine.core.notice import Message

LONGEST_HEADER = 150  # Slack's limit of a header block
LONGEST_SECTION = 3000  # and of a section

_MARKS = {
    Severity.CRITICAL: ":red_circle:",
    Severity.HIGH: ":large_orange_circle:",
    Severity.MEDIUM: ":large_yellow_circle:",
}
_RESOLVED = ":large_green_circle:"
_OTHER = ":white_circle:"
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def email_of(message: Message, sender: str, to: Sequence[str]) -> EmailMessage:
    """The mail. The same message always gives the same Message-ID; mails of one story are one thread."""
    domain = sender.rpartition("@")[2]
    mail = EmailMessage(policy=SMTP)
    mail["From"] = sender
    mail["To"] = ", ".join(to)
    mail["Subject"] = message.title
    mail["Date"] = formatdate(message.at)
    mail["Message-ID"] = f"<{message.id}.alert@{domain}>"
    if message.thread:
        story = hashlib.sha256(message.thread.encode()).hexdigest()[:24]
        mail["References"] = f"<{story}.story@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no vacation notice comes back
    mail.set_content(text_of(message))
    return mail


def text_of(message: Message) -> str:
    """The message as plain text, without its title."""
    blocks = [f"{label}\n" + "\n".join(f"  {line}" for line in text.splitlines()) for label, text in message.parts]
    if message.link:
        blocks.append(f"Link\n  {message.link}")
    return "\n\n".join(blocks) + "\n"


def slack_body(message: Message) -> dict[str, Any]:
    """The body of a post to an incoming webhook: `text` for the notification, `blocks` for the channel."""
    resolved = message.title.startswith("Resolved")
    mark = _RESOLVED if resolved else _MARKS.get(message.severity, _OTHER)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(f"{mark} {message.title}", LONGEST_HEADER)}}
    ]
    for label, text in message.parts:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": f"*{label}*\n{_escaped(text)}"}})
    if message.link.startswith(("https://", "http://")):
        link = message.link.replace("|", "%7C").replace(">", "%3E").replace("<", "%3C")
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": f"<{link}|{_escaped(message.link)}>"}})
    return {"text": f"{mark} {_escaped(message.title)}", "blocks": blocks, "unfurl_links": False}


def _escaped(text: str) -> str:
    """The text with the three characters that Slack gives a meaning escaped, cut where a section would be too long."""
    escaped = [_ENTITIES.get(char, char) for char in text]
    room = LONGEST_SECTION - 100  # the label stands above it
    if sum(map(len, escaped)) <= room:
        return "".join(escaped)
    return "".join(escaped[: room // max(map(len, _ENTITIES.values()))]) + "…"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
