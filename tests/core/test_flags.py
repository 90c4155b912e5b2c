"""Laws of the flags: they are read off an address, never a verdict, and never correct a real domain."""

from __future__ import annotations

from timeit import timeit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core import flags as owner
from engine.core.address import Address, parse
from engine.core.flags import DISPOSABLE, FREE, ROLES, TARGETS, Flags, flags, one_slip


def of(text: str) -> Flags:
    address = parse(text)
    assert isinstance(address, Address)
    return flags(address)


@pytest.mark.parametrize(
    "local", ["info", "Sales", "POSTMASTER", "no-reply", "abuse", "info+web", "dev-request", "kontakt"]
)
def test_a_function_is_a_role(local: str) -> None:
    """Role names count in any case and under a tag; a list's -request address is RFC 2142's own."""
    assert of(f"{local}@example.org").role


@pytest.mark.parametrize("local", ["ann", "infoann", "ann.sales", "j.support", "mark", "dean", '"info desk"'])
def test_a_person_is_no_role(local: str) -> None:
    """Only the whole name counts, never a part of it."""
    assert not of(f"{local}@example.org").role


def test_rfc_2142_is_covered() -> None:
    """Every mailbox name of RFC 2142 is a role."""
    names = "info marketing sales support abuse noc security postmaster hostmaster usenet news webmaster www uucp ftp"
    assert set(names.split()) <= ROLES


def test_what_is_below_a_disposable_domain_is_disposable() -> None:
    """Throw-away services hand out subdomains; a name that only ends alike is another domain."""
    assert of("ann@mailinator.com").disposable
    assert of("ann@a.b.mailinator.com").disposable
    assert not of("ann@mailinator.com.example.org").disposable
    assert not of("ann@gmail.com").disposable


def test_free_mail_is_the_exact_domain() -> None:
    """Free-mail is international, and a subdomain or a look-alike is not it."""
    assert all(
        of(f"ann@{domain}").free for domain in ("gmail.com", "GMX.de", "qq.com", "wp.pl", "uol.com.br", "naver.com")
    )
    assert not any(of(f"ann@{domain}").free for domain in ("example.org", "corp.gmail.com", "gmail.com.example.org"))


def test_a_plus_makes_a_tag() -> None:
    """Something before and something after a plus; a hyphen is part of a name."""
    assert [of(f"{local}@yahoo.com").tagged for local in ("ann+list", "ann", "ann+", "+ann", "ann-list")] == [
        True,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gmial.com", "gmail.com"),
        ("gmai.com", "gmail.com"),
        ("gmaill.com", "gmail.com"),
        ("gnail.com", "gmail.com"),
        ("mgail.com", "gmail.com"),
        ("gmail.con", "gmail.com"),
        ("gmail.co", "gmail.com"),
        ("hotmail.co", "hotmail.com"),
        ("gmial.con", "gmail.com"),
        ("hotmial.com", "hotmail.com"),
        ("hotmai.fr", "hotmail.fr"),
        ("yaho.co.uk", "yahoo.co.uk"),
        ("outlok.com", "outlook.com"),
        ("iclould.com", "icloud.com"),
        ("aol.con", "aol.com"),
        ("acme.con", "acme.com"),
        ("acme.ogr", "acme.org"),
    ],
)
def test_a_slip_gets_a_suggestion(typed: str, meant: str) -> None:
    """One slip from a well-known domain, or an ending that does not exist, suggests the whole address meant."""
    assert of(f"Ann.Lee@{typed}").suggestion == f"Ann.Lee@{meant}"


@pytest.mark.parametrize(
    "domain",
    [
        "ymail.com", "mail.com", "email.com", "gmx.de", "gmx.at", "hotmail.fr", "aol.de", "live.nl", "me.com",
        "mac.com", "cloud.com", "fmail.com", "amail.com", "example.org", "acme.co", "google.com", "aoi.com",
        "gmail.example.org", "mail.gmial.com", "bsn.com", "gmailers.com", "lab.lab",
    ],
)  # fmt: skip
def test_a_real_neighbour_is_never_corrected(domain: str) -> None:
    """Known domains, other first letters, short names and further names stay what they are."""
    assert of(f"ann@{domain}").suggestion == ""


def test_no_domain_of_our_lists_is_corrected() -> None:
    """Whatever is known as free-mail or as a target is right as it stands, and no target is disposable."""
    assert [domain for domain in FREE | TARGETS if of(f"ann@{domain}").suggestion] == []
    assert not TARGETS & DISPOSABLE
    assert len(FREE) > 300


def test_a_suggestion_is_never_corrected_again() -> None:
    """Taking a suggestion ends the matter: it has none of its own."""
    for target in TARGETS:
        name, _, ending = target.partition(".")
        for typed in (f"{name[:-1]}.{ending}", f"{name}{name[-1]}.{ending}", f"{name}.con"):
            suggestion = of(f"ann@{typed}").suggestion
            assert not suggestion or not of(suggestion).suggestion


def test_no_slip_of_a_well_known_name_is_overlooked() -> None:
    """Whichever letters were swapped, lost, added or changed: all names are looked at that it can be a slip of."""
    for target in sorted(TARGETS):
        name, _, ending = target.partition(".")
        if len(name) < 5:
            continue
        for i in range(1, len(name)):
            swapped = name[: i - 1] + name[i] + name[i - 1] + name[i + 1 :]
            for typed in (swapped, name[:i] + name[i + 1 :], f"{name[:i]}q{name[i:]}", f"{name[:i]}q{name[i + 1 :]}"):
                domain = f"{typed}.{ending}"
                assert domain in FREE | TARGETS or flags(Address("", "ann", domain)).suggestion, domain


def test_every_entry_is_an_address_part() -> None:
    """The data files hold lower-case names that the engine itself can meet."""
    assert all(parse(f"{role}@example.org").local == role for role in ROLES)  # type: ignore[union-attr]
    assert all(parse(f"ann@{domain}").domain == domain for domain in FREE | TARGETS)  # type: ignore[union-attr]


def _distance(a: str, b: str) -> int:
    """Optimal string alignment distance, by the book."""
    rows = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_one_slip_is_a_distance_of_one(typed: str, meant: str) -> None:
    """A slip is Damerau's distance 1 with the first letter right, or the first two swapped."""
    swapped = typed[:2] == meant[1::-1] and typed[2:] == meant[2:]
    assert one_slip(typed, meant) == (_distance(typed, meant) == 1 and (typed[:1] == meant[:1] or swapped))


def test_flags_cost_little_and_keep_little() -> None:
    """Look-ups by domain are remembered in a bounded number; the bound holds against any list."""
    assert owner._of_domain.cache_info().maxsize == 65_536
    addresses = [Address("", "ann", f"host{n}.example.org") for n in range(2000)]
    assert timeit(lambda: [flags(address) for address in addresses], number=1) < 1.0
