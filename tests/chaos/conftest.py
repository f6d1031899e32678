"""Engines for all tests that kill or freeze their processes: each test leaves the engine mended, and its pages free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import pieray


@pytest.fixture(scope="session")
def engine(ray_cluster: None, shared: None) -> Iterator[Any]:
    """One as it starts by itself."""
    with pieray.start(namespace="chaos") as started:
        yield started


@pytest.fixture(scope="session")
def dedicated(ray_cluster: None, shared: None) -> Iterator[Any]:
    """One inferlet an actor: those that belong together die apart."""
    with pieray.start(namespace="dedicated", inferlets_per_actor=1, actor_pool=2) as started:
        yield started
