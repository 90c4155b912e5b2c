"""Laws of policy files: what is refused and how it is said, how layers add up, and what the shipped files owe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.grammar import Range, Rate
from engine.core.policy import Policy, Source
from engine.core.reasons import REASONS, Category, Stage
from engine.flow.policies import MODEL_ORIGIN, PolicyProblems, check_policies, load_policies, shipped_dir
from engine.flow.policy_file import read_file, well_formed
from engine.flow.policy_model import KEYS, MODEL, build, inherited, texts
from engine.flow.policy_shape import json_schema, shape_errors

DEFAULT = "provider: default\nsessions: {concurrency: 2, rate: 10/min}\n"
MX = 'match: {mx: ["*.example.com"]}\n'
SHIPPED = sorted(path.name for path in shipped_dir().glob("*.yaml"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A shipped set of two: the default and `one`."""
    directory = tmp_path / "shipped"
    directory.mkdir()
    (directory / "default.yaml").write_text(DEFAULT)
    (directory / "one.yaml").write_text("provider: one\n" + MX)
    return directory


def layer(tmp_path: Path, name: str, **files: str) -> Path:
    directory = tmp_path / name
    directory.mkdir()
    for stem, content in files.items():
        (directory / f"{stem}.yaml").write_text(content)
    return directory


def problems(base: Path, *layers: Path) -> list[str]:
    with pytest.raises(PolicyProblems) as caught:
        load_policies(layers, base)
    return [str(problem).replace(f"{base.parent}/", "") for problem in caught.value.problems]


# --- what is refused

_ODD = st.sampled_from([
    None, True, 0, 5, 0.5, "", "x", "5m", "10/min", "1/s..5/s", "*.example.com", "https://example.com/", [], {}, [None],
    ["x"], [{}], {"x": 1}, {"rate": "1/s"}, ["example.com"], [{"for": ["pace"], "say": "x"}],
])  # fmt: skip
_KEY = st.sampled_from(["x", "rate", "match.mx", "pace", "recover", "for", "reason", "provider", "examples", "sources"])


def _inside(node: Any) -> list[Any]:
    """Every map and list in there, itself first."""
    if not isinstance(node, dict | list):
        return []
    return [node, *(each for below in (node.values() if isinstance(node, dict) else node) for each in _inside(below))]


@settings(max_examples=400, deadline=None)
@given(file=st.sampled_from(SHIPPED), where=st.integers(0, 60), which=st.integers(0, 9), key=_KEY | st.none(), odd=_ODD)
def test_pydantic_is_spared_only_where_it_has_nothing_to_say(
    file: str, where: int, which: int, key: str | None, odd: Any
) -> None:
    """It is slow to load, and comes to tell what is wrong: with a shipped file spoilt anywhere it always comes."""
    data = read_file(file, (shipped_dir() / file).read_bytes(), 0).data
    assert well_formed(data)
    places = _inside(data)
    spoilt = places[where % len(places)]
    entries = list(spoilt) if isinstance(spoilt, dict) else list(range(len(spoilt)))
    if entries and key is None:
        spoilt[entries[which % len(entries)]] = odd
    elif isinstance(spoilt, dict) and key is not None:
        spoilt[key] = spoilt.pop(entries[which % len(entries)]) if entries and odd is None else odd
    assert well_formed(data) == (not shape_errors(data))


