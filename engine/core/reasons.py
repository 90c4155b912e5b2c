"""The one table of reason codes.

1. Codes are append-only: a code that was ever written to a result keeps its name and its meaning.
2. Every reason states its category, whether it tells about the mailbox (`answered`), whose fault it is,
   what a retry could change, and who is refused (`reach`). Nothing else in the engine decides these.
3. `docs/reasons.md` and `engine reasons` are made from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Category(StrEnum):
    """The verdict; there are exactly three. *Unknown* is risky with `answered` false."""

    VALID = "valid"
    INVALID = "invalid"
    RISKY = "risky"


class Fault(StrEnum):
    """Who or what the outcome speaks of."""

    NONE = "none"
    RECIPIENT = "recipient"
    DOMAIN = "domain"
    POLICY = "policy"
    US = "us"
    PROTOCOL = "protocol"
    NETWORK = "network"
    DNS = "dns"
    INPUT = "input"


class Retry(StrEnum):
    """What kind of later attempt could bring another answer."""

    NONE = "none"
    GREYLIST = "greylist"  # same source, HELO, sender and recipient after a while
    BACKOFF = "backoff"  # the tempfail ladder
    RECONNECT = "reconnect"  # one more session, at once
    PAUSE = "pause"  # when the lane opens again; uses no step of a ladder
    DNS = "dns"  # the look-up again


class Reach(StrEnum):
    """Who is refused: nobody but this address, one domain's door, or our source altogether."""

    NONE = "none"
    DOMAIN = "domain"
    SOURCE = "source"


class Stage(StrEnum):
    """Where on an address's way the outcome was reached."""

    SYNTAX = "syntax"
    DOMAIN = "domain"
    HOSTS = "hosts"
    CONNECT = "connect"  # TCP and the greeting
    EHLO = "ehlo"
    TLS = "tls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # never ours; a reply out of a log
    UNKNOWN = "unknown"  # a reply out of a log or a bounce
    NONE = "none"  # ended before any gate, for example by a deadline


@dataclass(frozen=True, slots=True)
class Reason:
    """One row of the table.

    `reach` is what a refusal of this kind says by itself; a reply's own words can only widen it.
    """

    code: str
    category: Category
    answered: bool
    fault: Fault
    retry: Retry
    reach: Reach
    meaning: str

    @property
    def ending(self) -> bool:
        """Whether it ends a run's work on an address without a verdict; `--resume` takes it up again."""
        return self.code in ENDINGS


