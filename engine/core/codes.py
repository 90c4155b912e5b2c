"""What reply codes and enhanced status codes say by themselves: data only.

1. Words go first; `core.classify` says where codes are asked. A code that servers use for several things says nothing.
2. Sources: RFC 5321 section 4.2.2, RFC 3463, RFC 7505, IANA's registry of enhanced status codes, Exchange Online.
"""

from __future__ import annotations

# Subject and detail of an enhanced code; class 4 | class 5. `-`: the code says too little, the text decides;
# `~`: words about the mailbox or its domain come first, for they tell more.
_ENHANCED = """
1.1     mailbox_temporarily_unavailable  ~mailbox_not_found
1.2     smtp_tempfail                    domain_not_found
1.3     mailbox_temporarily_unavailable  mailbox_bad_syntax
1.6     mailbox_temporarily_unavailable  mailbox_moved
1.7     sender_rejected                  sender_rejected
1.8     sender_rejected                  sender_rejected
1.10    smtp_tempfail                    ~domain_null_mx
1.90    rate_limited                     rate_limited
1.351   mailbox_temporarily_unavailable  mailbox_not_found
2.1     mailbox_temporarily_unavailable  ~mailbox_disabled
2.2     mailbox_full                     mailbox_full
2.3     message_rejected                 message_rejected
2.121   mailbox_receiving_rate           mailbox_receiving_rate
2.122   mailbox_receiving_rate           mailbox_receiving_rate
3.1     server_storage                   server_storage
3.4     message_rejected                 message_rejected
4.0     server_busy                      ~server_busy
4.1     server_busy                      -
4.4     server_busy                      domain_not_found
4.310   smtp_tempfail                    domain_not_found
5.1     protocol_error                   ~protocol_error
5.2     protocol_error                   protocol_error
5.3     too_many_recipients              too_many_recipients
5.4     protocol_error                   protocol_error
6.7     eai_unsupported                  eai_unsupported
7.1     greylisted                       ~policy_rejected
7.2     recipient_restricted             recipient_restricted
7.4     auth_required                    auth_required
7.8     auth_required                    auth_required
7.9     auth_required                    auth_required
7.10    tls_required                     tls_required
7.11    auth_required                    auth_required
7.12    auth_required                    recipient_restricted
7.13    mailbox_temporarily_unavailable  mailbox_disabled
7.20    policy_rejected                  policy_rejected
7.21    policy_rejected                  policy_rejected
7.22    policy_rejected                  policy_rejected
7.23    sender_auth_failed               sender_auth_failed
7.24    sender_auth_failed               sender_auth_failed
7.25    ptr_missing                      ptr_missing
7.26    sender_auth_failed               sender_auth_failed
7.27    sender_rejected                  sender_rejected
7.28    rate_limited                     rate_limited
7.29    policy_rejected                  policy_rejected
7.30    tls_required                     tls_required
7.57    auth_required                    auth_required
7.64    relay_denied                     relay_denied
7.124   recipient_restricted             recipient_restricted
7.129   recipient_restricted             recipient_restricted
7.133   recipient_restricted             recipient_restricted
7.134   recipient_restricted             recipient_restricted
7.135   recipient_restricted             recipient_restricted
7.136   recipient_restricted             recipient_restricted
7.506   helo_rejected                    helo_rejected
7.509   policy_rejected                  policy_rejected
7.511   ip_blocked                       ip_blocked
7.515   policy_rejected                  policy_rejected
7.708   ip_blocked                       ip_blocked
"""

# Whole subjects, where the table above has no row for the detail.
_SUBJECTS = """
3       server_busy                      server_busy
4       server_busy                      server_busy
6       message_rejected                 message_rejected
7       -                                ~policy_rejected
"""

# Three digits with nothing more to tell, read at RCPT.
_CODES = """
421 server_busy
422 mailbox_full
431 server_storage
432 server_busy
450 mailbox_temporarily_unavailable
452 server_storage
454 smtp_tempfail
500 protocol_error
501 protocol_error
502 protocol_error
503 protocol_error
504 protocol_error
510 rcpt_rejected
511 mailbox_not_found
512 domain_not_found
521 policy_rejected
523 message_rejected
525 mailbox_disabled
530 auth_required
534 auth_required
535 auth_required
538 auth_required
541 message_rejected
550 rcpt_rejected
551 rcpt_rejected
552 mailbox_full
553 rcpt_rejected
554 policy_rejected
555 protocol_error
556 host_accepts_no_mail
"""


def _pairs(table: str) -> dict[str, tuple[str, str]]:
    rows = (line.split() for line in table.strip().splitlines())
    return {key: ("" if four == "-" else four, "" if five == "-" else five) for key, four, five in rows}


ENHANCED = _pairs(_ENHANCED)
SUBJECTS = _pairs(_SUBJECTS)
# Exchange Online's three-digit details of X.7, by their first digit: 4.7.[5-8]xx rate, 5.7.6xx banned addresses.
EXCHANGE_ONLINE = {
    "5": ("rate_limited", "policy_rejected"),
    "6": ("rate_limited", "ip_blocked"),
    "7": ("rate_limited", "policy_rejected"),
    "8": ("rate_limited", "policy_rejected"),
}
# Codes that leave the reason to the text: refused words decide, and words that nobody knows are not guessed at.
UNEXPLAINED = frozenset({550, 551, 553, 554})
CODES: dict[int, str] = {int(row.split()[0]): row.split()[1] for row in _CODES.strip().splitlines()}
