"""RFC 7208, section by section: what check_host says of a client, and that it never mistakes a failure for an absence.

A zone is {name: records}; a record is `TYPE data`, and `FAIL` a name that can't be looked up. Each case is one record
at example.net, evaluated for 192.0.2.1 (or another client) as sent by ann-lee@example.net with HELO mail.example.net.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reputation.answer import Answer
from engine.reputation.spf import Spf, SpfResult, check_host
from engine.reputation.spf_record import SpfSyntaxError, parse

V4, V6 = "192.0.2.1", "2001:db8::1"
REVERSE = "1.2.0.192.in-addr.arpa"
NIBBLES = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2"
ZONE = {
    "mail.example.net": ["A 192.0.2.1", "AAAA 2001:db8::1"],
    "near.example.net": ["A 192.0.2.77", "AAAA 2001:db8::77"],
    "far.example.net": ["A 198.51.100.1"],
    "many.example.net": [*(f"A 198.51.100.{n}" for n in range(1, 30)), "A 192.0.2.1"],
    "six.example.net": ["AAAA 2001:db8::1"],
    "hosts.example.net": ["MX far.example.net", "MX mail.example.net"],
    "null.example.net": ["MX "],
    "crowd.example.net": [f"MX h{n}.example.net" for n in range(11)],
    "sick.example.net": ["FAIL"],
    "sickhost.example.net": ["MX sick.example.net"],
    "yes.example.org": ["TXT v=spf1 ip4:192.0.2.1 -all"],
    "no.example.org": ["TXT v=spf1 -all"],
    "soft.example.org": ["TXT v=spf1 ~all"],
    "quiet.example.org": ["TXT v=spf1"],
    "broken.example.org": ["TXT v=spf1 nonsense"],
    "bare.example.org": ["TXT something else"],
    "loop.example.org": ["TXT v=spf1 include:loop.example.org"],
    "ring.example.org": ["TXT v=spf1 redirect=ring.example.org"],
    "mine.example.org": ["TXT v=spf1 a -all", "A 192.0.2.1"],
}


def asking(zone: dict[str, list[str]]):
    """A look-up over a zone; it keeps what it was asked."""

    def ask(name: str, kind: str) -> Answer:
        ask.asked.append((name, kind))
        records = zone.get(name)
        if records == ["FAIL"]:
            return Answer(failure="servfail")
        found = tuple(data for each in records or [] for have, _, data in [each.partition(" ")] if have == kind)
        return Answer(found, nxdomain=records is None)

    ask.asked = []
    return ask


def spf(text: str, ip: str = V4, more: dict[str, list[str]] | None = None, **given: str) -> Spf:
    """The SPF of example.net with this record."""
    zone = {**ZONE, "example.net": [f"TXT {text}", "A 192.0.2.1", "MX mail.example.net"], **(more or {})}
    sender = given.pop("sender", "ann-lee@example.net")
    return check_host(ip, given.pop("domain", "example.net"), sender, asking(zone), helo="mail.example.net", **given)


def table(*rows: tuple[str, str] | tuple[str, str, str]):
    return pytest.mark.parametrize(("text", "result", "ip"), [(*row, V4)[:3] for row in rows])


# --- 4.3, 4.4, 4.5: which record


@pytest.mark.parametrize(
    "domain", ["localhost", "[192.0.2.1]", "a..example.net", f"{'a' * 64}.example.net", "x", "." * 3]
)
def test_what_is_no_domain_has_no_policy(domain: str) -> None:
    """4.3: malformed, too long or not fully qualified is `none`, and nobody is asked."""
    ask = asking(ZONE)
    assert check_host(V4, domain, f"a@{domain}", ask).result is SpfResult.NONE
    assert ask.asked == []


@pytest.mark.parametrize(
    ("records", "result"),
    [
        ([], "none"),
        (["TXT v=spf10 -all"], "none"),
        (["TXT v=spf1mx"], "none"),
        (["TXT v=spf1"], "neutral"),
        (["TXT V=sPf1 ~all"], "softfail"),
        (["TXT \x96 other", "TXT v=spf1 -all"], "fail"),
        (["TXT v=spf10", "TXT v=spf1 +all"], "pass"),
        (["TXT v=spf1 -all", "TXT v=spf1 -all"], "permerror"),
        (["FAIL"], "temperror"),
    ],
)
def test_the_one_record_is_found(records: list[str], result: str) -> None:
    """4.5: exactly one, by its version; no answer is a temperror and never `none`."""
    assert check_host(V4, "example.net", "a@example.net", asking({"example.net": records})).result == result


# --- 4.6, 12: the grammar


@table(
    ("v=spf1 ip4:192.0.2.1 -all moo", "permerror"),
    ("v=spf1 moo.cow-far_out=man:dog/cat ip4:192.0.2.1 -all", "pass"),
    ("v=spf1 moo.cow/far_out=man ip4:192.0.2.1 -all", "permerror"),
    ("v=spf1 1up=foo", "permerror"),
    ("v=spf1 =all", "permerror"),
    ("v=spf1 x=%abc +all", "permerror"),
    ("v=spf1 default=pass", "neutral"),
    ("v=spf1 a  -all", "pass"),
    ("v=spf1 a\t-all", "permerror"),
    ("v=spf1 a:\xef\xbb\xbfmail.example.net +all", "permerror"),
    ("v=spf1 \x80a +all", "permerror"),
    ("v=spf1 A:MAIL.example.net -ALL", "pass"),
    ("v=spf1 redirect:yes.example.org", "permerror"),
    ("v=spf1 ++all", "permerror"),
)
def test_a_syntax_error_is_found_anywhere(text: str, result: str, ip: str) -> None:
    """4.6: even behind the term that would have matched; unknown modifiers are ignored, unknown mechanisms are not."""
    assert spf(text, ip).result == result


@given(st.text(alphabet="v=spf1 aimxptr4:6/%{}lodsr.-+~?0129_incluedrt,\x00\xff", max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_record_breaks_the_parser(text: str) -> None:
    """Whatever stands in a record, it is parsed or refused, and evaluated within its limits."""
    try:
        parse(f"v=spf1 {text}")
    except SpfSyntaxError as error:
        assert str(error).isprintable()
    found = spf(f"v=spf1 {text}")
    assert found.lookups <= 11
    assert bool(found.problem) == (found.result in (SpfResult.PERMERROR, SpfResult.TEMPERROR))


@table(
    ("v=spf1 a:foo-bar -all", "permerror"),
    ("v=spf1 a:museum", "permerror"),
    ("v=spf1 a:museum.", "permerror"),
    ("v=spf1 a:192.0.2.1", "permerror"),
    ("v=spf1 a:abc.123", "permerror"),
    ("v=spf1 a:example.-com", "permerror"),
    ("v=spf1 a:example.com:8080", "permerror"),
    ("v=spf1 a:mail.example.net. -all", "pass"),
    ("v=spf1 a:odd.xn--zckzah -all", "fail"),
    ("v=spf1 a:mail.example.net\x00", "permerror"),
    ("v=spf1 a: -all", "permerror"),
    ("v=spf1 a:mail..net -all", "fail"),
    (f"v=spf1 a:{'a' * 64}.net -all", "fail"),
)
def test_a_domain_ends_in_a_top_label_or_a_macro(text: str, result: str, ip: str) -> None:
    """7.1: all digits, a leading hyphen or a label alone is none; a name that no query can carry does not exist."""
    assert spf(text, ip).result == result


# --- 4.6.2, 4.7, 5.1: results


@table(
    ("v=spf1 +all", "pass"),
    ("v=spf1 -all", "fail"),
    ("v=spf1 ~all", "softfail"),
    ("v=spf1 ?all", "neutral"),
    ("v=spf1 all -all", "pass"),
    ("v=spf1 ip4:198.51.100.9", "neutral"),
    ("v=spf1 -all.", "permerror"),
    ("v=spf1 -all:x.net", "permerror"),
    ("v=spf1 -all/8", "permerror"),
)
def test_the_first_match_decides(text: str, result: str, ip: str) -> None:
    """By its qualifier; without one it is neutral."""
    assert spf(text, ip).result == result


# --- 5.2: include


@table(
    ("v=spf1 include:yes.example.org -all", "pass"),
    ("v=spf1 ?include:yes.example.org -all", "neutral"),
    ("v=spf1 include:no.example.org ~all", "softfail"),
    ("v=spf1 include:soft.example.org ?all", "neutral"),
    ("v=spf1 include:quiet.example.org -all", "fail"),
    ("v=spf1 include:broken.example.org -all", "permerror"),
    ("v=spf1 include:bare.example.org -all", "permerror"),
    ("v=spf1 include:absent.example.org -all", "permerror"),
    ("v=spf1 include:sick.example.net -all", "temperror"),
    ("v=spf1 include +all", "permerror"),
    ("v=spf1 include: +all", "permerror"),
    ("v=spf1 include:yes.example.org/24 +all", "permerror"),
)
def test_include_asks_whether_the_other_would_pass(text: str, result: str, ip: str) -> None:
    """Only its pass matches; its errors are ours, and its absence is a permerror."""
    assert spf(text, ip).result == result


# --- 5.3, 5.4: a and mx


@table(
    ("v=spf1 a -all", "pass"),
    ("v=spf1 a:near.example.net -all", "fail"),
    ("v=spf1 a:near.example.net/24 -all", "pass"),
    ("v=spf1 a:near.example.net//64 -all", "fail"),
    ("v=spf1 a:near.example.net/24//64 -all", "pass", V6),
    ("v=spf1 a:near.example.net/24 -all", "fail", V6),
    ("v=spf1 a:near.example.net//64 -all", "pass", V6),
    ("v=spf1 a:six.example.net -all", "pass", V6),
    ("v=spf1 a:six.example.net//0 -all", "fail"),
    ("v=spf1 a:far.example.net/0 -all", "pass"),
    ("v=spf1 a:absent.example.net/0 -all", "fail"),
    ("v=spf1 a:many.example.net -all", "pass"),
    ("v=spf1 a:mail.example.net -all", "pass", "::ffff:192.0.2.1"),
    ("v=spf1 a/33 -all", "permerror"),
    ("v=spf1 a//129 -all", "permerror"),
    ("v=spf1 a/24/64 -all", "permerror"),
    ("v=spf1 a/024 -all", "permerror"),
    ("v=spf1 a:sick.example.net -all", "temperror"),
    ("v=spf1 a:slash/colon:x.example.net -all", "pass"),
)
def test_a_matches_an_address_of_the_name(text: str, result: str, ip: str) -> None:
    """5.3: of the client's family only, with the prefix of that family; however many addresses there are."""
    assert spf(text, ip, {"slash/colon:x.example.net": ["A 192.0.2.1"]}).result == result


