"""Laws of the sanity brake: refusals that rest on nothing are questioned before they count."""

from __future__ import annotations

from engine.core.brake import Brake, Doubt, IdentityBrake


def refuse(brake: Brake, domains: list[str]) -> bool:
    tripped = [brake.refused(domain, "550 rejected", 0.0) for domain in domains]
    return any(tripped)


def answer(brake: IdentityBrake, answers: list[tuple[str, bool]]) -> bool:
    tripped = [brake.answered(site, site, unbacked=unbacked) for site, unbacked in answers]
    return any(tripped)


def test_twenty_unbacked_refusals_in_a_row_over_three_domains_trip_it():
    """19 do not, the 20th does, and a row over two domains only does not."""
    brake = Brake()
    assert not refuse(brake, [f"d{i % 3}" for i in range(19)])
    assert refuse(brake, ["d1"])
    assert not refuse(Brake(), [f"d{i % 2}" for i in range(29)])


def test_thirty_in_a_row_at_one_domain_trip_it():
    """One domain that refuses everybody without a word about recipients is questioned too."""
    brake = Brake()
    assert not refuse(brake, ["only"] * 29)
    assert refuse(brake, ["only"])


def test_an_acceptance_starts_the_count_anew():
    """A site that accepts somebody is not blocking us."""
    brake = Brake()
    refuse(brake, [f"d{i % 3}" for i in range(19)])
    brake.accepted()
    assert not refuse(brake, [f"d{i % 3}" for i in range(19)])


def test_an_accepted_positive_control_lets_the_refusals_stand():
    """The doubt ends, and the count starts anew."""
    brake = Brake()
    refuse(brake, [f"d{i % 3}" for i in range(20)])
    assert brake.doubt is Doubt.ASKING
    assert brake.answered(accepted=True, refused_alike=False, now=1.0) is Doubt.NONE
    assert not brake.domains


def test_a_positive_control_refused_in_the_same_words_makes_them_suspect():
    """Then the refusals prove nothing, and the brake names the domains concerned."""
    brake = Brake()
    refuse(brake, [f"d{i % 3}" for i in range(20)])
    assert brake.answered(accepted=False, refused_alike=True, now=1.0) is Doubt.SUSPECT
    assert brake.domains == {"d0", "d1", "d2"}


def test_no_clear_answer_twice_is_suspect_and_the_second_waits():
    """An unclear positive control is asked once more, 15 minutes later."""
    brake = Brake()
    refuse(brake, ["d0", "d1", "d2"] * 7)
    assert brake.answered(accepted=False, refused_alike=False, now=10.0) is Doubt.ASKING
    assert brake.ask_at == 10.0 + 15 * 60
    assert brake.answered(accepted=False, refused_alike=False, now=1000.0) is Doubt.SUSPECT


def test_the_domain_most_refused_gives_the_postmaster():
    """Where nobody was accepted, the positive control asks the domain that refused most."""
    brake = Brake()
    refuse(brake, ["a", "b", "b", "c"])
    assert brake.most_refused == "b"


def test_twenty_of_the_last_25_sites_trip_the_identity():
    """Each site counts once, with its last answer."""
    brake = IdentityBrake()
    assert not answer(brake, [("one-site", True)] * 50)
    assert not answer(brake, [("heard", False)])
    assert not answer(brake, [(f"s{i}", True) for i in range(18)])
    assert brake.answered("s18", "s18", unbacked=True)


def test_twenty_in_a_row_over_all_lanes_trip_the_identity():
    """However few there are at each site. Put-offs between them change nothing; who is heard anywhere starts anew."""
    brake = IdentityBrake()
    for n in range(19):
        assert not brake.answered(f"s{n % 4}", f"d{n % 4}", unbacked=True)
        assert not brake.answered("later", "later", unbacked=False, heard=False)
    assert brake.answered("s0", "d0", unbacked=True)
    assert not answer(brake, [(f"s{n % 2}", True) for n in range(19)])
    assert not answer(brake, [("s0", False), *((f"s{n % 2}", True) for n in range(19))])
    assert brake.answered("s1", "s1", unbacked=True)


def test_an_identity_that_is_accepted_at_a_quarter_of_its_sites_is_never_doubted():
    """Lists with many dead addresses are normal."""
    brake = IdentityBrake()
    assert not answer(brake, [(f"s{i}", i % 4 != 0) for i in range(400)])
