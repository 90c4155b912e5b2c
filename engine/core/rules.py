"""The words by which a reply is judged: data only. `core.classify` says in which order they are asked.

1. A rule is a name, the reason it gives, the reply classes it reads (both, unless it says so), and phrases (grammar:
   `core.phrases`) over the folded words of a reply. Rules of a family are asked in order; the first decides.
2. In place of echoed things stand signs: `@` an address, `#ip` an IP address, `#host` a host name, `#url` a URL,
   `#zone` the zone or page of a block list. Our own names are echoed in every kind of reply: they are no evidence.
3. Families of words, not quoted replies. Sources: the texts that Postfix, Exim, Sendmail, qmail, Exchange and the
   gateways ship; RFC 5321 and 7505; the providers' own pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.core.phrases import Phrases
from engine.core.vocabulary import WORDS


@dataclass(frozen=True, slots=True)
class Rule:
    """One family of phrases and the reason that it gives. `classes` are the reply classes (first digits) it reads."""

    name: str
    reason: str
    classes: str
    phrases: tuple[str, ...]


_GROUPS = {
    "WHO": "mailbox|account|user|recipient|address|alias",
    "BOX": "mailbox|account|user|recipient",
    "SOURCE": "ip|#ip|host|client|network",
    "NO": "reject|block|ban|not|unacceptable|bad|prohibited|unauthorized",
}


def _phrases(text: str) -> tuple[str, ...]:
    for group, members in _GROUPS.items():
        text = re.sub(rf"\b{group}\b", members, text)
    return tuple(" ".join(phrase.split()) for phrase in text.split(";"))


def _read(table: str) -> tuple[Rule, ...]:
    """Reads blocks of `name reason [classes]` and an indented list of phrases."""
    found = []
    for block in table.strip().replace("\n    ", " \t").splitlines():
        head, _, phrases = block.partition("\t")
        name, reason, *classes = head.split()
        found.append(Rule(name, reason, classes[0] if classes else "45", _phrases(phrases.replace("\t", " "))))
    return tuple(found)


# Words that blame us or the message, or say that the mailbox is there: never an `invalid`.
EXCUSES = _read("""
sender_verify sender_rejected
    sender verify; sender address verify; sender address reject unverified|undeliverable; verify .. sender|mailfrom;
    missing proper dns entries
unverified mailbox_temporarily_unavailable 4
    address reject unverified address
listed_link message_rejected
    uribl; blocklist|list url|uri|urls|link|links; url|uri|urls|link|links .. blocklist|list|#zone
own_trouble server_busy
    system|server|local|configuration fail|problem|error; internal server|system|fail|error;
    temporary lookup|verify|system|server fail|error; configuration problem; hop|hops count|over|limit|many;
    too many hop|hops; mail|routing|message|forward loop; loop detected|back; misconfigured; configuration .. invalid;
    point|points back;
    not create|open|write|append .. file|database|output|mailbox
block_list ip_blocklisted
    #zone; blocklist; block|black|reject list; SOURCE ~ list; list in|on|by|under #host|#url|our|my|local|several;
    block using; realtime block; block by rbl; spam source; block #host; found on one or more;
    open relay|proxy host|list|test
reverse_name ptr_missing
    ptr; reverse dns|name|host|verify|record|address|resolution|entry|mapping|delegation|pointer; no reverse;
    ip name; not found your host|reverse; not found .. reverse; dns ~ #ip .. fail|not;
    your ip|host|#ip .. not resolve|resolved; not resolve|resolved .. your ip|host; client host reject not found;
    host name|names .. not match; generic dns; ip|client|host require resolve
helo helo_rejected
    helo ~ NO|invalid|fail|match|unknown|name|resolve|fqdn|argument|string|mismatch|forged|fake|domain; helo command
reputation ip_reputation_low
    reputation; complaints .. SOURCE
