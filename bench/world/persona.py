"""How a host answers. A persona is plain data, and may change in mid-run, in open sessions too."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "550 5.1.1 <{rcpt}>: Recipient address rejected: User unknown in virtual mailbox table"
LISTED = "554 5.7.1 Service unavailable; Client host [{client}] blocked using zen.spamhaus.org"


@dataclass(slots=True)
class Persona:
    """Replies by stage; `{rcpt}` and `{client}` are filled in. `rcpt` answers every recipient alike when it is set.

    `delay_s` passes before each reply, `greeting_delay_s` before the first one instead. `greylist_s` refuses a
    (client, sender, recipient) that was first seen less long ago.
    """

    greeting: str = "220 mx ESMTP"
    mail: str = "250 2.1.0 Ok"
    known: str = "250 2.1.5 Ok"
    unknown: str = UNKNOWN
    rcpt: str = ""
    greylist: str = "450 4.2.0 <{rcpt}>: Recipient address rejected: Greylisted"
    greylist_s: float = 0.0
    delay_s: float = 0.0
    greeting_delay_s: float | None = None
    pipelining: bool = True
    starttls: bool = False


PERSONAS: dict[str, dict[str, object]] = {
    "normal": {},
    "catch-all": {"unknown": "250 2.1.5 Ok"},
    "greylisting": {"greylist_s": 1.0},
    "tarpit": {"delay_s": 2.0},
    "tempfailing": {"rcpt": "451 4.3.0 <{rcpt}>: Temporary lookup failure"},
    "blocking": {"rcpt": LISTED},
}
