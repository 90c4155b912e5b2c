"""Laws of the classifier: a block is never an invalid, and every trap that real replies set."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import codes, rules
from engine.core.classify import Classifier, Judgement, classify
from engine.core.policy import ReplyRow
from engine.core.reasons import REASONS, Category, Reach, Stage
from engine.core.reply_text import named_delay, words

BEFORE_RCPT = (Stage.CONNECT, Stage.EHLO, Stage.TLS, Stage.MAIL)
AS_RCPT = (Stage.RCPT, Stage.DATA, Stage.UNKNOWN)

# What speaks of us or of the message, in the words of common servers and gateways.
BLAME = {
    "Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org": "ip_blocklisted",
    "Your IP 192.0.2.1 is on our blacklist": "ip_blocklisted",
    "192.0.2.1 is listed at dnsbl.example.net": "ip_blocklisted",
    "Client host rejected: cannot find your reverse hostname, [192.0.2.1]": "ptr_missing",
    "No PTR record for your address": "ptr_missing",
    "<h.example>: Helo command rejected: Host not found": "helo_rejected",
    "Rejected because of the poor reputation of 192.0.2.1": "ip_reputation_low",
    "<h.example[192.0.2.1]>: Client host rejected: Access denied": "ip_blocked",
    "Access from your network is blocked": "ip_blocked",
    "Too many connections from 192.0.2.1": "too_many_connections",
    "You have exceeded the rate limit, slow down": "rate_limited",
    "Too many invalid recipients": "rate_limited",
    "Too many recipients": "too_many_recipients",
    "Greylisted, please come back later": "greylisted",
    "SPF check failed": "sender_auth_failed",
    "Rejected by the DMARC policy of example.net": "policy_rejected",
    "Authentication required": "auth_required",
    "Must issue a STARTTLS command first": "tls_required",
    "<s@example.net>: Sender address rejected: User unknown": "sender_rejected",
    "Sender verify failed": "sender_rejected",
    "Unknown sender": "sender_rejected",
    "This looks like spam to us": "message_rejected",
    "Message size exceeds the fixed limit": "message_rejected",
    "Virus detected": "message_rejected",
    "Relay access denied": "relay_denied",
    "Relaying denied": "relay_denied",
    "That domain isn't in my list of allowed rcpthosts": "relay_denied",
    "Refused for policy reasons": "policy_rejected",
    "Administrative prohibition": "policy_rejected",
}
USER_UNKNOWN = (
    "User unknown",
    "No such user here",
    "mailbox not found",
    "Recipient address rejected: undeliverable address",
)

# Families of replies at RCPT: the whole reply -> its reason.
WORLD = """
550 5.1.1 <a@b.example>: Recipient address rejected: User unknown in relay recipient table | mailbox_not_found
550 5.1.1 <a@b.example>: Rejected: host mx.b.example[192.0.2.9] said: 550 5.1.1 No such user | mailbox_not_found
450 4.1.1 <a@b.example>: Recipient address rejected: unverified address | mailbox_temporarily_unavailable
450 4.2.0 <a@b.example>: Recipient address rejected: Greylisted, see http://postgrey.example/help | greylisted
550 5.3.2 Service currently unavailable | server_busy
450 4.3.2 Service currently unavailable | server_busy
550 5.7.1 Service unavailable; client [192.0.2.1] blocked using bl.spamcop.net | ip_blocklisted
450 4.1.8 <s@x.example>: Sender address rejected: Domain not found | sender_rejected
452 4.3.1 Insufficient system storage | server_storage
452 4.2.2 The email account that you tried to reach is over quota | mailbox_full
552 5.2.2 The recipient's inbox is out of storage space and inactive. | mailbox_full
452 4.5.3 Error: too many recipients | too_many_recipients
452 4.5.3 Too many recipients (AS780090) | too_many_recipients
552 Too many recipients | too_many_recipients
552 5.3.4 Message size exceeds fixed limit | message_rejected
552 Requested mail action aborted: exceeded storage allocation | mailbox_full
503 5.5.1 Error: need MAIL command | protocol_error
451 4.3.0 <a@b.example>: Temporary lookup failure | server_busy
556 5.1.10 <a@b.example>: Rejected: Domain b.example does not accept mail (nullMX) | host_accepts_no_mail
550 5.7.1 <a@b.example>: Recipient address rejected: Access denied | policy_rejected
550 5.4.1 Recipient address rejected: Access denied | policy_rejected
550 5.4.1 Relay Access Denied | relay_denied
550 5.2.1 The user you are trying to contact is receiving mail at a rate too high | mailbox_receiving_rate
450 4.2.1 The user you are trying to contact is receiving mail too quickly. | mailbox_receiving_rate
550 5.2.1 Mailbox cannot be accessed | mailbox_disabled
525 5.7.13 Disabled recipient address | mailbox_disabled
550 Unrouteable address | mailbox_not_found
550 Verification failed for <s@x.example> The domain may not exist. Sender verify failed | sender_rejected
451 Could not complete sender verify callout | sender_rejected
550 Mailbox quota exceeded / Mailbox voll | mailbox_full
550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup | mailbox_not_found
550 5.1.10 | domain_null_mx
550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication required | recipient_restricted
550 5.7.606 Access denied, banned sending IP [192.0.2.1] | ip_blocked
451 4.7.500 Server busy. Please try again later from [192.0.2.1]. | rate_limited
550 5.1.2 <a@b.example>... Host unknown (Name server: b.example: host not found) | domain_not_found
550 5.7.1 <a@b.example>... Relaying denied. IP name lookup failed [192.0.2.1] | ptr_missing
553 5.1.8 <s@x.example>... Domain of sender address s@x.example does not exist | sender_rejected
550 sorry, no mailbox here by that name. (#5.1.1) | mailbox_not_found
553 sorry, your envelope sender is in my badmailfrom list (#5.7.1) | sender_rejected
550 Blocked - see https://ipcheck.proofpoint.com/?ip=192.0.2.1 | ip_blocklisted
550 #5.1.1 Address rejected. | mailbox_not_found
550 #5.1.0 Address rejected. | rcpt_rejected
452 Too many recipients received this hour | rate_limited
421 4.7.0 IP not in whitelist for RCPT domain, closing connection. | ip_blocked
550 5.1.6 recipient no longer on server: a@b.example | mailbox_moved
550 Unbekannter Empfänger | mailbox_not_found
550 Das Postfach existiert nicht | mailbox_not_found
550 Utilisateur inconnu | mailbox_not_found
550 Boîte aux lettres pleine | mailbox_full
550 usuario desconocido | mailbox_not_found
550 El usuario no existe | mailbox_not_found
550 Casella inesistente | mailbox_not_found
550 Użytkownik nieznany | mailbox_not_found
550 Message was not accepted -- invalid mailbox a@b.example: account is disabled | mailbox_disabled
550 The user has left the company | mailbox_disabled
550 mailbox unavailable | rcpt_rejected
550 Requested action not taken: mailbox unavailable | rcpt_rejected
550 Mailbox unavailable. Your IP address 192.0.2.1 is blacklisted | ip_blocklisted
550 Mailbox unavailable or access denied | policy_rejected
550 Rejected | rcpt_rejected
550 | rcpt_rejected
551 | rcpt_rejected
553 | rcpt_rejected
554 | policy_rejected
554 Transaction failed | policy_rejected
550 Rejected: signature_incorrect | unclassified_reply
550 Blocked | policy_rejected
540 5.7.1 <a@b.example>: Recipient address rejected: account deleted by user | mailbox_disabled
550 5.7.1 No such user! | policy_rejected
553 5.3.0 <a@b.example>... No such user | server_busy
451 4.7.1 Please try again later | greylisted
450 Requested mail action not taken: mailbox unavailable | mailbox_temporarily_unavailable
450 4.7.1 <a@b.example>: Recipient address rejected: User unknown | greylisted
551 User not local; please try <forward@example.com> | mailbox_moved
501 5.1.3 Bad recipient address syntax | mailbox_bad_syntax
553 5.6.7 Must declare SMTPUTF8 to send unicode address | protocol_error
554 5.6.7 Non-ASCII local part | eai_unsupported
550 The recipient's domain is not valid | domain_not_found
550 The domain is no longer in use | domain_not_found
550 Domain is disabled | domain_not_found
550 Mail for this domain is not accepted here | relay_denied
550 We do not serve that domain | relay_denied
550 We are not an open relay | relay_denied
550 Could not verify the sender; it may be blacklisted | sender_rejected
550 Sender address rejected: undeliverable address: host mx.example[192.0.2.9] said: 550 User unknown | sender_rejected
550 Your mailbox does not exist | sender_rejected
550 A link in the message is on a list; blacklisted URL | message_rejected
550 Message header is invalid | policy_rejected
550 The sender's IP is not allowed | ip_blocked
550 Refused because of the recipient's preferences | recipient_restricted
550 This is a closed list | recipient_restricted
550 No mail is accepted from that country | policy_rejected
550 Dictionary attack | rate_limited
450 Recipient address rejected: unverified address: connect to 192.0.2.9: refused | mailbox_temporarily_unavailable
552 Recipient quota exceeded | mailbox_full
550 Mailbox space used up | mailbox_full
550 The user has too many messages | mailbox_full
552 Message size exceeds the limit of the recipient | message_rejected
550 The hourly quota is exceeded | rate_limited
550 Nobody here by that name | mailbox_not_found
550 No record of such a user | mailbox_not_found
550 Not found in our LDAP directory | mailbox_not_found
550 The address no longer works | mailbox_disabled
550 She is no longer an employee | mailbox_disabled
550 We cannot process this recipient | rcpt_rejected
550 Benutzer nicht bekannt | mailbox_not_found
550 Kein solches Konto | mailbox_not_found
550 Onbekende gebruiker | mailbox_not_found
550 Cuenta inactiva | mailbox_disabled
550 Ihre IP-Adresse ist gesperrt | ip_blocked
530 5.1.1 No such user | auth_required
535 User unknown | auth_required
"""


def judged(reply: str, stage: Stage = Stage.RCPT) -> Judgement:
    """The judgement on a whole reply; the enhanced code stays in the text, as a log has it."""
    return classify(int(reply[:3]), "", reply[4:], stage)


def replies_of(table: str) -> list[tuple[str, str]]:
    rows = (line.rpartition("|") for line in table.strip().splitlines())
    return [(reply.rstrip(), want.strip()) for reply, _, want in rows]


@pytest.mark.parametrize(("reply", "want"), replies_of(WORLD), ids=lambda text: text[:60])
def test_families_of_replies_have_their_reason(reply: str, want: str) -> None:
    """What servers of the world say is read as their operators mean it."""
    assert want == judged(reply).reason.code


@pytest.mark.parametrize(("text", "want"), BLAME.items())
@pytest.mark.parametrize("enhanced", ["", "5.1.1", "5.0.0", "5.7.1"])
def test_a_block_is_never_an_invalid(text: str, want: str, enhanced: str) -> None:
    """Words that blame us or the message beat every enhanced code, recipient codes included (hard rule 1)."""
    found = classify(550, enhanced, text, Stage.RCPT)
    assert want == found.reason.code
    assert Category.RISKY is found.reason.category
    assert found.rule.startswith("words:")


@pytest.mark.parametrize("blame", BLAME)
@pytest.mark.parametrize("user", USER_UNKNOWN)
def test_a_text_of_both_kinds_is_never_an_invalid(blame: str, user: str) -> None:
    """Where a reply blames us and speaks of the mailbox, the blame counts, in either order."""
    for text in (f"{user}. {blame}", f"{blame}. {user}"):
        assert Category.INVALID is not classify(550, "5.1.1", text, Stage.RCPT).reason.category


@pytest.mark.parametrize("stage", BEFORE_RCPT)
@pytest.mark.parametrize(
    "text", [*USER_UNKNOWN, "", "Mailbox full", "Domain not found", "account disabled", "rejected"]
)
def test_nothing_before_rcpt_is_an_invalid(stage: Stage, text: str) -> None:
    """Nobody named a recipient yet: such words are about our sender or about us (hard rule 1)."""
    found = classify(550, "5.1.1", text, stage)
    assert Category.RISKY is found.reason.category
    assert not found.reason.answered


def test_a_521_greeting_is_a_block_unless_it_says_that_the_host_takes_no_mail() -> None:
    """521 at the greeting is `greeting_rejected`, RFC 7504's own words and 556 are `host_accepts_no_mail`."""
    assert classify(521, "", "mx.example ESMTP", Stage.CONNECT).reason.code == "greeting_rejected"
    assert classify(521, "5.7.1", "blocked using dnsbl.example", Stage.CONNECT).reason.code == "ip_blocklisted"
    assert classify(521, "", "mx.example does not accept mail", Stage.CONNECT).reason.code == "host_accepts_no_mail"
    assert classify(556, "", "", Stage.CONNECT).reason.code == "host_accepts_no_mail"
    assert classify(554, "", "mx.example does not accept mail", Stage.CONNECT).reason.code == "greeting_rejected"


def test_a_greeting_that_blocks_says_whom() -> None:
    """A 554 greeting with block words is their reason; a bare *blocked* there can only mean our address."""
    assert classify(554, "", "IP address is block listed", Stage.CONNECT).reason.code == "ip_blocklisted"
    assert classify(550, "", "[S10] Blocked", Stage.CONNECT).reason.code == "ip_blocked"
    assert classify(554, "", "no", Stage.CONNECT).reason.code == "greeting_rejected"


@pytest.mark.parametrize("code", [421, 450, 451, 452])
@pytest.mark.parametrize("text", [*USER_UNKNOWN, "", "Account disabled", "Domain not found", "Host accepts no mail"])
@pytest.mark.parametrize("enhanced", ["", "4.1.1", "5.1.1", "4.2.1", "5.1.2", "5.7.13"])
def test_a_4yz_is_never_an_invalid(code: int, text: str, enhanced: str) -> None:
    """The three-digit code says that it is not final, whatever stands beside it (hard rule 2)."""
    assert Category.RISKY is classify(code, enhanced, text, Stage.RCPT).reason.category


@pytest.mark.parametrize("detail", [*range(31), 57, 64, 501, 606, 708])
@pytest.mark.parametrize("subject", [3, 7])
@pytest.mark.parametrize("text", [*USER_UNKNOWN, "", "rejected", "mailbox unavailable"])
def test_security_and_system_codes_are_never_an_invalid(subject: int, detail: int, text: str) -> None:
    """X.7.x and X.3.x never give an invalid; 5.7.13, a disabled account, is the exception (hard rule 1)."""
    found = classify(550, f"5.{subject}.{detail}", text, Stage.RCPT).reason
    assert (found.category is Category.INVALID) == ((subject, detail) == (7, 13))


@pytest.mark.parametrize("code", sorted({521, 530, 535, 552, 556}))
def test_codes_of_something_else_are_no_unknown_user(code: int) -> None:
    """521, 530, 535, 552 and 556 never become `mailbox_not_found` (hard rule 4)."""
    for enhanced in ("", "5.1.1"):
        assert classify(code, enhanced, "No such user", Stage.RCPT).reason.code != "mailbox_not_found"


@pytest.mark.parametrize("code", [500, 501, 504, 510, 511, 540, 550, 551, 553, 554, 571])
def test_recipient_evidence_is_an_unknown_user_under_any_other_5yz(code: int) -> None:
    """5.1.1 or the words are evidence, whatever the code (hard rule 4)."""
    assert classify(code, "5.1.1", "", Stage.RCPT).reason.code == "mailbox_not_found"
    assert classify(code, "", "No such user", Stage.RCPT).reason.code == "mailbox_not_found"


@pytest.mark.parametrize("predicate", ["does not exist", "is unknown", "was not found", "is invalid"])
def test_the_subject_decides_who_is_refused(predicate: str) -> None:
    """The same predicate of the recipient, its domain, our sender or our HELO name is four different answers."""
    subjects = {
        "The recipient": "mailbox_not_found",
        "The user a@b.example": "mailbox_not_found",
        "The domain": "domain_not_found",
        "The sender": "sender_rejected",
        "The HELO name": "helo_rejected",
    }
    for subject, want in subjects.items():
        assert want == classify(550, "", f"{subject} {predicate}", Stage.RCPT).reason.code


@pytest.mark.parametrize("text", USER_UNKNOWN)
@pytest.mark.parametrize("for_now", ["temporarily", "please try later", "for now"])
@pytest.mark.parametrize("enhanced", ["", "5.1.1", "5.2.1"])
def test_a_refusal_for_now_is_never_an_invalid(text: str, for_now: str, enhanced: str) -> None:
    """Some servers say 5yz and mean a moment: the words count."""
    assert Category.RISKY is classify(550, enhanced, f"{text}, {for_now}", Stage.RCPT).reason.category


@pytest.mark.parametrize("text", USER_UNKNOWN)
@pytest.mark.parametrize("source", ["your network", "your client", "the sending host", "your connection"])
@pytest.mark.parametrize("enhanced", ["", "5.1.1", "5.2.1"])
def test_a_refusal_that_speaks_of_our_host_is_never_an_invalid(text: str, source: str, enhanced: str) -> None:
    """Whatever is said of our host, known words or not: the refusal may be ours."""
    assert Category.RISKY is classify(550, enhanced, f"{text}; we know {source}", Stage.RCPT).reason.category


@pytest.mark.parametrize("text", ["Recipient rejected", "mailbox unavailable", "Address rejected (R4)", "Not accepted"])
def test_only_a_refusal_that_says_no_more_is_generic(text: str) -> None:
    """Identifiers say nothing; any other unknown word explains it, in a way that is not guessed at (hard rule 4)."""
    assert classify(550, "", text, Stage.RCPT).reason.category is Category.INVALID
    assert classify(550, "", f"{text}: gizmo", Stage.RCPT).reason.code == "unclassified_reply"


def test_a_quoted_server_is_not_our_host() -> None:
    """`host name[address]` is who answered the server that we asked, also where its quote is cut off."""
    text = "Recipient address rejected: undeliverable address: host mx.b.example[192.0.2.9]"
    for quote in ("", " said: 550 5.1.1 User unknown"):
        assert classify(550, "5.1.1", text + quote, Stage.RCPT).reason.code == "mailbox_not_found"


def test_only_refusals_with_recipient_evidence_are_backed() -> None:
    """The brake counts what rests on nothing (hard rule 5)."""
    assert classify(550, "5.1.1", "", Stage.RCPT).backed
    assert classify(550, "", "No such user", Stage.RCPT).backed
    assert not classify(550, "", "mailbox unavailable", Stage.RCPT).backed
    assert not classify(550, "", "", Stage.RCPT).backed
    assert not classify(550, "", "blocked using zen.spamhaus.org", Stage.RCPT).backed
    row = ReplyRow("rcpt_rejected", code=550, text="mailbox unavailable")
    assert classify(550, "", "mailbox unavailable", Stage.RCPT, (row,)).backed


def test_a_reply_that_no_rule_knows_is_unclassified() -> None:
    """Words that nobody knows are not guessed at (hard rule 7)."""
    assert classify(550, "", "the moon is in the wrong house", Stage.RCPT).reason.code == "unclassified_reply"


@pytest.mark.parametrize("stage", AS_RCPT)
def test_log_and_data_replies_are_read_as_at_rcpt(stage: Stage) -> None:
    """A reply out of a log or a bounce has no stage of ours."""
    assert classify(550, "", "No such user", Stage.RCPT) == classify(550, "", "No such user", stage)


def test_a_provider_row_comes_first_and_passes_the_gate_of_code_and_stage() -> None:
    """A row may read X.7.x as an unknown user; never a 4yz, never before RCPT."""
    row = ReplyRow("mailbox_not_found", enhanced="5.7.1", text="no such user")
    found = classify(550, "5.7.1", "No such user!", Stage.RCPT, (row,))
    assert (found.reason.code, found.rule, found.backed) == ("mailbox_not_found", "provider[0]", True)
    assert Category.RISKY is classify(450, "5.7.1", "No such user!", Stage.RCPT, (row,)).reason.category
    assert Category.RISKY is classify(550, "5.7.1", "No such user!", Stage.MAIL, (row,)).reason.category
    assert Category.RISKY is classify(None, "5.7.1", "No such user!", Stage.RCPT, (row,)).reason.category


def test_provider_rows_do_not_see_echoed_addresses() -> None:
    """A row's text can't be met by an address that the reply quotes."""
    row = ReplyRow("greylisted", text="grey")
    assert classify(550, "", "<grey@grey.example> unknown user", Stage.RCPT, (row,)).reason.code == "mailbox_not_found"


@pytest.mark.parametrize(
    "address",
    ["spam@greylist-agency.example", "abuse@zen.spamhaus.org", "blocked@policy.example", "dmarc@relay-denied.example"],
)
def test_echoed_addresses_are_no_evidence(address: str) -> None:
    """Our own names come back in every kind of reply."""
    for text in (f"<{address}>: User unknown", f"{address} unknown user", f"no such user: {address}"):
        assert classify(550, "", text, Stage.RCPT, echoed=(address,)).reason.code == "mailbox_not_found"
    domain = address.partition("@")[2]
    assert (
        classify(550, "", f"no such user at {domain}", Stage.RCPT, echoed=(address,)).reason.code == "mailbox_not_found"
    )


@pytest.mark.parametrize(
    "text",
    ["host mx1.example[192.0.2.7] said: 550 5.1.1 User unknown", "192.5.1.1 refused", "#1 5.1.1", "5.1.1.8 is your IP"],
)
def test_the_enhanced_code_is_read_only_right_after_the_reply_code(text: str) -> None:
    """Numbers inside a text are no status codes."""
    assert classify(550, "", text, Stage.RCPT).rule != "enhanced:5.1.1"


def test_the_enhanced_code_may_stand_in_the_text_and_a_given_one_wins() -> None:
    """Logs keep it in the text; `#5.1.0` and `(#5.1.1)` are Cisco's and qmail's ways."""
    assert classify(550, "", "5.1.1 xyz", Stage.RCPT).rule == "enhanced:5.1.1"
    assert classify(550, "", "#5.1.1 xyz", Stage.RCPT).rule == "enhanced:5.1.1"
    assert classify(550, "5.2.2", "5.1.1 xyz", Stage.RCPT).rule == "enhanced:5.2.2"


def test_folded_lines_are_read_as_one() -> None:
    """Codes repeated at each line's start don't part a phrase."""
    folded = "5.1.1 The email account that you tried\r\n550-5.1.1 to reach does not\n550 5.1.1 exist"
    assert classify(550, "", folded, Stage.RCPT).reason.code == "mailbox_not_found"
    assert classify(550, "", "The account\r\n550-does not\r\n550 exist", Stage.RCPT).reason.code == "mailbox_not_found"


def test_a_quoted_reply_that_says_later_is_no_refusal_for_good() -> None:
    """What rests on a moment's trouble elsewhere can't be final."""
    text = "Verification failed for <a@b.example>: response: 450 4.1.1 User unknown"
    assert classify(550, "", text, Stage.RCPT).reason.code == "mailbox_temporarily_unavailable"


def test_without_a_code_the_enhanced_class_serves_and_without_both_nothing_is_invalid() -> None:
    """A log row without codes proves nothing about a mailbox."""
    assert classify(None, "5.1.1", "", Stage.UNKNOWN).reason.code == "mailbox_not_found"
    assert classify(None, "", "550 5.1.1 No such user", Stage.UNKNOWN).reason.code == "mailbox_not_found"
    assert classify(None, "", "No such user", Stage.UNKNOWN).reason.code == "unclassified_reply"
    assert classify(None, "", "blocked using zen.spamhaus.org", Stage.UNKNOWN).reason.code == "ip_blocklisted"


def test_an_acceptance_is_not_a_verdict() -> None:
    """`valid` needs a control; the classifier alone never gives it."""
    assert classify(250, "2.1.5", "OK", Stage.RCPT).reason.code == "accepted_unconfirmed"
    assert classify(220, "", "mx.example ESMTP", Stage.CONNECT).reason.code == "mailbox_unchecked"
    assert classify(354, "", "go ahead", Stage.RCPT).reason.code == "protocol_error"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Greylisted for 20 minutes", 1200.0),
        ("try again in 5 minutes", 300.0),
        ("retry after 300 seconds", 300.0),
        ("please come back in 00:05:00", 300.0),
        ("in 1 hour", 3600.0),
        ("retry in 900s", 900.0),
        ("Please wait 30 sec", 30.0),
        ("try again in 90000 seconds", None),
        ("in 0 minutes", None),
        ("500 seconds ago", None),
        ("later", None),
    ],
)
def test_a_delay_that_the_reply_names_is_read(text: str, seconds: float | None) -> None:
    """In seconds, and only up to a day."""
    assert seconds == named_delay(text)


