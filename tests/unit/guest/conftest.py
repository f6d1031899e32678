"""The guest SDK in plain CPython, on a fake host that checks the KV of every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fake_host import FakeHost
from guest_install import install


@pytest.fixture(params=["plans", "passes"])
def make_host(request: pytest.FixtureRequest) -> Iterator[Callable[..., FakeHost]]:
    """Makes and installs hosts, those that have plans and those that have none; each must be clean at the end."""
    made: list[FakeHost] = []

    def make(**options: object) -> FakeHost:
        if request.param == "passes":
            options.setdefault("num_plans", 0)
        made.append(install(FakeHost(**options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for host in made:
        host.assert_clean()


@pytest.fixture
def host(make_host: Callable[..., FakeHost]) -> FakeHost:
    return make_host()
