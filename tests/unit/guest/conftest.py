"""The guest SDK in plain CPython, on a fake host that checks the KV of every pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
from fake_host import FakeHost, interfaces

from pieray.guest import GUEST_ROOT

sys.path.insert(0, str(GUEST_ROOT))

from inferlet import _host, _queues, session


def install(host: FakeHost) -> FakeHost:
    """Serve the SDK from `host`, forgetting the one before."""
    _host.install(interfaces(host, _host.Err))
    _queues.reset()
    session._left.clear()
    return host


@pytest.fixture
def make_host() -> Iterator[Callable[..., FakeHost]]:
    """Makes and installs hosts; each must be clean at the end."""
    made: list[FakeHost] = []

    def make(**options: object) -> FakeHost:
        made.append(install(FakeHost(**options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for host in made:
        host.assert_clean()


@pytest.fixture
def host(make_host: Callable[..., FakeHost]) -> FakeHost:
    return make_host()