def test_a_block_list_is_named() -> None:
    """The detail is the zone, or the brand where no zone is named."""
    assert classify(554, "", "blocked using zen.spamhaus.org;", Stage.RCPT).detail == "zen.spamhaus.org"
    assert classify(554, "", "blocked by SPAMHAUS", Stage.RCPT).detail == "spamhaus"
    assert classify(554, "", "see https://www.spamhaus.org/query/ip/192.0.2.1", Stage.RCPT).detail == "www.spamhaus.org"
    assert classify(554, "", "your IP is on our blacklist", Stage.RCPT).detail == ""


def test_words_about_our_host_widen_the_reach_to_the_source() -> None:
    """A refusal of the sender or by a policy keeps to the domain; one of our host concerns every domain."""
    assert Reach.DOMAIN is classify(550, "", "Sender address rejected", Stage.RCPT).reach
    assert Reach.DOMAIN is classify(550, "", "Denied by local policy", Stage.RCPT).reach
    assert Reach.SOURCE is classify(550, "", "Denied by local policy: your IP 192.0.2.1", Stage.RCPT).reach
    assert Reach.SOURCE is classify(550, "5.7.1", "blocked using zen.spamhaus.org", Stage.RCPT).reach
    assert Reach.NONE is classify(450, "", "greylisted, your IP is new to us", Stage.RCPT).reach
    assert Reach.NONE is classify(550, "5.1.1", "", Stage.RCPT).reach