relay relay_denied
    relay .. NO|no|access|fail|permission|attempt; NO|no relay; not to relay; not .. relay for|mail|message|through;
    rcpthosts; not|no .. gateway; insecure .. relay; not relay; not open relay; mail for|to domain|#host not|no;
    not|no local|hosted|handle|serve|my|our|relay domain; not .. hosted|handle|serve .. domain;
    not .. mail for .. domain|host|#host; domain .. not .. local|hosted|handle|serve|here|list|relay|allow|ours;
    #host .. not .. hosted|handle|serve; #host not domain
message_form policy_rejected
    header ~ error|invalid|not|no|multiple|missing|improper; invalid data; multiple address; 8 bit .. header;
    message .. bare; comply|compliant|conform; protection|protected
message_authentication policy_rejected
    dkim; dmarc; domainkeys; adsp; unauthenticated mail|message; authentication level|checks|results;
    spoof|spoofed|spoofing|forged|forgery|antispoof|antispoofing|impersonation
sender_authentication sender_auth_failed
    spf; senderid
delivery_restriction recipient_restricted
    deliver restrict; resolver rst
login auth_required
    too many login; require .. cipher|ciphers; cipher|ciphers .. not|no;
    authentication ~ require|fail|first|reject|not|no|mechanism|invalid|unsuccessful|before|use|smtp;
    unauthenticated sender|client|user|connection|relay|submission|session; please|require|not|should .. login;
    login ~ first|fail|again|require|reject; password ~ not|invalid|accept|fail|application; password require;
    anonymous .. not|mail|access; pop ~ before|first|imap
tls tls_required
    tls ~ require|first|only|issue|encrypt|policy|reject|not|insecure; insecure connection
connections too_many_connections
    too many .. connection|session|client; concurrent|maximum|max ~ connection|session|client;
    connection ~ limit|rate|over|count|frequent|concurrency; connection .. too .. many|fast|frequent;
    many connection
counted_refusals rate_limited
    too many .. invalid|unknown|nonexistent|fail .. recipient|user|address|mailbox|attempts;
    too many recipient .. hour|day|minutes|time|period; recipient .. too many .. hour|day|minutes;
    directory harvest|harvesting; dha; dhap; dictionary attack; excessive .. unknown|unknowns|invalid
mailbox_quota mailbox_full
    BOX quota; WHO|box full; BOX .. space|storage .. over|full|limit; BOX too many mail|message;
    insufficient BOX storage|space; BOX .. over .. storage|space|quota; space .. used up; much mail data
recipients too_many_recipients
    too many .. recipient|address|rcpts; max|maximum .. recipient|rcpts; recipient maximum;
    recipient .. limit|count|number .. over;
    over number|maximum .. recipient; recipient limit; only one|single recipient;
    one|single recipient .. time|per|transaction|only;
    multiple|different .. recipient|domain .. transaction|same|session; multiple .. domain .. per|one
mailbox_busy mailbox_temporarily_unavailable 4
    BOX ~ busy
mailbox_rate mailbox_receiving_rate
    BOX ~ receive .. rate|fast|much|frequent; receive .. mail|message .. rate|too; BOX receive limit|rate|limits
sending_quota rate_limited
    hour|day|relay|send .. quota|limit; quota|limit .. hour|day; over .. hour|day limit
message_over_size message_rejected
    message size ~ over|limit
mailbox_full mailbox_full
    WHO|box ~ full|quota; over|insufficient|out .. quota; quota .. over|full|violation|limit;
    over .. allow .. storage|quota|size; over storage|capacity; storage .. over|full; out storage space;
    mail box full; BOX .. size|storage|space|limit|capacity .. over|full|limit;
    BOX .. over .. size|storage|space|limit|capacity|allowed; over .. size|storage|limit|space .. for .. BOX;
    over BOX; BOX .. too full|large|big; BOX .. insufficient|not|out|no .. storage|space;
    insufficient|not|out|no .. storage|space .. BOX
storage server_storage
    insufficient|no|not|out|low .. system|space|storage|memory|resources; space shortage|low;
    storage|space|disk shortage; disk full|quota|over; filesystem|system|server full