@table(
    ("v=spf1 mx -all", "pass"),
    ("v=spf1 mx:hosts.example.net -all", "pass"),
    ("v=spf1 mx:hosts.example.net -all", "pass", V6),
    ("v=spf1 mx:mail.example.net -all", "fail"),  # no MX: its address doesn't stand in
    ("v=spf1 mx:null.example.net", "neutral"),
    ("v=spf1 mx:crowd.example.net -all", "permerror"),
    ("v=spf1 mx:sick.example.net -all", "temperror"),
    ("v=spf1 mx:sickhost.example.net -all", "temperror"),
    ("v=spf1 mx:hosts.example.net/0 -all", "pass", "203.0.113.1"),
    ("v=spf1 mx/33 -all", "permerror"),
    ("v=spf1 mx: -all", "permerror"),
)
def test_mx_matches_an_address_of_a_mail_host(text: str, result: str, ip: str) -> None:
    """5.4 and 4.6.4: at most ten hosts, and no implicit one."""
    assert spf(text, ip).result == result


# --- 5.5: ptr


@pytest.mark.parametrize(
    ("names", "text", "result"),
    [
        (["PTR mail.example.net"], "v=spf1 ptr -all", "pass"),
        (["PTR mail.example.net"], "v=spf1 ptr:example.net -all", "pass"),
        (["PTR mail.example.net"], "v=spf1 ptr:EXAMPLE.net -all", "pass"),
        (["PTR mail.example.net"], "v=spf1 ptr:ample.net -all", "fail"),
        (["PTR far.example.net"], "v=spf1 ptr -all", "fail"),
        (["PTR sick.example.net", "PTR mail.example.net"], "v=spf1 ptr -all", "pass"),
        (["FAIL"], "v=spf1 ptr -all", "fail"),
        ([*(f"PTR x{n}.example.net" for n in range(10)), "PTR mail.example.net"], "v=spf1 ptr -all", "fail"),
        (["PTR mail.example.net"], "v=spf1 ptr/0 -all", "permerror"),
        (["PTR mail.example.net"], "v=spf1 ptr: -all", "permerror"),
    ],
)
def test_ptr_matches_a_name_that_leads_back(names: list[str], text: str, result: str) -> None:
    """The first ten names; what can't be looked up does not match, and is no error."""
    assert spf(text, V4, {REVERSE: names}).result == result


