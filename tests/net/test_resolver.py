"""The resolver against NSD, and against a name server that misbehaves."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import gevent
import pytest

from engine.core.reasons import REASONS, Category
from engine.net import cares
from engine.net.public import admissible, is_literal
from engine.net.resolver import MAX_HOSTS, LookupFailedError, Resolver

ZONE = """
ns A 127.0.0.1
two MX 20 b.t.lab.
two MX 10 a.t.lab.
a A 127.1.2.3
b A 127.1.2.4
b AAAA ::1
null MX 0 .
alias CNAME two
deep1 CNAME deep2
deep2 CNAME deep3
deep3 CNAME two
implicit A 127.0.0.9
implicit6 AAAA ::1
none TXT "no mail here"
tocname MX 10 mxalias.t.lab.
mxalias CNAME a
dangling MX 10 gone.t.lab.
dangling MX 20 goner.t.lab.
danglingcname MX 10 deadalias.t.lab.
deadalias CNAME gone.t.lab.
literal MX 10 192.0.2.7.
bracketed MX 10 [192.0.2.7].
metadata MX 10 meta.t.lab.
meta A 169.254.169.254
mapped MX 10 m.t.lab.
m AAAA ::ffff:10.0.0.1
nat64 MX 10 n.t.lab.
n AAAA 64:ff9b::7f00:1
v6only MX 10 v6.t.lab.
v6 AAAA 2606:4700::1111
mixed MX 10 meta.t.lab.
mixed MX 20 a.t.lab.
"""


@pytest.fixture(scope="module")
def zone(nsd):
    return nsd(**{"t.lab": ZONE, "1.127.in-addr.arpa": "3.2 PTR B.t.lab."})


@pytest.fixture
def resolve(zone):
    """A resolver on NSD that admits the lab's private addresses."""
    resolver = Resolver([zone], allow_private=True, timeout_s=4)
    yield resolver
    resolver.close()


@pytest.fixture
def ask(name_server):
    """Makes resolvers on the misbehaving server."""
    made = []

    def make(**options):
        options = {"allow_private": True, "timeout_s": 2, **options}
        servers = options.pop("servers", [("127.0.0.1", name_server.port)])
        made.append(Resolver(servers, **options))
        return made[-1]

    yield make
    for resolver in made:
        resolver.close()


def names(route):
    return [(host.name, host.addresses, host.problem) for host in route.hosts]


# A real server


def test_hosts_stand_by_preference(zone):
    """The lowest preference comes first, each host with its addresses, for as long as the TTL says."""
    resolver = Resolver([zone], allow_private=True, timeout_s=4, clock=lambda: 1000.0)
    route = resolver.route("two.t.lab")
    resolver.close()
    assert names(route) == [("a.t.lab", ("127.1.2.3",), ""), ("b.t.lab", ("127.1.2.4",), "")], route
    assert (route.reason, route.implicit) == ("", False)
    assert route.ttl_s == 300


def test_a_null_mx_is_a_verdict(resolve):
    """An MX with an empty exchange says that the domain takes no mail (RFC 7505)."""
    assert resolve.route("null.t.lab").reason == "domain_null_mx"


def test_without_mx_the_address_serves(resolve):
    """No MX, but an A record: the domain is its own mail host (RFC 5321 section 5.1)."""
    route = resolve.route("implicit.t.lab")
    assert route.implicit
    assert names(route) == [("implicit.t.lab", ("127.0.0.9",), "")]


def test_an_implicit_mx_may_have_ipv6_only(zone, resolve):
    """No MX and no A: AAAA is asked, and used where the identity has IPv6."""
    assert resolve.route("implicit6.t.lab").reason == "no_route_ipv6"
    resolver = Resolver([zone], allow_private=True, ipv6=True, timeout_s=4)
    assert names(resolver.route("implicit6.t.lab")) == [("implicit6.t.lab", ("::1",), "")]
    resolver.close()


