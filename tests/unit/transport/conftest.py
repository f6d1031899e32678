"""Folders with short names: a unix socket's path has about a hundred bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In place of pytest's, whose names grow with those of tests and of processes that run them."""
    with tempfile.TemporaryDirectory(prefix="pieray-") as folder:
        yield Path(folder)