REFUSED = [
    ("recipients: {rate: 100/mins}", "recipients.rate: '100/mins' is not a rate (expected N/s, N/min, N/h or N/day"),
    ("recipients: {rate: 100}", "recipients.rate: 100 is not a rate"),
    ("recipients: {rate: 60/min..20/min}", "recipients.rate: '60/min..20/min' ends below its start"),
    ("timeouts: {connect: 10}", "timeouts.connect: 10 is not a duration (expected Ns, Nm, Nh, Nd"),
    ("timeouts: {connect: 1:30}", "timeouts.connect: '1:30' is not a duration"),
    ("sessions: {concurency: 2}", "sessions.concurency: unknown key (did you mean 'concurrency'?)"),
    ("session: {rate: 1/min}", "session: unknown key (did you mean 'sessions'?)"),
    ("sessions: 5", "sessions: 5 is not a map (expected keys below it: concurrency, rate, burst)"),
    ("sessions: {concurrency: two}", "sessions.concurrency: 'two' is not a whole number"),
    ("sessions: {concurrency: yes}", "sessions.concurrency: True is not a whole number"),
    ("sessions: {burst: 50}", "sessions.burst: 50 is not a whole number from 1 to 10"),
    ("refusals: {per_session: 1}", "refusals.per_session: 1 is not a whole number from 2 to 100"),
    ("rcpt: maybe", "rcpt: 'maybe' is unknown here (expected informative or uninformative or never)"),
    ("tls: no", "tls: False is unknown here"),
    ("scope: everywhere", "scope: 'everywhere' is unknown here (expected site or provider)"),
    ("pace: {cut: 2}", "pace.cut: 2 is not a share"),
    ("pace: {recover: {step: 1}}", "pace.recover.step: 1 is not a rate"),
    ("control_rcpt: {own_session: 1}", "control_rcpt.own_session: 1 is neither true nor false"),
    ("control_rcpt: {refuses_unknown_domains: [gmail]}", "refuses_unknown_domains: 'gmail' is not a domain"),
    ("retry: {greylist: 5m}", "retry.greylist: '5m' is not a list"),
    ("retry: {greylist: []}", "retry.greylist: the list is empty"),
    ("retry: {greylist: [5m, 7, soon]}", "1h30m); 'soon' is not a duration (expected"),
    ("aliases: [Some One]", "aliases: 'Some One' is not a name"),
    ('terms: {say: "no", see: nowhere}', "terms.see: 'nowhere' is not an address"),
    ('terms: {say: "no", read: 22.11.2026}', "terms.read: '22.11.2026' is not a day (expected YYYY-MM-DD"),
    ('terms: {see: "https://x.example"}', "terms.say: is missing"),
    ("sources: [{for: [limits], say: x}]", "sources[1].for: 'limits' is no key or section"),
    ("sources: [{for: [sessions]}]", "sources[1].say: is missing"),
    ("replies: {code: 550}", "replies: {'code': 550} is not a list"),
    ('replies: [{text: x, examples: ["550 x"]}]', "replies[1].reason: is missing"),
    ("replies: [{text: x, reason: rate_limited}]", "replies[1].examples: is missing"),
    ("replies: [{text: x, reason: rate_limted, examples: [x]}]", "replies[1].reason: 'rate_limted' is no reason code"),
    ('replies: [{text: x, reason: rcpt_ok, examples: ["250 x"]}]', "replies[1].reason: 'rcpt_ok' is nothing that"),
    ('replies: [{code: 250, reason: rate_limited, examples: ["250 x"]}]', "replies[1].code: 250 is not a whole number"),
    ('replies: [{enhanced: 5.1, reason: rate_limited, examples: ["550 x"]}]', "replies[1].enhanced: 5.1 is not an enh"),
    ('replies: [{stage: data, reason: rate_limited, examples: ["550 x"]}]', "replies[1].stage: 'data' is unknown here"),
    ("replies: [{pattern: '(', reason: rate_limited, examples: [x]}]", "replies[1].pattern: '(' is not a regular expr"),
    (r"replies: [{pattern: '(a)\1', reason: rate_limited, examples: [x]}]", "refers back to a group"),
    ('replies: [{reason: rate_limited, examples: ["450 x"]}]', "replies[1]: asks for nothing"),
    ("replies: [{code: 421, reason: rate_limited, examples: [slow]}]", "replies[1].examples[1]: 'slow' is not a reply"),
    (
        'replies: [{code: 421, text: quick, reason: rate_limited, examples: ["421 too quick", "421 too fast"]}]',
        "replies[1].examples[2]: the row does not match its own example '421 too fast'",
    ),
    ('replies: [{code: 450, reason: mailbox_not_found, examples: ["450 x"]}]', "which only a 5yz at RCPT can give"),
    (
        'replies: [{code: 550, stage: mail, reason: mailbox_not_found, examples: ["550 x"]}]',
        "which only a 5yz at RCPT can give",
    ),
    ("tls: require\ntls: never", "tls: is said twice"),
    ("recipients: {per_session: 2, per_transaction: 3}", "recipients.per_transaction: is more than recipients.per_ses"),
    ("pace: {floor: 10/s}", "pace.floor: is faster than recipients.rate starts"),
    ("breaker: {open: 9h}", "breaker.max_open: is shorter than breaker.open"),
    ("control_rcpt: {ttl: 1h}", "control_rcpt.inconclusive_ttl: is longer than control_rcpt.ttl"),
    ("timeouts: {command: 6m}", "timeouts.command: is longer than timeouts.session"),
    ("across_sites: {concurrency: 4}", "across_sites: needs both concurrency and rate"),
    ("across_sites: {concurrency: 1, rate: 5/min}", "across_sites.concurrency: is less than one site's"),
    ("scope: provider\nacross_sites: {concurrency: 4, rate: 5/min}", "across_sites: says nothing with"),
    ("match: {mx: []}", "match.mx: is missing: no mail host is claimed"),
    ("match: null", "match.mx: is missing: no mail host is claimed"),
    ('match: {mx: ["*"]}', "match.mx: '*' is not a pattern of host names"),
    ('match: {mx: [".google.com"]}', "match.mx: '.google.com' is not a pattern of host names"),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_what_is_wrong_is_named_with_file_line_and_key(base: Path, tmp_path: Path, text: str, expected: str) -> None:
    """One problem, one line: the file, the line where it stands, the key, and what is expected."""
    found = problems(base, layer(tmp_path, "own", one=f"# a comment\nprovider: one\n{text}\n"))
    assert len(found) == 1
    assert re.match(r"(own|shipped)/?\S*:[0-9]+: |one\.yaml:[0-9]+: |default\.yaml:[0-9]+: ", found[0]), found
    assert expected in found[0]


def test_the_line_is_where_the_value_stands(base: Path, tmp_path: Path) -> None:
    """Deep in a file, and in a list of rows too."""
    lines = """provider: one

sessions:
  concurrency: 1
  rate: fast
replies:
  - {code: 421, reason: rate_limited, examples: ["421 x"]}
  - code: 421
    reason: rate_limited
    examples:
      - "421 x"
      - "450 x"
"""
    own = layer(tmp_path, "own", one=lines)
    assert problems(base, own) == [
        "own/one.yaml:5: sessions.rate: 'fast' is not a rate (expected N/s, N/min, N/h or N/day, for example 20/min)",
        "own/one.yaml:12: replies[2].examples[2]: the row does not match its own example '450 x'",
    ]


def test_all_problems_are_told_at_once(base: Path, tmp_path: Path) -> None:
    """Of all files, of all kinds; not one a run."""
    own = layer(
        tmp_path,
        "own",
        one="provider: one\nsessions: {rate: 3, burst: 99}\nfoo: 1\n",
        two="provider: two\n",
        three="provider: [\n",
        four="- a list\n",
        five="sessions: {concurrency: 1}\n",
    )
    (own / "six.yaml").write_bytes(b"provider: \xff\n")
    found = problems(base, own)
    assert [line.partition(": ")[0] for line in found] == [
        "own/five.yaml:1",
        "own/four.yaml",
        "own/one.yaml:2",
        "own/one.yaml:2",
        "own/one.yaml:3",
        "own/six.yaml",
        "own/three.yaml:2",
        "own/two.yaml:1",
    ]


def test_yaml_that_refers_to_itself_is_refused(base: Path, tmp_path: Path) -> None:
    """An alias can make a file endless; none is needed here."""
    found = problems(base, layer(tmp_path, "own", one="provider: one\naliases: &a [x, *a]\n"))
    assert "alias" in found[0]


def test_an_equal_pattern_in_one_layer_is_refused(base: Path, tmp_path: Path) -> None:
    """Two files of one directory can't both claim a host by the same words; a later layer may."""
    (base / "two.yaml").write_text('provider: two\nmatch: {mx: ["*.Example.com."]}\n')
    assert problems(base) == ["two.yaml:2: match.mx: '*.Example.com.' is claimed by one too"]
    (base / "two.yaml").unlink()
    found = load_policies([layer(tmp_path, "own", two="provider: two\n" + MX)], base)
    assert found.for_hosts(["mx.example.com"]).name == "two"


def test_an_alias_means_one_provider(base: Path) -> None:
    """Neither a name nor an alias can mean two."""
    (base / "two.yaml").write_text('provider: two\naliases: [one]\nmatch: {mx: ["*.two.com"]}\n')
    assert problems(base) == ["two.yaml:2: aliases: 'one' means one too"]


def test_a_provider_has_one_file_in_a_directory(base: Path) -> None:
    """Else nobody could tell which of the two lies above."""
    (base / "uno.yaml").write_text("provider: one\n")
    assert problems(base) == [
        "uno.yaml:1: provider: 'one' is what one.yaml speaks of too (expected one file a provider and directory)"
    ]


@pytest.mark.parametrize("text", ["aliases: [x]", 'match: {mx: ["*.x.com"]}', "pools: [x]", "terms: {say: x}"])
def test_the_default_says_nothing_about_a_provider(base: Path, text: str) -> None:
    """What is never inherited has no place in default.yaml."""
    (base / "default.yaml").write_text(f"{DEFAULT}{text}\n")
    assert "does not belong into the default policy" in problems(base)[0]


def test_a_set_needs_its_default(base: Path) -> None:
    """And directories that are there, with files in them."""
    (base / "default.yaml").unlink()
    assert problems(base) == ["default.yaml: is missing: every set of policies needs `provider: default`"]
    empty = base.parent / "empty"
    empty.mkdir()
    assert "empty: holds no policy" in "\n".join(problems(base, empty))
    assert "can't be read as a directory" in "\n".join(problems(base, base.parent / "nowhere"))


# --- layers


def test_layers_add_up_key_by_key(base: Path, tmp_path: Path) -> None:
    """Model, default, provider, then each directory in order; each value knows its file."""
    (base / "default.yaml").write_text("provider: default\nsessions: {concurrency: 2, rate: 10/min}\ntls: require\n")
    (base / "one.yaml").write_text(f"provider: one\n{MX}sessions: {{concurrency: 3}}\nretry: {{greylist: [1m, 2m]}}\n")
    first = layer(tmp_path, "first", one="provider: one\nsessions: {concurrency: 4}\nretry: {greylist: [9m]}\n")
    second = layer(tmp_path, "second", mine="provider: one\nsessions: {burst: 2}\n")
    one = load_policies([first, second], base).policies[0]
    assert (one.sessions.concurrency, one.sessions.rate, one.sessions.burst) == (4, Rate(10, 60), 2)
    assert one.tls == "require"
    assert one.retry.greylist_s == (540,)
    assert {
        path: one.origin[path] for path in ("sessions.concurrency", "sessions.rate", "sessions.burst", "scope")
    } == {
        "sessions.concurrency": str(first / "one.yaml"),
        "sessions.rate": "default.yaml",
        "sessions.burst": str(second / "mine.yaml"),
        "scope": MODEL_ORIGIN,
    }


def test_null_goes_back_to_the_model(base: Path, tmp_path: Path) -> None:
    """A key, or a section with all that is in it; the file that did it is the origin."""
    own = layer(tmp_path, "own", one="provider: one\nsessions: null\nrecipients: {rate: null}\n")
    (base / "one.yaml").write_text(f"provider: one\n{MX}recipients: {{rate: 99/min, per_session: 7}}\n")
    one = load_policies([own], base).policies[0]
    model = Policy("x")
    assert one.sessions == model.sessions
    assert one.recipients == replace(model.recipients, per_session=7)
    assert one.origin["sessions.rate"] == str(own / "one.yaml")


def test_what_is_said_of_one_provider_holds_for_no_other(base: Path) -> None:
    """match, aliases, terms, pools and replies are not inherited; all else is."""
    assert {key.path for key in KEYS if not inherited(key.path)} == {
        "aliases",
        "match.mx",
        "match.domains",
        "pools",
        "terms.say",
        "terms.see",
        "terms.read",
    }
    (base / "default.yaml").write_text(
        f'{DEFAULT}replies:\n  - {{code: 421, reason: rate_limited, examples: ["421 x"]}}\n'
    )
    found = load_policies([], base)
    assert len(found.default.replies) == 1
    assert found.policies[0].replies == ()


def test_an_operators_default_lies_below_all_providers(base: Path, tmp_path: Path) -> None:
    """It changes who inherits; what a provider's file says stays."""
    (base / "one.yaml").write_text(f"provider: one\n{MX}sessions: {{concurrency: 3}}\n")
    own = layer(tmp_path, "own", default="provider: default\nsessions: {concurrency: 9, burst: 5}\n")
    found = load_policies([own], base)
    assert (found.default.sessions.concurrency, found.default.sessions.burst) == (9, 5)
    assert (found.policies[0].sessions.concurrency, found.policies[0].sessions.burst) == (3, 5)


def test_later_reply_rows_come_first(base: Path, tmp_path: Path) -> None:
    """The first match wins, so the operator's rows are asked before the shipped ones; null drops those."""
    row = '  - {{code: {}, reason: rate_limited, examples: ["{} x"]}}\n'
    (base / "one.yaml").write_text(f"provider: one\n{MX}replies:\n{row.format(421, 421)}{row.format(450, 450)}")
    own = layer(tmp_path, "own", one=f"provider: one\nreplies:\n{row.format(451, 451)}")
    assert [one.code for one in load_policies([own], base).policies[0].replies] == [451, 421, 450]
    bare = layer(tmp_path, "bare", one="provider: one\nreplies: null\n")
    assert load_policies([own, bare], base).policies[0].replies == ()
    assert [one.code for one in load_policies([bare, own], base).policies[0].replies] == [451]


def test_sources_remember_their_file(base: Path, tmp_path: Path) -> None:
    """A source speaks of its own file's values, also after a later layer replaced them."""
    (base / "one.yaml").write_text(f"provider: one\n{MX}sources: [{{for: [match], say: our guess}}]\n")
    own = layer(tmp_path, "own", one="provider: one\nsources: [{for: [sessions], say: measured}]\n")
    assert load_policies([own], base).policies[0].sources == (
        Source(("sessions",), "measured", file=str(own / "one.yaml")),
        Source(("match",), "our guess", file="one.yaml"),
    )


def test_the_etag_changes_with_any_file(base: Path, tmp_path: Path) -> None:
    """Same files, same etag; one byte more, another."""
    first = load_policies([], base).etag
    assert load_policies([], base).etag == first
    (base / "one.yaml").write_text("provider: one\n" + MX + "# \n")
    assert load_policies([], base).etag != first


# --- the table of keys

whole_seconds = st.integers(1, 300).map(float)
some_rates = st.builds(Rate, st.integers(1, 500), st.sampled_from([1.0, 60.0, 3600.0, 600.0]))


@given(some_rates, whole_seconds, st.lists(whole_seconds, min_size=1, max_size=4), st.booleans())
@settings(max_examples=50)
def test_a_policy_can_always_be_written_down(one: Rate, seconds: float, ladder: list[float], flag: bool) -> None:
    """`build` reads what `texts` writes."""
    chosen = replace(
        Policy("x", aliases=("y",), match_mx=("*.x.com",), tls="never"),
        recipients=replace(Policy("").recipients, rate=Range(one, Rate(one.count * 2, one.period_s))),
        timeouts=replace(Policy("").timeouts, connect_s=seconds),
        retry=replace(Policy("").retry, greylist_s=tuple(ladder)),
        control=replace(Policy("").control, own_session=flag, refuses_unknown_domains=frozenset({"b.com", "a.com"})),
    )
    assert build("x", texts(chosen)) == chosen


def test_the_model_is_a_policy_of_its_own() -> None:
    """What no file sets is what the dataclasses say."""
    assert build("x", MODEL) == Policy("x")


def test_the_schema_knows_every_key() -> None:
    """Editors complete and check what we check; each key says what it means."""
    schema = json_schema()
    json.dumps(schema)
    for key in KEYS:
        node = schema
        for part in key.path.split("."):
            node = node["anyOf"][0] if "anyOf" in node else node
            node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
            node = node["properties"][part]
        assert node["description"] == key.meaning
    assert schema["required"] == ["provider"]
    assert schema["additionalProperties"] is False


# --- the shipped files


def test_the_shipped_files_are_sound() -> None:
    """Every one of them, with every row matching its examples; trusted at start, so checked here."""
    found, count = check_policies()
    assert count == len(SHIPPED) == len(found.policies) + 1
    assert found == load_policies()


REQUIRED = (
    "gmail outlook microsoft365 yahoo icloud mailru yandex gmx tonline orange comcast godaddy zoho qq netease"
    " proofpoint mimecast barracuda cisco inbound-parse default"
)


def test_the_providers_that_matter_are_shipped() -> None:
    """The list of the design, one file each, named as the provider."""
    assert set(REQUIRED.split()) <= {name.removesuffix(".yaml") for name in SHIPPED}
    for name in SHIPPED:
        assert yaml.safe_load((shipped_dir() / name).read_text())["provider"] == name.removesuffix(".yaml")


def test_the_default_sets_every_key() -> None:
    """An operator finds in one file what there is to set."""
    data = yaml.safe_load((shipped_dir() / "default.yaml").read_text())
    for key in KEYS:
        if inherited(key.path) and not key.path.startswith("across_sites"):
            node = data
            for part in key.path.split("."):
                node = node[part]
    assert data["across_sites"] is None


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_says_where_it_comes_from(name: str) -> None:
    """Each section has a source: a fact with its address and the day it was read, or the words `our guess`."""
    data = yaml.safe_load((shipped_dir() / name).read_text())
    told = {key.split(".")[0] for source in data["sources"] for key in source["for"]}
    silent = {"provider", "aliases", "sources", "terms", "replies", "pools"}
    assert set(data) - silent <= told
    for source in data["sources"]:
        assert "our guess" in source["say"] or (source["see"].startswith("https://") and source["read"])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_source_speaks_of_what_its_file_sets(name: str) -> None:
    """No source is left over from a value that went."""
    data = yaml.safe_load((shipped_dir() / name).read_text())
    for source in data["sources"]:
        for key in source["for"]:
            node = data
            for part in key.split("."):
                assert part in node, f"{name}: {key}"
                node = node[part]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("gmail-smtp-in.l.google.com", "gmail"),
        ("alt2.aspmx.l.google.com", "gmail"),
        ("hotmail-com.olc.protection.outlook.com", "outlook"),
        ("example-com.mail.protection.outlook.com", "microsoft365"),
        ("example-com.n-v1.mx.microsoft", "microsoft365"),
        ("mta5.am0.yahoodns.net", "yahoo"),
        ("mx-aol.mail.gm0.yahoodns.net", "yahoo"),
        ("mx3.mail.yahoo.co.jp", "yahoo-japan"),
        ("mx01.mail.icloud.com", "icloud"),
        ("mxs.mail.ru", "mailru"),
        ("mx.yandex.ru", "yandex"),
        ("mx00.emig.gmx.net", "gmx"),
        ("mx-ha02.web.de", "gmx"),
        ("mx00.t-online.de", "tonline"),
        ("smtp-in.orange.fr", "orange"),
        ("mx1a1.comcast.net", "comcast"),
        ("mailstore1.secureserver.net", "godaddy"),
        ("mx.zoho.eu", "zoho"),
        ("mxbiz1.qq.com", "qq"),
        ("163mx01.mxmail.netease.com", "netease"),
        ("mxa-00123.gslb.pphosted.com", "proofpoint"),
        ("eu-smtp-inbound-1.mimecast.com", "mimecast"),
        ("d1234.a.ess.uk.barracudanetworks.com", "barracuda"),
        ("mx1.hc123-4.eu.iphmx.com", "cisco"),
        ("inbound-smtp.eu-west-1.amazonaws.com", "inbound-parse"),
        ("mx.example.org", "default"),
        ("mail.google.com.example.org", "default"),
    ],
)
def test_known_hosts_fall_under_their_provider(host: str, name: str) -> None:
    """Names out of the providers' own DNS."""
    assert load_policies().for_hosts([host]).name == name


