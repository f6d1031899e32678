"""Children on a running engine: launched by programs, talked to, limited, ended with their parents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from engines import assert_pages_return
from programs import program

import pieray
from pieray.errors import Cancelled, DeadlineExceeded, Denied, QuotaExceeded, RemoteFailed

CHILDREN = {"children": True}
ECHO = """
from inferlet import session
async def main(times=1):
    session.send("ready")
    for _ in range(times):
        session.send((await session.receive()).upper())
    return times
"""


@pytest.fixture(scope="module")
def started(ray_cluster: None) -> Iterator[Any]:
    """Actors so small that a family spreads over several."""
    with pieray.start(namespace=f"children-{time.time_ns()}", inferlets_per_actor=4, child_ceiling=12) as engine:
        yield engine


@pytest.fixture
def engine(started: Any) -> Iterator[Any]:
    yield started
    assert_pages_return(started)


def run(engine: Any, source: str, **options: Any) -> Any:
    capabilities = options.pop("capabilities", CHILDREN)
    limits = options.pop("limits", None)
    process = engine.launch(program(source, "parent"), options, capabilities=capabilities, limits=limits)
    return process.result(timeout=60)


def states(engine: Any) -> dict[str, str]:
    return {row["instance_id"]: row["state"] for row in engine.ps()}


def until_ended(engine: Any, instance_id: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while states(engine).get(instance_id) == "running":
        assert time.monotonic() < deadline, f"{instance_id} still runs"
        time.sleep(0.05)


def test_source_programs_and_functions_give_their_results_and_texts(engine: Any) -> None:
    found = run(
        engine,
        f"""
from inferlet import children, runtime

def whoami(a, b):
    return [a + b, runtime.parent(), runtime.user(), runtime.tenant(), runtime.capabilities()["children"]]

async def main():
    echo = children.launch(source={ECHO!r}, times=2)
    texts = [await echo.receive()]
    for text in ("a", "b"):
        await echo.send(text)
    async for text in echo:
        texts.append(text)
    named = children.launch("text-completion", prompt="12+7=", max_tokens=8)
    function = children.launch(whoami, a=1, b=2)
    return [texts, await echo, (await named)["text"], await function, runtime.instance_id()]
""",
    )
    texts, times, named, (total, parent, user, tenant, may), me = found
    assert texts == ["ready", "A", "B"]
    assert (times, named, total, parent, user, tenant, may) == (2, "19", 3, me, "local", "local", True)


def test_children_talk_over_ray_calls_as_well(engines: Any) -> None:
    found = run(
        engines("ray"),
        f"""
from inferlet import children
async def main():
    child = children.launch(source={ECHO!r})
    await child.send("a")
    return [[text async for text in child], await child]
""",
    )
    assert found == [["ready", "A"], 1]


def test_a_family_spreads_over_actors(engine: Any) -> None:
    found = run(
        engine,
        f"""
import asyncio
from inferlet import children
async def main():
    family = [children.launch(source={ECHO!r}) for _ in range(8)]
    ids = [await child.instance_id() for child in family]
    for child in family:
        await child.receive()
    await asyncio.gather(*(child.send(str(i)) for i, child in enumerate(family)))
    return [ids, [await child.receive() for child in family], [await child for child in family]]
""",
    )
    ids, texts, results = found
    assert (texts, results) == ([str(i) for i in range(8)], [1] * 8)
    assert len([a for a in engine.status()["actors"] if a["role"] == "inferlets"]) > 1
    assert len(set(ids)) == 8


def test_a_childs_errors_are_typed(engine: Any) -> None:
    found = run(
        engine,
        """
from inferlet import Error, children
async def main():
    found = []
    for options in (
        {"source": "def main(): raise ValueError('no luck')"},
        {"source": "def main():\\n    while True: pass", "limits": {"cpu_time_s": 0.2}},
        {"source": "async def main(x): ..."},
        {"source": "def main(:"},
        {"program": "no-such-program"},
    ):
        try:
            await children.launch(options.pop("program", ""), **options)
        except Error as error:
            found.append([error.code, error.message.splitlines()[0][:60]])
    child = children.launch(source="from inferlet import session\\nasync def main(): await session.receive()")
    try:
        await child.wait(timeout=0.05)
    except Error as error:
        found.append([error.code, ""])
    await child.cancel("enough")
    try:
        await child
    except Error as error:
        found.append([error.code, error.message])
    return found
""",
    )
    assert [code for code, _ in found] == ["failed", "quota", "invalid", "failed", "not-found", "deadline", "cancelled"]
    assert "no luck" in found[0][1]
    assert "no-such-program" in found[4][1]
    assert found[6][1] == "enough"


def test_a_linked_childs_failure_ends_its_parent(engine: Any) -> None:
    with pytest.raises(RemoteFailed, match=r"the linked child child-.* failed: (.|\n)*no luck"):
        run(
            engine,
            """