def test_ipv4_stands_before_ipv6(zone):
    """With both, IPv4 is tried first."""
    resolver = Resolver([zone], allow_private=True, ipv6=True, timeout_s=4)
    assert resolver.route("two.t.lab").hosts[1].addresses == ("127.1.2.4", "::1")
    resolver.close()


@pytest.mark.parametrize("alias", ["alias", "deep1"])
def test_a_domain_may_be_an_alias(resolve, alias):
    """A domain that is a CNAME has the mail hosts of its target."""
    assert [host.name for host in resolve.route(f"{alias}.t.lab").hosts] == ["a.t.lab", "b.t.lab"]


def test_an_mx_may_lead_to_an_alias(resolve):
    """MX to CNAME is against RFC 2181 and common; it is followed, and the host keeps the name that the MX gave."""
    assert names(resolve.route("tocname.t.lab")) == [("mxalias.t.lab", ("127.1.2.3",), "")]


@pytest.mark.parametrize(
    ("domain", "reason", "detail"),
    [
        ("absent", "domain_not_found", ""),
        ("none", "domain_no_mail_host", ""),
        ("dangling", "domain_mx_unroutable", "no_address"),
        ("danglingcname", "domain_mx_unroutable", "no_address"),
        ("literal", "domain_mx_unroutable", "literal"),
        ("bracketed", "domain_mx_unroutable", "literal"),
        ("metadata", "domain_mx_unroutable", "non_public"),
        ("mapped", "domain_mx_unroutable", "non_public"),
        ("nat64", "domain_mx_unroutable", "non_public"),
        ("v6only", "no_route_ipv6", ""),
    ],
)
def test_hosts_that_lead_nowhere_have_reasons_of_their_own(resolve, domain, reason, detail):
    """Each way of leading nowhere is named, and nothing is dialled."""
    route = resolve.route(f"{domain}.t.lab")
    assert (route.reason, route.detail, route.dialable) == (reason, detail, ())


def test_one_bad_host_does_not_spoil_a_domain(resolve):
    """A host with a problem keeps its name in the route; the next one is dialled."""
    route = resolve.route("mixed.t.lab")
    assert (route.reason, names(route)[0]) == ("", ("meta.t.lab", (), "non_public"))
    assert [host.name for host in route.dialable] == ["a.t.lab"]


def test_private_hosts_are_unroutable_on_the_internet(zone):
    """Without `allow_private` a loopback host is none."""
    resolver = Resolver([zone], timeout_s=4)
    assert resolver.route("two.t.lab").detail == "non_public"
    resolver.close()


def test_names_and_addresses_for_the_preflight(resolve):
    """`addresses` gives all of them, `reverse` the PTR names; what isn't there is empty, a failure is raised."""
    assert resolve.addresses("b.t.lab") == ("127.1.2.4", "::1")
    assert resolve.addresses("absent.t.lab") == ()
    assert resolve.reverse("127.1.2.3") == ("b.t.lab",)
    assert resolve.reverse("127.1.2.4") == ()
    with pytest.raises(LookupFailedError, match=r"\.10\.in-addr") as caught:
        resolve.reverse("10.1.2.3")  # not a zone of this server: REFUSED
    assert caught.value.reason == "dns_servfail"


# One question


def test_a_cold_domain_costs_one_query(name_server, ask):
    """Where the server adds the hosts' addresses, nothing more is asked; and a warm domain asks nothing."""
    name_server.add("ann.lab MX 10 mx.ann.lab")
    name_server.add_extra("ann.lab", "mx.ann.lab A 127.0.0.2")
    resolver = ask()
    assert names(resolver.route("ann.lab")) == [("mx.ann.lab", ("127.0.0.2",), "")]
    resolver.route("ann.lab")
    assert name_server.asked == [("udp", "ann.lab", "MX")]