_pieces = st.sampled_from([*BLAME, *USER_UNKNOWN, *(phrase for rule in rules.RULES for phrase in rule.phrases)])
_texts = st.one_of(st.text(max_size=300), st.lists(_pieces, max_size=4).map(". ".join))
_enhanced = st.one_of(st.just(""), st.from_regex(r"[245]\.\d{1,3}\.\d{1,3}", fullmatch=True), st.text(max_size=8))

_recipients = st.sampled_from(
    [
        "ann@shop.example",
        "Ann.B+c@Shop.example",
        "spam@zen.spamhaus.org",
        "not@mailbox.example",
        '"a b"@shop.example',
        "",
    ]
)
_REMEMBERING = Classifier((ReplyRow("greylisted", text="grey"), ReplyRow("mailbox_full", code=550, text="over quota")))


@given(
    code=st.sampled_from([250, 252, 421, 450, 452, 550, 551, 554]),
    enhanced=st.sampled_from(["", "2.1.5", "4.2.0", "5.1.1", "5.7.1"]),
    parts=st.lists(st.one_of(_pieces, st.text(max_size=20)), min_size=1, max_size=3),
    frame=st.sampled_from(
        [" ", ": ", " <{}>: ", " {}... ", " ({}) ", " at {domain} ", " user={} ", " {lower} ", " [{}] "]
    ),
    recipients=st.lists(_recipients, min_size=1, max_size=4),
    stage=st.sampled_from([Stage.RCPT, Stage.MAIL]),
)
@settings(max_examples=400, deadline=None)
def test_what_is_remembered_of_a_reply_is_what_anew_would_be_read(
    code: int, enhanced: str, parts: list[str], frame: str, recipients: list[str], stage: Stage
) -> None:
    """Whoever was asked for before, and however the reply quotes the recipient."""
    for recipient in recipients * 2:
        quoted = frame.format(recipient, domain=recipient.rpartition("@")[2], lower=recipient.lower())
        text = quoted.join(["", *parts])
        anew = classify(code, enhanced, text, stage, _REMEMBERING.rows, echoed=(recipient,) if recipient else ())
        assert _REMEMBERING.judge(code, enhanced, text, stage, recipient) == anew


