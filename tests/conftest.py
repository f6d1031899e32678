"""Fixtures for tests on the real thing: one Ray and one engine per session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def engine() -> Iterator[object]:
    """A running engine with the embedded model, on a local Ray."""
    import pieray

    with pieray.start(namespace="tests") as started:
        yield started
        assert_pages_return(started)


def assert_pages_return(engine: object, timeout_s: float = 10.0) -> None:
    """Every page comes back once nothing runs; the ledger checks its books as it answers."""
    import time

    deadline = time.monotonic() + timeout_s
    while True:
        (pages,) = [a for a in engine.status()["actors"] if a["role"] == "resource-manager"]  # type: ignore[attr-defined]
        if pages["free"] == pages["total"]:
            return
        running = [row for row in engine.ps() if row["state"] == "running"]  # type: ignore[attr-defined]
        if time.monotonic() > deadline and not running:
            raise AssertionError(f"pages did not return: {pages}")
        assert time.monotonic() < deadline, f"inferlets still run: {running}; {pages}"
        time.sleep(0.05)