def test_ptr_knows_ipv6() -> None:
    """By its nibbles."""
    assert spf("v=spf1 ptr -all", V6, {f"{NIBBLES}.ip6.arpa": ["PTR mail.example.net"]}).result is SpfResult.PASS


# --- 5.6, 5.7: ip4, ip6, exists


@table(
    ("v=spf1 ip4:192.0.2.0/24 -all", "pass"),
    ("v=spf1 ip4:203.0.113.9/0 -all", "pass"),
    ("v=spf1 ip4:192.0.2.1/32 -all", "pass"),
    ("v=spf1 ip4:192.0.2.1 -all", "pass", "::ffff:192.0.2.1"),
    ("v=spf1 ip4:192.0.2.1/33 -all", "permerror"),
    ("v=spf1 ip4:192.0.2.1/032 -all", "permerror"),
    ("v=spf1 ip4:192.0.2.1//32 -all", "permerror"),
    ("v=spf1 ip4:192.0.2.1:8080 -all", "permerror"),
    ("v=spf1 ip4:192.0.2 -all", "permerror"),
    ("v=spf1 ip4:192.0.2.01 -all", "permerror"),
    ("v=spf1 ip4 -all", "permerror"),
    ("v=spf1 ip6:2001:DB8::/33 -all", "pass", V6),
    ("v=spf1 ip6:::/0 -all", "pass", V6),
    ("v=spf1 ip6:::/0 -all", "fail"),
    ("v=spf1 ip6:::ffff:192.0.2.1 -all", "fail", "::ffff:192.0.2.1"),
    ("v=spf1 ip6:2001:db8::1/129 -all", "permerror"),
    ("v=spf1 ip6:2001:db8::1//33 -all", "permerror"),
    ("v=spf1 ip6::CAFE::BABE -all", "permerror"),
    ("v=spf1 ip6 -all", "permerror"),
    ("v=spf1 exists:mail.example.net -all", "pass"),
    ("v=spf1 exists:mail.example.net -all", "pass", V6),
    ("v=spf1 exists:six.example.net -all", "fail", V6),
    ("v=spf1 exists:sick.example.net -all", "temperror"),
    ("v=spf1 exists -all", "permerror"),
    ("v=spf1 exists:mail.example.net/24 -all", "permerror"),
)
def test_networks_and_existing_names(text: str, result: str, ip: str) -> None:
    """5.6: a mapped address is IPv4. 5.7: an A record is asked for, whatever the client's family."""
    assert spf(text, ip).result == result


