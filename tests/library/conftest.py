"""Fixtures for the tests of the inferlets that come with pieray: the engine that all tests share, and a reference."""

from __future__ import annotations

import pytest
from library import Reference


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The embedded model as transformers runs it."""
    return Reference()
