"""The door, hosted in this process, over the engine that the session shares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pieray.server.app import Door
from pieray.server.guard import Guard
from pieray.server.hosting import listening, serve
from pieray.server.keys import Keys


@contextmanager
def hosted(engine: Any, gate: Guard) -> Iterator[str]:
    """The URL of a door over the engine, behind `gate`."""
    ready, leave = threading.Event(), threading.Event()
    bound = listening("127.0.0.1", 0)
    app = Door(engine, model="pie-tiny").app(gate)

    def wants_end() -> float | None:
        return 0.0 if leave.is_set() else None

    hosting = threading.Thread(
        target=serve, args=(app, gate, bound), kwargs={"wants_end": wants_end, "on_ready": ready.set}, daemon=True
    )
    port = bound.getsockname()[1]
    hosting.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{port}"
    leave.set()
    hosting.join(10)
    assert not hosting.is_alive()


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