rate rate_limited
    throttle; rate .. limit|over|too|high|control; limit|over|unusual|high|excessive .. rate;
    too many .. message|mail|error|attempts|requests|bounces|transactions|times;
    too much .. mail|traffic|message|data; too|more fast|frequent; frequent limit; frequent .. limit|much|over;
    slow down; slower; too many command; slowdown; excessive|high volume|mail|traffic|use;
    volume .. over|excessive|limit|too; over .. message|mail|send .. limit|per|hour|day|session|connection;
    message|mail|send|hour|day limit|quota; limit .. per|message|mail .. hour|day|minutes|session;
    max number|limit .. message|mail; per session|hour|day|minutes; denial service
source_refused ip_blocked
    client|host|ip|#ip|network .. reject|block|ban; SOURCE .. not allow|authorized|accept|trust|trusted|welcome;
    SOURCE .. not .. whitelist; reject|block|ban .. your SOURCE|server|provider; reject|block|ban .. ip|#ip;
    your .. SOURCE|server .. reject|block|not|bad; access .. from SOURCE; connection|session reject|block|not|from;
    reject|block .. connection; not accept .. connection; not allow to connection; not accept|allow .. from .. SOURCE;
    mail|message from #ip|ip .. reject|block|not; dynamic SOURCE|address|range|pool|assigned|allocated|space;
    dynamically assigned; bypassing .. relay; your .. access .. reject|block; access .. system .. reject|block;
    invalid|unauthorized|untrusted|suspect|abusive|suspected ip|#ip|client|network|mta; unauthorized host;
    sender ip ~ NO|invalid|fail; SOURCE .. abuse; unverified .. ip; not allow .. access; access .. from your;
    ip .. send .. not authorized|allow; ban send|SOURCE; direct to mx; open .. relay
greylist_now greylisted 4
    come back; first time .. later|again|retry|sender; new|unknown|unfamiliar sender .. later|again|retry|wait;
    try|retry|again|wait .. seconds|minutes
greylist greylisted
    greylist; grey|gray list
recipient_restricted recipient_restricted
    restrict ~ sender; restrict to|recipient; WHO|group|list .. restrict; WHO|group|list .. only accept|receive|allow;
    only accept|receive|allow .. mail|message|from;
    not .. authorized|allow|permission .. send|mail|post|deliver .. WHO|group|list|@; deliver not authorized;
    WHO|group .. not accept|want|receive|allow .. mail|message .. from; user|recipient reject .. mail|message|sender;
    recipient .. reject .. receive|accept; sender .. not authorized|allow .. recipient|group; internal|members only;
    block by .. recipient|user; preference|preferences; only .. sender; moderated|closed list;
    closed|moderated|private mailing; mailing list .. not|no; not|no .. mailing list; not|no .. subscribed;
    accept|receive mail|message .. from .. only; recipient .. not want; no bounce|bounces
sender sender_rejected
    sender ~ NO|invalid|unknown|no|verify|fail|unverified|domain|mx|nonexistent|found|exist|list|policy;
    mailfrom ~ NO|invalid|unknown|no|verify|fail|list|domain;
    mail from ~ invalid|unknown|fail|not|verify|unverified; mail from .. reject|block|bad; sender address;
    envelope from|sender|domain; originating domain; outgoing; mailfrom|mail from ~ mismatch|owned; require .. sender;
    from|return|reply address|domain|path ~ NO|invalid|unknown|verify|fail|no|exist|missing;
    your|send domain ~ NO|invalid|fail|no|unknown;
    your mail|address|account|user|mailbox .. NO|disabled|unknown|locked|invalid;
    bounce to you;
    null|empty|missing|blank sender|mailfrom|from|return|reverse|envelope; bounce|bounces not accept|allow;
    identical sender; sender equals|same
smtputf8 protocol_error
    declare|require|use smtputf8
message_size message_rejected
    message|mail|content|size .. too large|long; message|mail .. size .. over|limit|maximum|large;
    over .. message|maximum|max|mail .. size; over size; size limit|over|violation|large; size .. over|limit;
    too large; sendsizelimit
