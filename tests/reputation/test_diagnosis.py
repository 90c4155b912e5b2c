"""Which faults of a resolver are seen before its answers are believed."""

from __future__ import annotations

import pytest

from engine.reputation.checker import Checker
from engine.reputation.diagnosis import diagnose


def examined(server, registry, *lists):
    return diagnose(Checker(registry(*lists), [server.address], timeout_s=0.1), nowhere="nowhere.example")


def test_a_fit_resolver_has_no_faults(server, registry, healthy) -> None:
    """NXDOMAIN for what doesn't exist, and lists that answer."""
    found = examined(server, registry, healthy("bl.example"))
    assert (found.faults, found.rewrites, found.asked) == ([], False, 1)


def test_a_rewriting_resolver_is_told(server, registry, healthy, answer) -> None:
    """It answers for names that don't exist, block lists among them."""
    server.scripts["example"] = lambda query, *_: answer(query, "203.0.113.5")
    found = examined(server, registry, healthy("bl.example"))
    assert found.rewrites
    assert "don't exist" in found.faults[0]


def test_a_public_resolver_is_told_with_the_address_that_was_seen(server, registry, blocklist, answer) -> None:
    """The text beside the refusal says whom the list saw."""

    def refusing(query, *_):
        text = query.question[0].rdtype == 16
        return (
            answer(query, "Query Refused [Your DNS IP: 198.51.100.53]", kind="TXT")
            if text
            else answer(query, "127.255.255.254")
        )

    server.scripts["bl.example"] = refusing
    found = examined(server, registry, blocklist("bl.example"))
    assert (found.refused_by, found.seen_as) == (("bl",), "198.51.100.53")
    assert "refused by bl, seen as 198.51.100.53" in found.faults[0]


def test_a_refusal_without_a_text_is_told_too(server, registry, blocklist, answer) -> None:
    """Without the address."""
    server.scripts["bl.example"] = lambda query, *_: answer(query, "127.255.255.254")
    assert examined(server, registry, blocklist("bl.example")).seen_as == ""


def test_a_resolver_through_which_no_list_answers_is_told(server, registry, blocklist) -> None:
    """One silent list is the list's fault; all of them are not."""
    server.scripts["example"] = lambda *_: None
    found = examined(server, registry, blocklist("bl.example"), blocklist("other.example"))
    assert (found.rewrites, found.silent) == (None, 2)
    assert "No list answered" in found.faults[0]


@pytest.mark.parametrize("text", ["[Your DNS IP: 999.1.1.1]", "no address here", "DNS IP: :::::"])
def test_an_address_that_is_none_is_not_shown(server, registry, blocklist, answer, text: str) -> None:
    """A stranger wrote it."""
    server.scripts["bl.example"] = lambda query, *_: (
        answer(query, text, kind="TXT") if query.question[0].rdtype == 16 else answer(query, "127.255.255.254")
    )
    assert examined(server, registry, blocklist("bl.example")).seen_as == ""