def test_addresses_of_names_that_the_mx_did_not_give_count_for_nothing(name_server, ask):
    """An additional record for another name is ignored, and never remembered."""
    name_server.add("ann.lab MX 10 mx.ann.lab")
    name_server.add("mx.ann.lab A 127.0.0.2")
    name_server.add("bob.lab A 127.0.0.3")
    name_server.add_extra("ann.lab", "bob.lab A 127.6.6.6")
    resolver = ask()
    assert resolver.route("ann.lab").hosts[0].addresses == ("127.0.0.2",)
    assert resolver.route("bob.lab").hosts[0].addresses == ("127.0.0.3",)


def test_many_greenlets_ask_one_question(name_server, ask):
    """A hundred look-ups of one domain in flight are one query each for MX and A."""
    name_server.add("ann.lab MX 10 mx.ann.lab")
    name_server.add("mx.ann.lab A 127.0.0.2")
    resolver = ask()
    jobs = [gevent.spawn(resolver.route, "ann.lab") for _ in range(100)]
    assert {job.get().hosts[0].addresses for job in jobs} == {("127.0.0.2",)}
    assert [kind for _, _, kind in name_server.asked] == ["MX", "A"]


def test_a_killed_greenlet_leaves_its_question_to_the_next(name_server, ask):
    """Who waits for a question that another asks gets an answer even when that other one is killed."""
    name_server.add("ann.lab MX 10 mx.ann.lab")
    name_server.add("mx.ann.lab A 127.0.0.2")
    resolver = ask()
    first, second = (gevent.spawn(resolver.route, "ann.lab") for _ in range(2))
    gevent.sleep(0)
    first.kill()
    assert second.get().hosts[0].addresses == ("127.0.0.2",)


def test_answers_hold_for_their_ttl(name_server, ask):
    """An answer is asked for again when its TTL is over, a negative after 15 min, a failure after 30 s."""
    name_server.add("ann.lab MX 10 mx.ann.lab", ttl=100)
    name_server.add_extra("ann.lab", "mx.ann.lab A 127.0.0.2")
    name_server.on("sick.lab", lambda query, *_: name_server.reply(query, dns.rcode.SERVFAIL))
    now = 0.0
    resolver = ask(clock=lambda: now)
    cases = [("ann.lab", 100, 1), ("absent.lab", 900, 2), ("sick.lab", 30, 2)]  # c-ares itself keeps none of these
    for domain, ttl_s, queries in cases:
        now = 0.0
        assert resolver.route(domain).ttl_s == ttl_s
        now = ttl_s - 1.0
        assert resolver.route(domain).ttl_s == 1
        assert name_server.count(domain) == queries
        now = float(ttl_s)
        resolver.route(domain)
        assert name_server.count(domain) >= queries  # c-ares may know a positive answer that wall time has not ended
    assert name_server.count("absent.lab") == name_server.count("sick.lab") == 4


def test_a_ttl_of_zero_is_not_kept(name_server, ask):
    """RFC 1035: a TTL of 0 serves the question in flight only."""
    name_server.add("ann.lab A 127.0.0.2", ttl=0)
    resolver = ask()
    for _ in range(2):
        assert resolver.addresses("ann.lab") == ("127.0.0.2",)
    assert name_server.count("ann.lab", "A") == 2


# A server that misbehaves


@pytest.mark.parametrize(
    ("rcode", "detail"), [(dns.rcode.SERVFAIL, "servfail"), (dns.rcode.REFUSED, "refused"), (dns.rcode.NOTIMP, None)]
)
def test_a_failing_server_is_no_answer(name_server, ask, rcode, detail):
    """SERVFAIL and its like tell nothing about the domain."""
    name_server.on("ann.lab", lambda query, *_: name_server.reply(query, rcode))
    route = ask().route("ann.lab")
    assert route.reason == "dns_servfail"
    assert detail in (route.detail, None)
    assert [transport for transport, *_ in name_server.asked] == ["udp", "tcp"]