spam message_rejected
    spam; virus; malicious; content ~ NO|match|problem|invalid|filter|policy; message|mail content;
    looks like; score|scored; prohibited .. content|file|extension; filter|filtered; bulk; advertising|advertisement;
    pattern detection; abuse|abusive; mime; rfc 2822|5322; protected .. content
policy policy_rejected
    policy; administrative ~ NO|policy|action; administrator ~ NO; prohibited; permission; access|transaction reject;
    access not allow; forbidden; security; not authorized|allow|welcome|trust|trusted; unauthorized;
    all recipient address|reject; by .. rule|rules|ruleset|acl; not|no allow; not|no accept mail|message|bounces from;
    no mail|message accept .. from
""")

# About the mailbox: a 5yz at RCPT is then a refused recipient.
MAILBOX = _read("""
recipient_domain domain_not_found 5
    domain unknown|invalid|nonexistent|unrouteable|disabled|locked; unknown|invalid|nonexistent|disabled domain;
    domain name unknown|invalid; mail domain .. unknown; recipient domain .. not|no|require|disabled;
    domain .. no|not longer; domain not .. exist|found|valid|use|used|active|registered|reachable|available
bad_syntax mailbox_bad_syntax 5
    syntax .. address|mailbox|recipient|local|localpart; address|mailbox|recipient|local .. syntax;
    restrict|invalid characters|character .. address|local|mailbox|recipient; invalid .. address format
moved mailbox_moved 5
    WHO .. moved; moved to; user not local; no longer on; please|try .. forward; try @; WHO .. changed; new address
disabled mailbox_disabled
    WHO|mail|@ ~ disabled|locked; disabled WHO; WHO .. unused;
    WHO .. not|no .. active|enabled|use|used|activated|monitored; WHO|@ .. no|not longer|more;
    mail not accept .. address|user|mailbox;
    no|not longer .. active|use|used|valid|accept|work|works|monitored|with|available|employed|exist|person|on;
    mail receive disabled; left .. company|organization|organisation; WHO .. not|no .. receive|accept .. mail|message
unknown_user mailbox_not_found
    WHO|@ ~ unknown|nonexistent|unrouteable|undeliverable|unallocated; WHO ~ invalid; unrouteable;
    undeliverable address; no|not such WHO|person|mail|name|local|id|here|@; WHO|@|mail ~ not|no exist|found;
    WHO .. exist not; person|name|one not|no found here; user|path|account|mailbox .. no exist;
    no mailbox|user|account; no WHO here|by|with|name|called|named; no person|one here|by|with|name;
    not|no have .. account|mailbox|user|address; user have no mail|mailbox|account; recipientnotfound;
    not .. mailbox|user .. here|name;
    not|no .. found .. recipient|person|user|mailbox|account|alias|address|directory|table|@|list;
    not .. valid|known|existing|active WHO|mail;
    WHO|@ .. not .. valid|known|user|registered|here|assigned|listed|local|configured|ok|list|recognized;
    recipient .. not on|in; WHO verify fail; verify fail .. @|recipient|user|mailbox; address verify .. fail;
    unknown local|virtual|to|in; not our user; local|virtual|relay|alias recipient|mailbox|user|alias table;
    not list .. directory|domino|public; dead|mistyped|typo user|mailbox|address; not accept WHO;
    badrcptto|validrcptto; home directory; not found .. ldap|directory|table|database;
    no record .. WHO; no match .. WHO|directory; WHO .. no match; person not; no|not person;
    nobody .. here|by|with|name; no one .. address|mailbox|name|@;
    mail to .. recipient|user|address|mailbox|@ .. not; not unique
blocked_mailbox mailbox_disabled
    mailbox|account|user .. block
""")

# About the recipient's domain.
DOMAIN = _read("""
takes_no_mail host_accepts_no_mail 5
    domain|host|server|we|system|#host .. not|no accept|receive mail|message|any; not accept|receive mail here|ever;
    no mail|smtp service|here|accept; accept no mail; no smtp service;
    domain not .. configured .. receive|accept|mail; null mx; nullmx; not mail host|exchanger
