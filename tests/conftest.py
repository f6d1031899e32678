"""Fixtures for tests on the real thing: one local Ray, an engine for each transport, shared by the session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engines import assert_pages_return
from hypothesis import HealthCheck, settings
from rounds import examples

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("PIERAY_ACTOR_POOL", "1")  # by itself it hangs on the machine's cores

# How long an example takes says how busy the machine is: no test fails of it.
settings.register_profile(
    "pieray", settings(), max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("pieray")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Which tests one process of several runs (`--dist loadgroup`): those that share engines, and each other file.

    The largest groups begin, that of the shared engines beside files of units; files that start their own engines are
    small, and are for whichever process has nothing else to do.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        shares = "shared" in getattr(item, "fixturenames", ())
        group = ("chaos" if folder == "chaos" else "engines") if shares else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Without the groups all engines would be in both processes: no run begins then."""
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        pytest.exit("this pytest-xdist does not keep groups of tests together: install what constraints.txt has")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of this process, for all tests that need one."""
    from pieray.cluster import ray_cluster as cluster

    started = cluster.join(None, None)
    yield
    if started:
        import ray

        ray.shutdown()


@pytest.fixture(scope="session")
def shared() -> None:
    """What the session keeps for all tests that ask for it: one process runs them all."""


@pytest.fixture(scope="session")
def engines(ray_cluster: None, shared: None) -> Iterator[Callable[[str], Any]]:
    """Engines by transport, each started when first asked for."""
    import pieray

    running: dict[str, Any] = {}

    def get(transport: str) -> Any:
        if transport not in running:
            running[transport] = pieray.start(namespace=f"tests-{transport}", transport=transport)
        return running[transport]

    yield get
    for engine in running.values():
        assert_pages_return(engine)
        engine.close()


@pytest.fixture
def engine(engines: Callable[[str], Any]) -> Iterator[Any]:
    """The engine that messages over sockets; after each test, all its pages must have returned."""
    found = engines("socket")
    yield found
    assert_pages_return(found)