def test_bad_news_is_asked_twice(name_server, ask):
    """An NXDOMAIN that the second question doesn't confirm ends nothing."""
    name_server.add("ann.lab A 127.0.0.2")
    name_server.on("ann.lab", lambda query, _, nth: name_server.reply(query, dns.rcode.NXDOMAIN if nth == 0 else None))
    assert ask().route("ann.lab").dialable
    assert name_server.asked[:2] == [("udp", "ann.lab", "MX"), ("tcp", "ann.lab", "MX")]


@pytest.mark.parametrize(("second", "reason"), [(dns.rcode.SERVFAIL, "dns_servfail"), (None, "dns_timeout")])
def test_an_unconfirmed_nxdomain_is_a_failure(name_server, ask, second, reason):
    """`domain_not_found` needs two NXDOMAINs."""

    def rule(query, transport, _):
        if transport == "udp":
            return name_server.reply(query, dns.rcode.NXDOMAIN)
        return second and name_server.reply(query, second)

    name_server.on("ann.lab", rule)
    route = ask(timeout_s=0.5).route("ann.lab")
    assert (route.reason, route.detail) == (reason, "nxdomain_unconfirmed")


def test_the_second_opinion_is_another_servers(name_server, second_name_server, ask):
    """Where there are two servers, a domain is absent only when both say so."""
    second_name_server.add("ann.lab A 127.0.0.2")
    resolver = ask(servers=[("127.0.0.1", name_server.port), ("127.0.0.1", second_name_server.port)])
    assert resolver.route("bob.lab").reason == "domain_not_found"
    assert (name_server.count("bob.lab"), second_name_server.count("bob.lab")) == (1, 1)


def test_silence_ends_in_time(name_server, ask):
    """A server that never answers is `dns_timeout`, after the time given and not much later."""
    name_server.on("ann.lab", lambda *_: None)
    with gevent.Timeout(3):
        route = ask(timeout_s=0.6).route("ann.lab")
    assert (route.reason, route.detail) == ("dns_timeout", "timeout")
    assert name_server.count("ann.lab") >= 2


def test_nobody_listening_is_a_failure(ask):
    """A refused connection to the name server is not the domain's fault."""
    route = ask(servers=[("127.0.0.1", 9)], timeout_s=1).route("ann.lab")
    assert REASONS[route.reason].category is Category.RISKY
    assert route.reason in ("dns_servfail", "dns_timeout")


def test_a_lost_packet_is_sent_again(name_server, ask):
    """The first packets are lost, the next is answered: the timer drives c-ares."""
    name_server.add("ann.lab A 127.0.0.2")
    name_server.on("ann.lab", lambda query, _, nth: None if nth < 2 else name_server.reply(query))
    with gevent.Timeout(5):
        assert ask(timeout_s=4).route("ann.lab").dialable


def test_a_process_that_was_busy_has_all_its_time_for_the_first_answer(name_server, ask):
    """The loop's clock stands still while nobody runs the loop; a deadline counted from it would be over already."""
    name_server.add("ann.lab A 127.0.0.2")
    name_server.on("ann.lab", lambda query, _, nth: None if nth < 1 else name_server.reply(query))
    resolver = ask(timeout_s=1.5)
    gevent.sleep(0)
    end = time.monotonic() + 2
    while time.monotonic() < end:  # busy, and not yielding
        sum(range(10_000))
    assert resolver.route("ann.lab").dialable


def test_a_truncated_answer_is_fetched_over_tcp(name_server, ask):
    """TC over UDP, the whole over TCP (RFC 7766)."""

    def rule(query, transport, _):
        reply = name_server.reply(query)
        if transport == "udp":
            reply.flags |= dns.flags.TC
            reply.answer.clear()
        return reply

    name_server.add("ann.lab MX 10 mx.ann.lab")
    name_server.add_extra("ann.lab", "mx.ann.lab A 127.0.0.2")
    name_server.on("ann.lab", rule)
    assert ask().route("ann.lab").dialable
    assert [transport for transport, *_ in name_server.asked] == ["udp", "tcp"]


