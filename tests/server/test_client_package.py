"""pieray_client, for threads and for event loops, against the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import ECHO, SPIN, program

import pieray
import pieray_client
from pieray.server.keys import Keys
from pieray_client import AsyncClient, Client, Data, FilePart, Log, Result, Text

ROOT = Path(__file__).resolve().parents[2]
ALL = program(
    """
from inferlet import log, scratch, session

async def main(word: str, count: int = 2):
    log.info("begun")
    for _ in range(count):
        session.send(word)
    session.emit("seen", {"word": word})
    path = await session.receive_file()
    scratch.write("out.bin", scratch.read(path)[::-1])
    session.send_file("out.bin")
    return {"said": await session.receive()}
""",
    "all-kinds",
)
SLOW = program(
    """
import asyncio
from inferlet import session

async def main(number: int):
    for i in range(number):
        session.send(str(i))
        await asyncio.sleep(0.05)
    return number
""",
    "slow-count",
)
FAIL = program("def main(): raise ValueError('no')", "fails")


@pytest.fixture(scope="module")
def installed(engines: Any) -> Iterator[None]:
    engine = engines("socket")
    for one in (ALL, ECHO, SLOW, FAIL, SPIN):
        engine.install(one)
    yield
    for one in (ALL, ECHO, SLOW, FAIL, SPIN):
        engine.uninstall(one.name)


@pytest.fixture
def client(door: str, engine: Any, installed: None) -> Iterator[Client]:
    with Client(f"{door}/v1/") as made:
        yield made


def states(engine: Any) -> dict[str, str]:
    return {row["instance_id"]: row["state"] for row in engine.ps()}


def until(holds: Callable[[], Any], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_pieray_has_the_same_classes() -> None:
    assert pieray.Client is Client
    assert pieray.AsyncClient is AsyncClient


def test_a_run_gives_its_result(client: Client) -> None:
    assert client.run("text-completion", prompt="12+7=")["text"] == "19"
    assert client.run("slow-count", {"number": 1}) == 1
    state = client.runs()[-1]
    assert (state.program, state.state, state.error) == ("slow-count", "done", None)
    assert client.state(state.id).result == 1
    assert client.attach(state.id).result() == 1
    assert {"text-completion", "slow-count"} <= {one.name for one in client.programs()}


def test_every_kind_of_event_messages_and_files(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "in.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    with client.launch("all-kinds", word="hey", messages=["done"]) as run:
        run.send_file("in.bin", path)
        events = list(run.events())
        assert [event.number for event in events] == list(range(len(events)))
        assert events[0] == Log(0, "info: begun")
        assert [event.text for event in events if isinstance(event, Text)] == ["hey", "hey"]
        assert [event for event in events if isinstance(event, Data)] == [Data(3, "seen", {"word": "hey"})]
        parts = [event for event in events if isinstance(event, FilePart)]
        assert b"".join(part.data for part in parts) == path.read_bytes()[::-1]
        assert events[-1] == Result(len(events) - 1, {"said": "done"})
        assert [(one.name, one.size) for one in run.files()] == [("out.bin", 256_000)]
        assert run.file("out.bin") == path.read_bytes()[::-1]
        assert list(run) == ["hey", "hey"]
        assert list(run.events(after=len(events) - 2)) == events[-1:]
    given = {"word": "a", "count": 0}
    assert client.run("all-kinds", given, messages=["x"], files={"a": b"abc"}) == {"said": "x"}


def test_a_block_ends_its_run(client: Client, engine: Any) -> None:
    with client.launch("echo") as run:
        run.send("one")
        assert next(iter(run)) == "ONE"
        assert run.state().state == "running"
    until(lambda: states(engine)[run.id] == "killed")
    with pytest.raises(pieray_client.Cancelled):
        run.result()
    with pytest.raises(pieray_client.Conflict):
        run.send("two")


def test_a_timeout_ends_a_run_and_leaves_a_launch(client: Client, engine: Any) -> None:
    before = set(states(engine))
    began = time.monotonic()
    with pytest.raises(pieray_client.TimedOut, match=r"within 0\.5 s"):
        client.run("echo", timeout=0.5)
    assert time.monotonic() - began < 5
    (run_id,) = set(states(engine)) - before
    until(lambda: states(engine)[run_id] == "killed")
    with client.launch("echo", messages=["a"]) as run:
        with pytest.raises(pieray_client.TimedOut):
            run.result(timeout=0.3)
        run.send("end")
        assert run.result(timeout=30) == 1


def test_errors_are_types(client: Client, door: str) -> None:
    with pytest.raises(pieray_client.ProgramFailed, match="ValueError: no") as failed:
        client.run("fails")
    assert failed.value.code == "guest-failed"
    with pytest.raises(pieray_client.RunFailed) as ended:
        client.run("spin", limits={"cpu_time_s": 0.3})
    assert ended.value.code == "quota"
    with pytest.raises(pieray_client.NotFound):
        client.run("nothing")
    with pytest.raises(pieray_client.InvalidRequest) as wrong:
        client.run("slow-count", number="x")
    assert (wrong.value.status, wrong.value.param) == (400, "input")
    for call in (client.attach, client.state, client.kill):
        with pytest.raises(pieray_client.NotFound):
            call("nothing")
    with pytest.raises(pieray_client.Denied):
        client.install("x.py", "def main(): pass\n")
    with Client("http://127.0.0.1:1", max_retries=0) as nobody, pytest.raises(pieray_client.ConnectionFailed):
        nobody.run("echo")


class Breaking(httpx.HTTPTransport):
    """A network that loses the answer of the first launch, and breaks off each stream of events after some bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_lost = 0
        self.num_streams = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if request.method == "POST" and not self.num_lost:
            self.num_lost += 1
            answer.read()
            answer.close()
            raise httpx.ReadError("the answer is lost")
        if request.url.path.endswith("/events"):
            self.num_streams += 1
            answer.stream = Cut(answer.stream)
        return answer