# --- 6.1, 6.2: redirect and exp


@table(
    ("v=spf1 redirect=yes.example.org", "pass"),
    ("v=spf1 redirect=mine.example.org", "pass"),
    ("v=spf1 ip4:198.51.100.1 redirect=no.example.org", "fail"),
    ("v=spf1 redirect=no.example.org ~all", "softfail"),
    ("v=spf1 redirect=bare.example.org", "permerror"),
    ("v=spf1 redirect=absent.example.org", "permerror"),
    ("v=spf1 redirect=sick.example.net", "temperror"),
    ("v=spf1 redirect=yes.example.org redirect=yes.example.org", "permerror"),
    ("v=spf1 ?all redirect=", "permerror"),
    ("v=spf1 redirect=-all ?all", "permerror"),
    ("v=spf1 exp=absent.example.org -all", "fail"),
    ("v=spf1 exp= -all", "permerror"),
    ("v=spf1 exp=-all", "permerror"),
    ("v=spf1 exp=%{r}.example.org -all", "permerror"),
    ("v=spf1 exp=a.example.org exp=b.example.org -all", "permerror"),
)
def test_redirect_takes_over_and_exp_is_never_fetched(text: str, result: str, ip: str) -> None:
    """Another's record with another's domain, unless a mechanism matches; nothing there is a permerror."""
    assert spf(text, ip).result == result


