"""kill -9 of the actor that hosts a child, or its parent: everybody hears of it, nothing is left behind."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from engines import assert_pages_return
from programs import program

from pieray.errors import Cancelled, EngineError, PeerLost
from pieray.transport import Endpoint

CHILD = """
from inferlet import Context, session
async def main():
    async with Context("12+7=") as ctx:
        await ctx.flush()
        session.send("ready")
        await session.receive()
"""
PARENT = program(
    f"""
from inferlet import Error, children, session
async def main(linked=False, num_waits=3):
    child = children.launch(source={CHILD!r}, linked=linked)
    await child.receive()
    session.send(await child.instance_id())
    codes = []
    for ask in (child.wait, child.receive, lambda: child.send("x")):
        try:
            await ask()
        except Error as error:
            codes.append(error.code)
    return codes
""",
    "parent",
)


def pid_of(engine: Any, instance_id: str) -> int:
    """The process that hosts an inferlet."""
    peer_id = Endpoint.from_wire(engine._ask("locate", instance_id)[1]).peer_id
    for actor in engine.status()["actors"]:
        if f"{actor['name']}#{actor['incarnation']}" == peer_id:
            return int(actor["pid"])
    raise AssertionError(f"no actor {peer_id}")


def assert_nothing_is_left(engine: Any) -> None:
    """Once the dead actor is seen to be dead, all pages return."""
    deadline = time.monotonic() + 30
    while True:
        try:
            engine.status()
            break
        except EngineError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert_pages_return(engine)


def family(engine: Any, **arguments: Any) -> tuple[Any, str]:
    parent = engine.launch(PARENT, arguments, capabilities={"children": True})
    return parent, next(iter(parent)).text


def test_a_parent_hears_of_the_death_of_its_childs_actor(dedicated: Any) -> None:
    parent, child = family(dedicated)
    os.kill(pid_of(dedicated, child), signal.SIGKILL)
    assert parent.result(timeout=20) == ["peer-lost", "cancelled", "peer-lost"]
    assert_nothing_is_left(dedicated)


def test_a_linked_parent_fails_with_the_death_of_its_childs_actor(dedicated: Any) -> None:
    parent, child = family(dedicated, linked=True)
    os.kill(pid_of(dedicated, child), signal.SIGKILL)
    with pytest.raises(PeerLost, match="the linked child child-"):
        parent.result(timeout=20)


def test_a_child_does_not_outlive_its_parents_actor(dedicated: Any) -> None:
    parent, child = family(dedicated)
    watched = dedicated.attach(child)
    os.kill(pid_of(dedicated, parent.id), signal.SIGKILL)
    with pytest.raises(Cancelled, match="the actor of its parent is gone"):
        watched.result(timeout=20)
    with pytest.raises(PeerLost):
        parent.result(timeout=20)
    assert_nothing_is_left(dedicated)