from inferlet import children, session
async def main():
    children.launch(source="def main(): raise ValueError('no luck')", linked=True)
    await session.receive()
""",
        )


@pytest.mark.parametrize("end", ["returns", "fails", "is killed", "closes it", "runs out of time"])
def test_a_child_ends_with_its_parent(engine: Any, end: str) -> None:
    source = program(
        f"""
from inferlet import children, session
async def main(end):
    child = children.launch(source={ECHO!r})
    await child.receive()
    session.send(await child.instance_id())
    if end == "closes it":
        child.close()
    if end == "fails":
        raise ValueError("so it is")
    if end != "returns":
        await session.receive()
""",
        "parent",
    )
    limits = {"wall_time_s": 3.0} if end == "runs out of time" else None
    parent = engine.launch(source, end=end, capabilities=CHILDREN, limits=limits)
    child = next(iter(parent)).text
    if end == "is killed":
        assert states(engine)[child] == "running"
        parent.kill()
    until_ended(engine, child)
    if end == "closes it":
        assert states(engine)[parent.id] == "running"
        parent.kill()
    with pytest.raises((Cancelled, DeadlineExceeded)):  # its own time is its parent's
        engine.attach(child).result(timeout=10)


def test_a_detached_child_lives_on_and_clients_may_attach(engine: Any) -> None:
    child = run(
        engine,
        f"""
from inferlet import children
async def main():
    child = children.launch(source={ECHO!r})
    await child.receive()
    return await child.detach()
""",
    )
    time.sleep(0.3)
    process = engine.attach(child)
    process.send("hello")
    assert process.result(timeout=10) == 1
    assert [event.text for event in process] == ["ready", "HELLO"]


def test_capabilities_and_limits_shrink_on_the_way_down(engine: Any) -> None:
    denied = """
from inferlet import children
async def main():
    await children.launch(source="def main(): ...")
"""
    with pytest.raises(Denied, match="children"):
        run(engine, denied, capabilities={})
    limits = run(
        engine,
        """
from inferlet import children, runtime
def mine():
    return runtime.limits()["limits"]
async def main():
    return [await children.launch(mine, limits={"tickets": 7}), runtime.capabilities()]
""",
        limits={"pages": 16, "wall_time_s": 50.0},
    )[0]
    assert (limits["pages"], limits["tickets"]) == (16, 7)
    assert 0 < limits["wall_time_s"] <= 50


def test_generations_end(engine: Any) -> None:
    depth = """
from inferlet import Error, children, runtime
async def main():
    try:
        return 1 + await children.launch(main)
    except Error as error:
        assert error.code == "quota", error
        return 0
"""
    assert run(engine, depth) == engine.config.limits.child_depth
    assert run(engine, depth, limits={"child_depth": 2}) == 2


def test_a_fork_bomb_stays_within_the_engine_and_leaves_it_whole(engine: Any) -> None:
    bomb = """
import asyncio
from inferlet import Error, children, runtime, session

async def main():
    family = [children.launch(main) for _ in range(4)]
    async def how(child):
        try:
            return await child
        except Error as error:
            return {error.code: 1}
    total = {"ran": 1}
    for counts in await asyncio.gather(*map(how, family)):
        for code, count in counts.items():
            total[code] = total.get(code, 0) + count
    return total
"""
    with pytest.raises(QuotaExceeded):
        run(engine, "from inferlet import children\ndef main(): children.launch(source='x')\n", limits={"children": 0})
    process = engine.launch(program(bomb, "bomb"), capabilities=CHILDREN, limits={"child_depth": 3})
    most = 0
    deadline = time.monotonic() + 90
    while not process.is_done:
        assert time.monotonic() < deadline
        most = max(most, sum(state == "running" for state in states(engine).values()))
        time.sleep(0.1)
    counts = process.result(timeout=1)
    assert most <= 12 + 16  # as many as may be on their way at one time
    assert counts["deadline"] > 0  # no room, told after a while
    assert engine.launch("text-completion", prompt="12+7=", max_tokens=4).result(timeout=30)["text"] == "19"


def test_map_reduce_puts_answers_together(engine: Any) -> None:
    process = engine.launch("map-reduce", questions=["12+7=", "3+4=", "20+31="], width=2)
    assert process.result(timeout=60) == {"answers": {"12+7=": 19, "3+4=": 7, "20+31=": 51}, "total": 77, "failed": {}}
    assert sorted(event.text for event in process) == ["12+7=19\n", "20+31=51\n", "3+4=7\n"]