def test_an_answer_to_another_question_is_ignored(name_server, ask):
    """A reply with a wrong id is not ours."""

    def rule(query, _, __):
        reply = name_server.reply(query)
        reply.id = query.id ^ 1
        return reply

    name_server.add("ann.lab A 127.0.0.2")
    name_server.on("ann.lab", rule)
    assert ask(timeout_s=0.6).route("ann.lab").reason == "dns_timeout"


def test_garbage_is_no_answer(name_server, ask):
    """Bytes that are no DNS message never become a verdict."""
    name_server.on("ann.lab", lambda query, *_: query.to_wire()[:2] + b"\x81\x80\x00\x01\x00\x01garbage")
    assert ask(timeout_s=0.6).route("ann.lab").reason in ("dns_servfail", "dns_timeout")


@pytest.mark.parametrize("ends", ["loop", "dangling"])
def test_aliases_that_lead_nowhere(name_server, ask, ends):
    """A CNAME loop is named for a host and for a domain; a CNAME to nothing is `no_address`, `dangling_cname`."""
    name_server.add("one.lab CNAME two.lab")
    if ends == "loop":
        name_server.add("two.lab CNAME one.lab")
    name_server.add("ann.lab MX 10 one.lab")
    resolver = ask()
    host, domain = resolver.route("ann.lab"), resolver.route("one.lab")
    if ends == "loop":
        assert (host.reason, host.detail) == ("domain_mx_unroutable", "cname_loop")
        assert (domain.reason, domain.detail) == ("domain_mx_unroutable", "cname_loop")
    else:
        assert (host.reason, host.detail) == ("domain_mx_unroutable", "no_address")
        assert (domain.reason, domain.detail) == ("domain_not_found", "dangling_cname")


@pytest.mark.parametrize(("aliases", "found"), [(8, True), (9, False)])
def test_eight_aliases_are_followed_and_no_more(name_server, ask, aliases, found):
    """A chain of 8 is followed, over as many messages as it takes; a longer one is not meant."""
    for number in range(aliases):
        name_server.add(f"c{number}.lab CNAME c{number + 1}.lab")
    name_server.add(f"c{aliases}.lab MX 10 mx.lab")
    name_server.add("mx.lab A 127.0.0.2")
    assert bool(ask().route("c0.lab").dialable) is found


def test_a_known_host_whose_look_up_fails_is_incomplete(name_server, ask):
    """The MX is known, its address isn't: nothing is proven, and a retry may tell."""
    name_server.add("ann.lab MX 10 mx.ann.lab")
    name_server.on("mx.ann.lab", lambda query, *_: name_server.reply(query, dns.rcode.SERVFAIL))
    route = ask().route("ann.lab")
    assert (route.reason, route.detail) == ("mx_lookup_incomplete", "lookup_failed")
    assert route.names == ("mx.ann.lab",)
    assert route.ttl_s <= 30


def test_without_mx_a_failed_address_look_up_says_so(name_server, ask):
    """No MX, and the A query fails: whether there is a host isn't known."""

    def rule(query, _, __):
        failing = query.question[0].rdtype == dns.rdatatype.A
        return name_server.reply(query, dns.rcode.SERVFAIL if failing else dns.rcode.NOERROR)

    name_server.on("ann.lab", rule)
    assert ask().route("ann.lab").reason == "dns_servfail"


def test_only_so_many_hosts_are_asked(name_server, ask):
    """A domain with very many MX costs a bounded number of queries, and those left out are no proof."""
    for number in range(MAX_HOSTS + 5):
        name_server.add(f"ann.lab MX {number} mx{number}.lab")
    route = ask().route("ann.lab")
    assert (route.reason, route.detail) == ("mx_lookup_incomplete", "no_address,not_asked")
    assert len(route.names) == MAX_HOSTS + 5
    assert len({name for _, name, _ in name_server.asked}) == MAX_HOSTS + 1