def test_only_gmails_own_domains_need_no_control() -> None:
    """Workspace tenants may be catch-all; no other provider is known to refuse everybody."""
    found = load_policies()
    known = {one.name: one.control.refuses_unknown_domains for one in found.policies}
    assert known.pop("gmail") == {"gmail.com", "googlemail.com"}
    assert not any(known.values())


def test_nothing_is_asked_where_the_answer_means_nothing() -> None:
    """Yahoo, Mail.ru and inbound-parse hosts; T-Online without approval; Outlook without an operator's decision."""
    named = {one.name: one for one in load_policies().policies}
    assert {name for name, one in named.items() if one.rcpt == "uninformative"} == {"yahoo", "mailru", "inbound-parse"}
    assert {name for name, one in named.items() if one.rcpt == "never"} == {"tonline"}
    assert {name: one.pools for name, one in named.items() if one.pools} == {"outlook": ("outlook-safe",)}


def test_no_shipped_row_makes_an_invalid_out_of_a_tempfail() -> None:
    """Whatever its examples are, as 4yz they are no verdict, and at MAIL none either."""
    for one in load_policies().policies:
        for row in one.replies:
            if REASONS[row.reason].category is Category.INVALID:
                for text in row.examples:
                    assert not row.matches(450, row.enhanced, text, Stage.RCPT)
                    assert not row.matches(550, row.enhanced, text, Stage.MAIL)


def test_loading_the_shipped_set_needs_no_pydantic() -> None:
    """A start pays for reading the files, not for what checks them."""
    code = "import sys, engine.flow.policies as p; p.load_policies(); sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
