"""The launch path belongs to nobody: what one tenant has compiled holds up no launch of another's, no `ps`, no kill."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from components import bomb, component

import pieray
from pieray import ProgramSource
from pieray.errors import InvalidRequest, NotFound
from pieray.messages import Launch, encode

NUM_BOMBS = 16
QUICK = ProgramSource("quick", "quick.py", source="async def main(): return 7")


@pytest.fixture
def fresh(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine of this test's own: what it has compiled when the test is over ends with it."""
    with pieray.start(namespace=f"launch-path-{secrets.token_hex(3)}") as engine:
        yield engine


def timed(call: Callable[[], Any]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def launch_unawaited(engine: Any, content: bytes, tenant: str) -> str:
    """As a client does that does not wait for its inferlet to start."""
    message = Launch(f"bomb-{secrets.token_hex(4)}", "bomb", "bomb.wasm", "", content, "{}", {}, tenant=tenant)
    engine._ask("launch", encode([message]))
    return message.instance_id


def test_compilations_of_one_tenant_hold_up_nobody(fresh: Any) -> None:
    """16 components of 890 KB, one huge function each: before, a launch and `ps` failed at 60 s beside them."""

    def run() -> None:
        assert fresh.launch(QUICK).result(timeout=60) == 7

    run()
    alone = timed(run)
    salt = secrets.randbits(60)
    began = time.monotonic()
    bombs = [launch_unawaited(fresh, bomb(1, 4700, salt + n), "greedy") for n in range(NUM_BOMBS)]
    assert time.monotonic() - began < 60.0  # minutes, if each were compiled first
    fresh.tenant = "modest"
    beside = [timed(run) for _ in range(5)]
    assert {row["instance_id"]: row["state"] for row in fresh.ps()}[bombs[-1]] == "starting"
    assert min(beside) < 20 * alone + 1.0  # both cores compile, and other tests may run
    own = ProgramSource("own", "own.wasm", component=bomb(1, 10, salt - 1))
    assert timed(lambda: fresh.launch(own)) < 60.0  # compiled at once: the greedy tenant has not all compilers
    for instance_id in bombs:
        fresh.kill(instance_id)
    assert {row["state"] for row in fresh.ps() if row["instance_id"] in bombs} == {"killed"}
    with pytest.raises(NotFound):
        fresh.kill("bomb-unknown")


def test_a_component_that_cannot_be_is_the_launch_that_fails(engine: Any) -> None:
    """Whether it must be compiled first or not."""
    bad = ProgramSource("bad", "bad.wasm", component=component() + secrets.token_bytes(16))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="bad is no valid component"):
            engine.launch(bad)