domain_unknown domain_not_found
    not found|find .. host name|named; not found mail exchanger; domain ~ not|no found|exist;
    domain ~ unknown|invalid|nonexistent|unrouteable; domain not .. use|used|active|registered; host unknown;
    unknown host; no|not such domain|host; host .. not found; no mx;
    not|no .. mail exchanger|host|hosts|server for domain; not|no .. mail exchanger; domain name not; nxdomain;
    host|domain name verify|resolution fail; not found .. mx; no route to; invalid destination
""")

# About the server's own state.
STATE = _read("""
protocol protocol_error
    sequence .. command; command .. sequence|order; out order|sequence; stray|bare newline|lf|cr|line;
    command not recognized|implemented|supported|valid|understood|unknown;
    unknown|invalid|unimplemented|unsupported command; syntax error; pipelining; synchronization; synchronisation;
    say|send|require|issue|expected .. recipient|mail|helo .. first|command|before; recipient|helo|mailfrom first;
    helo first; 8 bit; nested mail; protocol ~ error|violation|not; smtp protocol;
    parameter|parameters .. not|unsupported|unknown|invalid; 8bit
server_state server_busy
    busy; shutdown; maintenance; overloaded; high|system|server|too load; load .. too|high|average;
    service|system|server|host|resources|resource|directory|database|backend|ldap .. unavailable|down|offline;
    host|server|service|system|resources not available; service|system|resources .. temporary;
    not available|accept .. moment|now|time; resources temporary;
    configuration|database|ldap|processing|software|backend|dns|resource|queue fail|problem|error;
    unexpected|mapping|write|read|file|verify fail|problem|error;
    server|system|local error|fail|problem; fail|error .. system|internal|server|configuration|database|ldap;
    hop|hops; loop; timeout; expired; license; closing|close connection|channel|transmission; not responding;
    queue full; try|again later; tempfail
""")

# Refused without a word about whom or why; asked after all others.
POLICY = _read("""
blocked policy_rejected
    block; ban; service reject; transaction fail; restrict; access; rule|rules|acl; not want
message policy_rejected
    message|mail .. reject|block|unacceptable|undesirable|discarded|quarantined; message|mail .. not .. accept
addressed policy_rejected
    your; you; client; contact
""")
GENERIC = _read("""
unserved rcpt_rejected 5
    not .. process|deliver|handle|validate|verify .. WHO|@; WHO|@ .. not .. process|deliver|handle|validate|verify;
    not .. deliver|handle mail .. for; @ not accept .. mail|message; server reject recipient
refused rcpt_rejected 5
    WHO|@ ~ not|fail|problem|reject|unavailable|undeliverable|unacceptable|deliver; requested action
""")

# A refusal made of nothing but these says neither why nor whom: generic.
GENERIC_WORDS = frozenset(
    _phrases("""
    reject; unavailable; undeliverable; unacceptable; not; accept; requested; action; taken; ok; valid; deliver; fail;
    error; sorry; permanent; mail; smtp; recipient; mailbox; address; user; account; @; #host; to; for; by;
    from
""")
)

# Words that say "you are refused as a source", in whatever kind of refusal: nor does such a reply.
_SOURCE = """
    your .. SOURCE|connection|system|provider; client host; ip|#ip .. NO|list; reject|block|ban|list .. ip|#ip;
    send ip|host; client address; ip address #ip; connection from|reject
"""

# Words that say "not for good", whatever the code says: such a reply never makes an invalid.
_FOR_NOW = "temporary; try|again|retry later; for now"

RULES: tuple[Rule, ...] = (*EXCUSES, *MAILBOX, *DOMAIN, *STATE, *POLICY, *GENERIC)
SOURCE_BIT, FOR_NOW_BIT = 1 << len(RULES), 2 << len(RULES)
PHRASES = Phrases(
    [(phrase, 1 << place) for place, rule in enumerate(RULES) for phrase in rule.phrases]
    + [(phrase, SOURCE_BIT) for phrase in _phrases(_SOURCE)]
    + [(phrase, FOR_NOW_BIT) for phrase in _phrases(_FOR_NOW)],
    WORDS,
)
