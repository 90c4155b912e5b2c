"""Laws of the world that benches ask: each persona answers as it should, changes in mid-run, and the log has it all."""

from __future__ import annotations

import smtplib
import socket
import time
from contextlib import closing

import pytest

from bench.world import Plan, World
from bench.world.persona import LISTED
from engine.net.resolver import Resolver

PERSONAS = ("normal", "catch-all", "tempfailing", "blocking", "greylisting", "slow")


@pytest.fixture(scope="module")
def plan():
    made = Plan()
    made.persona("slow", delay_s=0.1)
    for name in PERSONAS:
        made.site(f"{name}.lab", name)
    return made


@pytest.fixture(scope="module")
def world(plan):
    with World(plan) as running:
        yield running


def asked(world, plan, persona, *recipients):
    with closing(smtplib.SMTP(plan.addresses[f"mx.{persona}.lab"], world.smtp_port, "probe.lab", timeout=5)) as server:
        server.ehlo()
        server.mail("probe@probe.lab")
        codes = [server.rcpt(each)[0] for each in recipients]
        server.quit()
    return codes


@pytest.mark.parametrize(
    ("persona", "codes"),
    [
        ("normal", [250, 550]), ("catch-all", [250, 250]), ("tempfailing", [451, 451]), ("blocking", [554, 554]),
        ("greylisting", [450, 450]),
    ],
)  # fmt: skip
def test_a_persona_answers_as_it_is(world, plan, persona, codes):
    """`user<number>` exists, nobody else does; what a persona says of everybody it says of both."""
    assert asked(world, plan, persona, f"user1@{persona}.lab", f"users@{persona}.lab") == codes


def test_a_persona_changes_in_mid_run(world, plan):
    """From its next command on."""
    world.set("normal", rcpt=LISTED)
    assert asked(world, plan, "normal", "user2@normal.lab") == [554]
    world.set("normal", rcpt="")
    assert asked(world, plan, "normal", "user2@normal.lab") == [250]
    with pytest.raises(ValueError, match="no 'colour'"):
        world.set("normal", colour="red")


def test_the_log_has_every_command_with_its_reply(world, plan):
    """By session, address and the machine's monotonic clock."""
    began = time.monotonic()
    asked(world, plan, "catch-all", "anybody@catch-all.lab")
    rows = [row for row in world.log() if row.t >= began]
    assert [row.event for row in rows] == ["+", "EHLO", "MAIL", "RCPT", "QUIT", "-"]
    assert {row.ip for row in rows} == {plan.addresses["mx.catch-all.lab"]}
    assert [(row.argument, row.code) for row in rows if row.event == "RCPT"] == [("anybody@catch-all.lab", 250)]


def test_a_delay_passes_before_each_reply(world, plan):
    """Greeting, EHLO, MAIL, RCPT and QUIT: five of them."""
    began = time.monotonic()
    asked(world, plan, "slow", "user1@slow.lab")
    assert time.monotonic() - began >= 0.5


def test_a_client_that_leaves_early_disturbs_nobody(world, plan):
    """A reply that is due then goes nowhere."""
    with closing(socket.create_connection((plan.addresses["mx.slow.lab"], world.smtp_port), 5)):
        pass
    assert asked(world, plan, "normal", "user3@normal.lab") == [250]


def test_the_zones_lead_to_the_hosts_and_to_who_asks(world, plan):
    """MX and address of a site, name and address of the identity."""
    address, port = world.dns.split(":")
    with closing(Resolver([(address, int(port))], allow_private=True)) as resolver:
        (host,) = resolver.route("blocking.lab").hosts
        assert (host.name, host.addresses) == ("mx.blocking.lab", (plan.addresses["mx.blocking.lab"],))
        assert resolver.reverse("127.0.0.1") == ("probe.lab",) or list(resolver.reverse("127.0.0.1")) == ["probe.lab"]