class Cut(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left = 333
        for part in self._stream:
            yield part[:left]
            left -= len(part)
            if left <= 0:
                raise httpx.ReadError("broken off")

    def close(self) -> None:
        self._stream.close()


def test_lost_answers_and_broken_streams_are_made_good(door: str, engine: Any, installed: None) -> None:
    before = set(states(engine))
    network = Breaking()
    with Client(door, transport=network) as client, client.launch("slow-count", number=60) as run:
        events = list(run.events())
        assert [event.text for event in events if isinstance(event, Text)] == [str(i) for i in range(60)]
        assert run.result() == 60
    assert network.num_streams > 3
    assert set(states(engine)) - before == {run.id}


def test_keys_and_admins(locked: str, keys: Keys, engine: Any, installed: None) -> None:
    with Client(locked, max_retries=0) as nobody, pytest.raises(pieray_client.AuthenticationFailed):
        nobody.runs()
    with Client(locked, keys.create(role="admin")) as boss:
        made = boss.install("thrice.py", "def main(x: int): return 3 * x\n")
        assert (made.name, made.version) == ("thrice", "0.0.0")
        assert boss.run("thrice", x=3) == 9
        assert boss.uninstall("thrice") == ["thrice@0.0.0"]
    with Client(locked, keys.create(requests=1), max_retries=0) as busy:
        busy.programs()
        with pytest.raises(pieray_client.Overloaded) as refused:
            busy.programs()
        assert refused.value.retry_after_s >= 1


def test_the_same_for_an_event_loop(door: str, engine: Any, installed: None) -> None:
    async def all_of_it() -> None:
        async with AsyncClient(door) as client:
            results = await asyncio.gather(*(client.run("slow-count", number=n) for n in range(4)))
            assert results == [0, 1, 2, 3]
            async with await client.launch("all-kinds", word="a", count=1) as run:
                await run.send_file("x", b"12")
                await run.send("bye")
                assert [text async for text in run] == ["a"]
                assert await run == {"said": "bye"}
                assert await run.file("out.bin") == b"21"
                assert [one.name for one in await run.files()] == ["out.bin"]
            async with await client.launch("echo") as run:
                with pytest.raises(pieray_client.TimedOut):
                    await run.result(timeout=0.2)
                assert (await run.state()).state == "running"
            assert (await client.state(run.id)).state == "killed"
            attached = await client.attach(run.id)
            with pytest.raises(pieray_client.Cancelled):
                await attached.result()
            with pytest.raises(pieray_client.ProgramFailed):
                await client.run("fails")
            waiting = asyncio.ensure_future(client.run("echo"))
            await asyncio.sleep(0.5)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert "echo" in {one.name for one in await client.programs()}
            assert (await client.runs())[-1].state == "killed", "a cancelled run ends"

    asyncio.run(asyncio.wait_for(all_of_it(), 60))


def test_the_distribution_stands_alone(door: str, engine: Any, tmp_path: Path) -> None:
    """Its wheel needs httpx alone, and runs a program where there is no pieray, torch or Ray."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*pip, "--wheel-dir", str(tmp_path), str(copied(tmp_path))],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        (metadata,) = [content.read(name).decode() for name in names if name.endswith("/METADATA")]
    there = {name for name in names if name.startswith("pieray_client/")}
    assert there == {f"pieray_client/{path.name}" for path in (ROOT / "pieray-client/pieray_client").glob("*.*")}
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert needs == ["Requires-Dist: httpx>=0.28"]
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(wheel)!r})\n"
        "import pieray_client\n"
        f"with pieray_client.Client({door!r}) as client:\n"
        "    print(client.run('text-completion', prompt='12+7=')['text'], pieray_client.__file__)\n"
        "assert not {'pieray', 'torch', 'ray', 'numpy'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"19 {wheel}")


def copied(folder: Path) -> Path:
    """The sources, without what a build leaves in their folder."""
    source = folder / "source"
    for path in (ROOT / "pieray-client").rglob("*"):
        if path.suffix in (".py", ".toml", ".md", ".typed") and "build" not in path.parts:
            target = source / path.relative_to(ROOT / "pieray-client")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return source
