"""What tests of every folder share."""

from __future__ import annotations

import pytest

from engine.core import reply


@pytest.fixture
def plain_python() -> None:
    """For a test that reaches into code to change it: what is compiled (`make test-compiled`) can't be changed."""
    if not reply.__file__.endswith(".py"):
        pytest.skip("compiled code can't be changed while it runs")