def test_equal_preferences_are_spread_and_stay(name_server, ask):
    """Domains share out equal hosts among themselves, and each has the same order every time."""
    orders = set()
    for number in range(20):
        for host in ("x", "y"):
            name_server.add(f"d{number}.lab MX 10 {host}.lab")
            name_server.add_extra(f"d{number}.lab", f"{host}.lab A 127.0.0.2")
        first, again = (ask().route(f"d{number}.lab").names for _ in range(2))
        assert first == again
        orders.add(first)
    assert orders == {("x.lab", "y.lab"), ("y.lab", "x.lab")}


def test_a_name_that_dns_cannot_hold_is_no_crash(ask):
    """A label of 64 characters never leaves, and ends the domain without an exception."""
    assert ask().route("a" * 64 + ".lab").reason == "domain_no_mail_host"


# Memory and life


def test_a_channel_is_replaced_and_nothing_gets_lost(name_server, ask, monkeypatch):
    """Channels live for a number of queries; questions in flight at the change are answered, none twice."""
    monkeypatch.setattr(cares, "QUERIES_A_LIFE", 10)
    for number in range(100):
        name_server.add(f"d{number}.lab A 127.0.0.2")
    resolver = ask()
    jobs = [gevent.spawn(resolver.addresses, f"d{number}.lab") for number in range(100)]
    assert [job.get() for job in jobs] == [("127.0.0.2",)] * 100
    assert name_server.count("d7.lab", "A") == 1


def test_closing_ends_open_questions(name_server, ask):
    """`close` leaves no greenlet waiting."""
    name_server.on("ann.lab", lambda *_: None)
    resolver = ask(timeout_s=60)
    job = gevent.spawn(resolver.route, "ann.lab")
    gevent.sleep(0)
    resolver.close()
    with gevent.Timeout(2):
        assert job.get().reason == "dns_servfail"


def test_memory_does_not_grow_with_the_names(responder):
    """Distinct names leave memory flat: the cache is bounded, and c-ares' own goes with its channel."""
    resolver = Resolver([responder], allow_private=True, cache_names=2_000)
    todo = iter(range(42_000))

    def work(until):
        for number in todo:
            assert resolver.route(f"d{number}.example").dialable
            if number >= until:
                return

    resident = []
    for until in (22_000, 41_900):  # two channels have gone before the first look
        gevent.joinall([gevent.spawn(work, until) for _ in range(64)], raise_error=True)
        resident.append(rss_mib())
    assert len(resolver._lookup.cache) == 2_000
    assert resident[1] - resident[0] < 8, resident  # 20,000 names in c-ares' cache would be 36
    resolver.close()


def rss_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


# Addresses


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        ("93.184.216.34", True, True),
        ("2606:4700::1111", True, True),
        ("127.0.0.1", False, True),
        ("10.1.2.3", False, True),
        ("100.64.0.1", False, True),
        ("fd00::1", False, True),
        ("::1", False, True),
        ("169.254.169.254", False, False),
        ("168.63.129.16", False, False),
        ("100.100.100.200", False, False),
        ("fd00:ec2::254", False, False),
        ("fe80::1", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("224.0.0.1", False, False),
        ("255.255.255.255", False, False),
        ("192.0.2.1", False, False),
        ("198.18.0.1", False, False),
        ("::ffff:93.184.216.34", False, False),
        ("64:ff9b::5db8:d822", False, False),
        ("2002:7f00:1::", False, False),
        ("2001:db8::1", False, False),
        ("3fff::1", False, False),
        ("ff02::1", False, False),
    ],
)
def test_only_public_addresses_are_dialled(address, public, private):
    """Global unicast always; private networks where allowed; the rest never."""
    assert admissible(address) is public
    assert admissible(address, allow_private=True) is private


@pytest.mark.parametrize("name", ["192.0.2.1", "[192.0.2.1]", "2001:db8::1", "[ipv6:2001:db8::1]"])
def test_an_address_is_no_host_name(name):
    """MX wants a name (RFC 1035); an address in its place is a literal."""
    assert is_literal(name)
    assert not is_literal("mx1.example.com")
