"""One lab for all tests of this folder; each test finds it as the file has it, with nothing remembered."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Iterator

import pytest

from engine.lab import spec
from engine.lab.process import LabProcess


@pytest.fixture(scope="session")
def running() -> Iterator[LabProcess]:
    with LabProcess() as lab:
        yield lab


@pytest.fixture
def lab(running: LabProcess) -> LabProcess:
    running.reset()
    return running


@pytest.fixture(scope="session")
def described() -> spec.Spec:
    """lab.yaml as it is read."""
    return spec.load()


@pytest.fixture
def dial(lab: LabProcess, described: spec.Spec) -> Iterator[Callable[[str], smtplib.SMTP]]:
    """Connects to a host of the lab by its name and reads the greeting, whatever it is, into `greeting`."""
    clients: list[smtplib.SMTP] = []

    def connect(host: str) -> smtplib.SMTP:
        client = smtplib.SMTP(timeout=3, local_hostname="probe.lab")
        clients.append(client)
        client._host = host  # starttls names it
        client.greeting = client.connect(described.hosts[host].ip, lab.smtp_port)
        return client

    yield connect
    for client in clients:
        client.close()
