"""`engine identity init`."""

from __future__ import annotations

import stat

import pytest
from click.testing import CliRunner

from engine.cli.identity import identity
from engine.identity_file import find_identities
from engine.settings import load_configuration

FLAGS = ["--helo", "probe1.example.net", "--mail-from", "probe@example.net", "--public-ip", "93.184.216.34"]


@pytest.fixture
def init(tmp_path):
    """Runs `identity init` on a settings file; gives (result, path)."""
    path = tmp_path / "new" / "engine.yaml"

    def run(*args):
        return CliRunner().invoke(identity, ["init", "--config", str(path), *args]), path

    return run


def test_init_writes_an_identity_that_can_be_read(init):
    """What was asked for stands in the settings file, for its owner's eyes only, and the records to set are shown."""
    result, path = init(*FLAGS, "--bind", "10.0.0.2", "--pool", "outlook-safe")
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (made,) = find_identities(load_configuration(path, {}))
    assert (made.helo_name, made.bind_v4, made.pool_tags) == ("probe1.example.net", "10.0.0.2", {"outlook-safe"})
    for record in (
        "probe1.example.net. A 93.184.216.34",
        "34.216.184.93.in-addr.arpa. PTR probe1.example.net.",
        'example.net. TXT "v=spf1 ip4:93.184.216.34 -all"',
        "at example.net, postmaster and abuse",
    ):
        assert record in result.output


def test_init_overwrites_nothing_unasked(init):
    """A second init is refused with the place of the first; --force replaces that section and keeps everything else."""
    _, path = init(*FLAGS)
    path.write_text("# ours\nconcurrency: 9  # enough\n" + path.read_text() + "dns: [127.0.0.1:53]\n")
    before = path.read_text()
    result, _ = init(*FLAGS)
    assert result.exit_code == 2
    assert "engine.yaml:3: an identity is there already; --force replaces it" in result.output
    assert path.read_text() == before
    result, _ = init(*FLAGS[:4], "--public-ip", "2606:4700::1111", "--force")
    assert result.exit_code == 0, result.output
    assert path.read_text() == before.replace("93.184.216.34", "2606:4700::1111")


def test_what_is_missing_is_named(init):
    """Off a terminal nothing is asked: the flags that are missing are named, and nothing is written."""
    result, path = init("--helo", "probe1.example.net")
    assert result.exit_code == 2
    assert "--mail-from and --public-ip" in result.output
    assert not path.exists()
