"""The door, hosted in this process, over the engine that the session shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from doors import hosted

from pieray.server.guard import Guard
from pieray.server.keys import Keys


@pytest.fixture(scope="session")
def door(engines: Callable[[str], Any]) -> Iterator[str]:
    """The URL of a door that asks for no keys."""
    with hosted(engines("socket"), Guard()) as url:
        yield url


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    """The keys that `locked` asks for."""
    made = Keys(tmp_path_factory.mktemp("keys") / "keys.db", create=True)
    yield made
    made.close()


@pytest.fixture(scope="session")
def locked(engines: Callable[[str], Any], keys: Keys) -> Iterator[str]:
    """The URL of a door that asks for keys."""
    with hosted(engines("socket"), Guard(keys)) as url:
        yield url