def test_an_explanation_costs_no_look_up() -> None:
    """6.2: it counts against no limit; we don't ask at all."""
    ask = asking({"example.net": ["TXT v=spf1 -all exp=why.example.net"]})
    check_host(V4, "example.net", "a@example.net", ask)
    assert ask.asked == [("example.net", "TXT")]


# --- 7: macros


@pytest.mark.parametrize(
    ("macro", "name"),
    [
        ("%{i}", "192.0.2.1"),
        ("%{ir}.%{v}", "1.2.0.192.in-addr"),
        ("%{s}", "ann-lee@example.net"),
        ("%{l}.%{o}", "ann-lee.example.net"),
        ("%{lr-}", "lee.ann"),
        ("%{l1r-}", "ann"),
        ("%{l1-}", "lee"),
        ("%{d2}", "example.net"),
        ("%{d1}", "net"),
        ("%{d9}", "example.net"),
        ("%{dr}", "net.example"),
        ("%{h}", "mail.example.net"),
        ("%{S}", "ann-lee%40example.net"),
        ("%{p}", "mail.example.net"),
        ("a%%b%_c%-d", "a%b c%20d"),
    ],
)
def test_macros_stand_for_what_they_say(macro: str, name: str) -> None:
    """7.2 to 7.4: transformers, delimiters, upper case for escapes."""
    more = {f"{name}.x.example.org": ["A 127.0.0.2"], REVERSE: ["PTR mail.example.net"]}
    assert spf(f"v=spf1 exists:{macro}.x.example.org -all", V4, more).result is SpfResult.PASS


def test_an_ipv6_client_is_spelt_in_nibbles() -> None:
    """7.3: dotted, and turned by `r`."""
    more = {f"{NIBBLES}.ip6.x.example.org": ["A 127.0.0.2"]}
    assert spf("v=spf1 exists:%{ir}.%{v}.x.example.org -all", V6, more).result is SpfResult.PASS


@pytest.mark.parametrize(
    ("names", "name"),
    [
        ([], "unknown"),
        (["PTR far.example.net"], "unknown"),
        (["FAIL"], "unknown"),
        (["PTR other.example.org", "PTR mail.example.net"], "mail.example.net"),
        (["PTR other.example.org"], "other.example.org"),
    ],
)
def test_the_validated_name_is_one_that_leads_back(names: list[str], name: str) -> None:
    """7.3: below the domain first; without any it is `unknown`."""
    more = {
        f"{name}.x.example.org": ["A 127.0.0.2"], REVERSE: names, "other.example.org": ["A 192.0.2.1"],
    }  # fmt: skip
    assert spf("v=spf1 exists:%{p}.x.example.org -all", V4, more).result is SpfResult.PASS


@table(
    ("v=spf1 exists:%(ir).x.net ?all", "permerror"),
    ("v=spf1 exists:x%.net ?all", "permerror"),
    ("v=spf1 exists:%{a}.x.net ?all", "permerror"),
    ("v=spf1 exists:%{d0}.x.net ?all", "permerror"),
    ("v=spf1 exists:%{c}.x.net ?all", "permerror"),
    ("v=spf1 exists:%{ir ?all", "permerror"),
    ("v=spf1 a:%{H} -all", "pass"),
)
def test_a_macro_is_well_formed(text: str, result: str, ip: str) -> None:
    """7.1: and a domain may end in one."""
    assert spf(text, ip).result == result