@given(
    code=st.one_of(st.none(), st.integers(-1, 1000), st.sampled_from(sorted(codes.CODES))),
    enhanced=_enhanced,
    text=_texts,
    stage=st.sampled_from(Stage),
)
@settings(max_examples=400, deadline=None)
def test_any_reply_gives_a_judgement_that_keeps_the_hard_rules(
    code: int | None, enhanced: str, text: str, stage: Stage
) -> None:
    """Whatever arrives: no exception, no `valid`, and `invalid` only from a 5yz at RCPT outside X.7.x and X.3.x."""
    found = classify(code, enhanced, text, stage, echoed=("", "@", "a@b.example"))
    assert REASONS[found.reason.code] is found.reason
    assert Category.VALID is not found.reason.category
    if found.reason.category is not Category.INVALID:
        return
    if code is not None:
        assert 500 <= code <= 599
    if stage not in AS_RCPT:
        assert found.reason.code == "host_accepts_no_mail"
    if (given_code := re.fullmatch(r"5\.(\d+)\.(\d+)", enhanced)) and found.reason.code != "mailbox_disabled":
        assert given_code[1] not in ("3", "7") or code == 556


@pytest.mark.parametrize(
    "piece", ["a", "@", "a@", "<a@b", "1.", ":", "host x ", "in 1 ", "user ", "5.1.1-", "\n550-", "é", "n't"]
)
def test_hostile_texts_cost_no_more_than_their_length(piece: str) -> None:
    """No expression backtracks: a long run of anything takes well under 20 ms of this thread's own processor time."""
    start = time.thread_time()
    classify(550, "", piece * 100_000, Stage.RCPT, (ReplyRow("greylisted", text="zzz"),))
    assert time.thread_time() - start < 0.02


