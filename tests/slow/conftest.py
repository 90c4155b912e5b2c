"""Real mail and name servers for the slow tests, one of each a test session; `.ci/fetch-mtas` fetches them.

1. Everything is on loopback under 127.30.0.0/16. All mail hosts listen on one port (`smtp_port`), so one `--smtp-port`
   reaches every rig; which treatment a probe meets is decided by the domain it asks about, through `mail_dns`.
2. A rig shows `address` (its plain host), `port`, `hosts` (name -> Host: ip, domain, catch_all), `domains`,
   `denied_source` and `log`. The table of hosts is at the head of rigs/postfix.py and rigs/exim.py.
3. Who we are is our source address: `SOURCE` (probe.lab) is welcome everywhere, `DENIED` (denied.probe.lab) is on the
   block list and on every rig's own; both have PTR and A. Postscreen and Postgrey remember a source: `fresh_source`
   gives one never seen.
4. Rigs start when a test first asks for them. An absent daemon skips its tests with one line, and fails them where
   `CI` is set.

| fixture | what |
|---------|------|
| postfix | PostfixRig: 9 hosts, three of them postscreen; brings `block_list` |
| greylist | PostgreyRig that Postfix's host `grey` asks; ask for it beside `postfix` |
| exim | EximRig: 4 hosts |
| block_list | RbldnsdRig serving zen.spamhaus.org with `DENIED` listed, on port 53 of an address of its own |
| mail_dns | NsdRig serving lab. (MX and address of every host, probe.lab) and the PTRs |

Zones of a test's own: `contextlib.closing(or_skip(lambda: NsdRig({zone: text}, port, address)))`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import trustme

sys.path.insert(0, str(Path(__file__).parent))  # import-mode=importlib leaves a test's own folder out

from rigs import exim as exim_rig
from rigs import postfix as postfix_rig
from rigs.daemon import DENIED, AbsentError, free_address, free_port, or_skip
from rigs.dns import NsdRig, RbldnsdRig, zone_of
from rigs.postgrey import PostgreyRig

SOURCE = "127.30.8.1"
GREYLIST_ADDRESS = "127.30.3.1"
OURS = f"""\
probe IN A {SOURCE}
probe IN MX 10 probe
denied.probe IN A {DENIED}
"""
REVERSE = "1.8 IN PTR probe.lab.\n1.9 IN PTR denied.probe.lab.\n"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Gives all skips for one absent daemon one place, so that the summary has one line for them."""
    report = yield
    if report.skipped and call.excinfo is not None and isinstance(call.excinfo.value.__context__, AbsentError):
        report.longrepr = (__file__, 1, str(call.excinfo.value.__context__))
    return report


@pytest.fixture(scope="session")
def smtp_port() -> int:
    """The one port of every mail host and of the DNS server."""
    return free_port()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its chain, by a throw-away authority, in one PEM file."""
    file = tmp_path_factory.mktemp("tls") / "mx.pem"
    trustme.CA().issue_cert("mx.postfix.lab", "mx.exim.lab").private_key_and_cert_chain_pem.write_to_path(str(file))
    return file


@pytest.fixture(scope="session")
def fresh_source() -> Callable[[], str]:
    """Gives a loopback source address that no server has seen."""
    numbers = itertools.count(1)
    return lambda: f"127.30.10.{next(numbers)}"


@pytest.fixture(scope="session")
def block_list() -> Iterator[RbldnsdRig]:
    page = "https://www.spamhaus.org/query/ip/"
    rig = or_skip(lambda: RbldnsdRig(postfix_rig.RBL_ZONE, [DENIED], free_address(53), 53, page))
    with contextlib.closing(rig):
        yield rig


@pytest.fixture(scope="session")
def postfix(smtp_port: int, certificate: Path, block_list: RbldnsdRig) -> Iterator[postfix_rig.PostfixRig]:
    policy = f"{GREYLIST_ADDRESS}:{smtp_port}"
    rig = or_skip(lambda: postfix_rig.PostfixRig(smtp_port, certificate, policy=policy, resolver=block_list.address))
    with contextlib.closing(rig):
        yield rig


@pytest.fixture(scope="session")
def greylist(smtp_port: int) -> Iterator[PostgreyRig]:
    with contextlib.closing(or_skip(lambda: PostgreyRig(smtp_port, address=GREYLIST_ADDRESS))) as rig:
        yield rig


@pytest.fixture(scope="session")
def exim(smtp_port: int, certificate: Path) -> Iterator[exim_rig.EximRig]:
    with contextlib.closing(or_skip(lambda: exim_rig.EximRig(smtp_port, certificate))) as rig:
        yield rig


@pytest.fixture(scope="session")
def mail_dns(smtp_port: int) -> Iterator[NsdRig]:
    hosts = zone_of([*postfix_rig.HOSTS.values(), *exim_rig.HOSTS.values()])
    zones = {"lab": OURS + hosts, "30.127.in-addr.arpa": REVERSE}
    with contextlib.closing(or_skip(lambda: NsdRig(zones, smtp_port))) as rig:
        yield rig