def test_a_name_that_grew_too_long_loses_labels_on_its_left() -> None:
    """7.3: until it has 253 characters at most."""
    ask = asking({"long.example.net": [f"TXT v=spf1 exists:first.{'%{d}.' * 20}example.net -all"]})
    check_host(V4, "long.example.net", "a@long.example.net", ask)
    (asked, _) = ask.asked[1]
    assert len(asked) <= 253
    assert asked.endswith(".long.example.net.example.net")
    assert len(f"long.{asked}") > 240


def test_a_sender_without_local_part_is_postmaster() -> None:
    """4.3: as for a bounce, where the HELO name is asked about."""
    more = {"postmaster.x.example.org": ["A 127.0.0.2"]}
    assert spf("v=spf1 exists:%{l}.x.example.org -all", V4, more, sender="@example.net").result is SpfResult.PASS


# --- 4.6.4: limits


@pytest.mark.parametrize(
    ("text", "result", "lookups"),
    [
        ("v=spf1 ip4:192.0.2.1 -all", "pass", 0),
        ("v=spf1 a:far.example.net mx:hosts.example.net -all", "pass", 2),
        (f"v=spf1 {'a:far.example.net ' * 9}include:yes.example.org -all", "pass", 10),
        (f"v=spf1 {'a:far.example.net ' * 10}include:yes.example.org -all", "permerror", 11),
        (f"v=spf1 {'a:far.example.net ' * 11}-all", "permerror", 11),
        ("v=spf1 include:loop.example.org", "permerror", 11),
        ("v=spf1 redirect=ring.example.org", "permerror", 11),
        ("v=spf1 exists:%{p}.example.org ptr -all", "pass", 2),
    ],
)
def test_ten_terms_may_look_up(text: str, result: str, lookups: int) -> None:
    """include, a, mx, ptr, exists and redirect count, all and the networks do not."""
    found = spf(text, V4, {REVERSE: ["PTR mail.example.net"]})
    assert (found.result, found.lookups, found.count) == (result, lookups, f"{lookups}/10")


@table(
    ("v=spf1 a:v1.example.net a:v2.example.net ?all", "neutral"),
    ("v=spf1 a:v1.example.net exists:v2.example.net mx:v3.example.net ?all", "permerror"),
    ("v=spf1 a:v1.example.net a:six.example.net mx:mail.example.net +all", "permerror"),
)
def test_two_look_ups_may_find_nothing(text: str, result: str, ip: str) -> None:
    """Neither the name, nor the type."""
    assert spf(text, ip).result == result


# --- what is told


def test_the_term_that_matched_is_told_with_the_way_to_it() -> None:
    """An operator sees which of his records let the address through."""
    more = {"deep.example.org": ["TXT v=spf1 redirect=yes.example.org"]}
    found = spf("v=spf1 mx:hosts.example.net include:deep.example.org -all", "192.0.2.9", more)
    assert (found.result, found.matched) == (SpfResult.FAIL, "-all")
    found = spf("v=spf1 include:deep.example.org -all", V4, more)
    assert found.matched == "include:deep.example.org > redirect=yes.example.org > ip4:192.0.2.1"
    assert found.record == "v=spf1 include:deep.example.org -all"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v=spf1 a:192.0.2.1 -all", "the SPF record of example.net: a:192.0.2.1 names no domain"),
        ("v=spf1 include:sick.example.net", "the TXT records of sick.example.net could not be looked up (servfail)"),
        ("v=spf1 include:broken.example.org", "the SPF record of broken.example.org: nonsense is no term of SPF"),
        ("v=spf1 a:\x96.net", "the SPF record of example.net: a:\\x96.net names no domain"),
    ],
)
def test_an_error_tells_what_and_where(text: str, problem: str) -> None:
    """Names the record, the term and what is wrong."""
    assert spf(text).problem == problem