# code | category | answered | fault | retry | reach | meaning
_TABLE = """
rcpt_ok                  | valid   | yes | none      | none      | none   | Accepted at RCPT, and the same domain refuses a made-up recipient
accepted_unconfirmed     | risky   | no  | none      | backoff   | none   | Accepted at RCPT, but no control says that the domain refuses anybody
catch_all                | risky   | no  | domain    | none      | none   | The domain accepts any recipient
provider_unverifiable    | risky   | no  | domain    | none      | none   | The provider's RCPT replies mean nothing; nothing was asked
provider_not_probed      | risky   | no  | policy    | none      | none   | The provider's terms, a missing approval or a missing pool tag forbid asking
mailbox_unchecked        | risky   | no  | none      | none      | none   | The mail host is there; the mailbox was not asked about
mailbox_full             | risky   | yes | recipient | backoff   | none   | The mailbox exists and is over its quota
mailbox_receiving_rate   | risky   | yes | recipient | none      | none   | The mailbox exists and receives more mail than its provider lets it
recipient_restricted     | risky   | yes | recipient | none      | none   | The mailbox exists and takes mail from chosen senders only
mailbox_not_found        | invalid | yes | recipient | none      | none   | The server says that there is no such mailbox
rcpt_rejected            | invalid | yes | recipient | none      | none   | Refused at RCPT for good, with no word about us and none about the mailbox
mailbox_moved            | invalid | yes | recipient | none      | none   | The mailbox has moved away from here
mailbox_bad_syntax       | invalid | yes | recipient | none      | none   | The server does not take this local part as an address
mailbox_disabled         | invalid | yes | recipient | none      | none   | The mailbox is disabled, suspended or inactive
refusals_suspect         | risky   | no  | us        | pause     | none   | The site refuses everything in the same words: the refusals prove nothing
syntax_invalid           | invalid | yes | input     | none      | none   | Not an address by RFC 5321 and RFC 6531; the detail says why
idn_invalid              | invalid | yes | input     | none      | none   | The domain is not a valid internationalised name
domain_reserved          | invalid | yes | input     | none      | none   | The domain is reserved and can't receive mail (RFC 2606, RFC 6761)
eai_unsupported          | invalid | yes | protocol  | none      | none   | A non-ASCII local part, and no mail host of the domain offers SMTPUTF8
domain_not_found         | invalid | yes | domain    | none      | none   | The domain does not exist
domain_no_mail_host      | invalid | yes | domain    | none      | none   | The domain has neither MX nor address records
domain_null_mx           | invalid | yes | domain    | none      | none   | The domain says that it takes no mail (null MX, RFC 7505)
domain_mx_unroutable     | invalid | yes | domain    | none      | none   | Every mail host leads nowhere: names without addresses, or non-public addresses
host_accepts_no_mail     | invalid | yes | domain    | none      | none   | Every mail host of the domain says that it takes no mail (RFC 7504)
relay_denied             | risky   | no  | domain    | backoff   | domain | The host does not feel responsible for the domain, or does not know us
greylisted               | risky   | no  | policy    | greylist  | none   | The server asks to come back later (greylisting)
mailbox_temporarily_unavailable | risky | no | recipient | backoff | none  | The mailbox can't be reached at the moment
smtp_tempfail            | risky   | no  | domain    | backoff   | none   | A temporary failure (4yz) with nothing more to tell
server_busy              | risky   | no  | domain    | backoff   | none   | The server is busy or shutting down
server_storage           | risky   | no  | domain    | backoff   | none   | The server is out of space; this is not the mailbox's quota
too_many_recipients      | risky   | no  | protocol  | reconnect | none   | Too many recipients for one transaction or session
too_many_connections     | risky   | no  | us        | pause     | source | The server counts too many connections from us
rate_limited             | risky   | no  | us        | pause     | source | The server limits our rate
ip_blocklisted           | risky   | no  | us        | pause     | source | The server refuses us because a block list names our address
ip_blocked               | risky   | no  | us        | pause     | source | The server refuses our address by a list or rule of its own
ip_reputation_low        | risky   | no  | us        | pause     | source | The server refuses us because of our reputation
ptr_missing              | risky   | no  | us        | pause     | source | The server misses a (matching) reverse name of our address
helo_rejected            | risky   | no  | us        | pause     | source | The server refuses our HELO name
sender_rejected          | risky   | no  | us        | pause     | domain | The server refuses our MAIL FROM address
sender_auth_failed       | risky   | no  | us        | pause     | domain | SPF, or all authentication, of our sender failed in the server's eyes
message_rejected         | risky   | no  | us        | none      | none   | A spam, content or size text; it does not speak of the mailbox
tls_required             | risky   | no  | policy    | reconnect | none   | The server wants STARTTLS first
auth_required            | risky   | no  | policy    | none      | domain | The server wants authentication
policy_rejected          | risky   | no  | policy    | backoff   | domain | Refused by a policy that the reply does not explain further, or by DKIM or DMARC of a message
greeting_rejected        | risky   | no  | policy    | pause     | domain | The server refused us with its greeting
greeting_timeout         | risky   | no  | network   | backoff   | none   | Connected, and no greeting came in time
connect_timeout          | risky   | no  | network   | backoff   | none   | No mail host answered the connection attempt in time
connect_refused          | risky   | no  | network   | backoff   | none   | The mail hosts refuse connections
connect_reset            | risky   | no  | network   | backoff   | none   | The connection was reset before a greeting came
network_unreachable      | risky   | no  | network   | backoff   | none   | There is no route to the mail hosts
no_route_ipv6            | risky   | no  | network   | none      | none   | The mail hosts have IPv6 addresses only, and the identity has none
egress_port25_blocked    | risky   | no  | network   | pause     | none   | This machine's network lets no connection to port 25 out
tls_handshake_failed     | risky   | no  | domain    | backoff   | none   | STARTTLS failed, and the policy allows no plain session
read_timeout             | risky   | no  | network   | backoff   | none   | The server fell silent in the dialogue
disconnected             | risky   | no  | network   | backoff   | none   | The server dropped the connection in the dialogue
protocol_error           | risky   | no  | protocol  | backoff   | none   | The dialogue broke down: bytes or order are not SMTP, or the server says so of ours
dns_timeout              | risky   | no  | dns       | dns       | none   | The name servers did not answer in time
dns_servfail             | risky   | no  | dns       | dns       | none   | The name servers failed (SERVFAIL, REFUSED or a malformed answer)
mx_lookup_incomplete     | risky   | no  | dns       | dns       | none   | The mail hosts are known, but the look-up of their addresses failed
provider_paused          | risky   | no  | us        | pause     | none   | The provider stayed closed to us until the policy gave up
domain_refuses_us        | risky   | no  | us        | pause     | none   | The domain's server kept refusing us until the policy gave up
identity_paused          | risky   | no  | us        | pause     | none   | The identity may not probe: blocked by several sites, quarantined or drained
deadline_exceeded        | risky   | no  | none      | pause     | none   | The run's deadline passed before the address was answered
cancelled                | risky   | no  | none      | pause     | none   | The run was stopped before the address was answered
suppressed_local         | risky   | no  | policy    | none      | none   | On the operator's own suppression list; never probed
consent_missing          | risky   | no  | policy    | none      | none   | No consent record covers asking about this mailbox
consent_expired          | risky   | no  | policy    | pause     | none   | The consent record expired before the address was asked
domain_opted_out         | risky   | no  | policy    | none      | none   | The receiving domain asked us not to probe it
unclassified_reply       | risky   | no  | policy    | backoff   | none   | A reply that no rule knows; counted, so that a rule gets written
internal_error           | risky   | no  | us        | pause     | none   | A fault of ours; the log tells more
"""

# Endings of the run are no verdicts (design section 5): written out, and taken up again by `--resume`.
ENDINGS = frozenset(
    {
        "provider_paused",
        "domain_refuses_us",
        "identity_paused",
        "deadline_exceeded",
        "cancelled",
        "consent_expired",
        "egress_port25_blocked",
    }
)


def _read(table: str) -> dict[str, Reason]:
    rows = {}
    for line in table.strip().splitlines():
        code, category, answered, fault, retry, reach, meaning = (cell.strip() for cell in line.split("|"))
        rows[code] = Reason(
            code, Category(category), answered == "yes", Fault(fault), Retry(retry), Reach(reach), meaning
        )
    return rows


REASONS: dict[str, Reason] = _read(_TABLE)