def test_every_rule_gives_a_reason_of_the_table() -> None:
    """The data names no code that does not exist."""
    named = {rule.reason for rule in rules.RULES} | set(codes.CODES.values())
    named |= {reason.lstrip("~") for pair in (*codes.ENHANCED.values(), *codes.SUBJECTS.values()) for reason in pair}
    assert set() == named - {""} - set(REASONS)


def test_no_excuse_gives_an_invalid() -> None:
    """What excuses the recipient is risky by the table itself."""
    assert {Category.RISKY} == {REASONS[rule.reason].category for rule in rules.EXCUSES}


def test_words_are_folded_and_things_are_signs() -> None:
    """Inflections, translations, accents and contractions fold; addresses, hosts and numbers become signs."""
    assert words("[192.0.2.1] blocked zen.spamhaus.org") == ["#ip", "block", "#zone"]
    assert words("2001:db8::1 Mailboxes don't exist") == ["#ip", "mailbox", "not", "exist"]
    assert words("La boîte est pleine") == ["mailbox", "full"]
    assert words("<a@b.example> mx1.b.example https://b.example/blocked?spam=1") == ["@", "#host", "#url"]
    assert words("b.example", ("a@b.example",)) == ["@"]


@pytest.mark.parametrize("words", ["Host does not accept mail", "mx.example.com host does not accept any mail"])
def test_a_host_that_takes_no_mail_may_call_itself_host(words):
    """RFC 7504's own words are about the server; with "your" before it, the host would be us."""
    assert classify(521, "", words, Stage.CONNECT).reason.code == "host_accepts_no_mail"
    assert classify(521, "", f"your {words}", Stage.CONNECT).reason.code != "host_accepts_no_mail"
