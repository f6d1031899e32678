"""The runtime component itself: CPython in wasm, the SDK baked in, a fake host outside."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_model as lm
import pytest
from fake_host import FakeHost

from pieray.config import Limits
from pieray.errors import GuestFailed, OutOfPages
from pieray.programs import inferlets_folder
from pieray.wasm.host import Outcome, WasmHost
from pieray.wasm.python_runtime import component_path

Run = Callable[..., Outcome]
PROMPT = "abc abc"


@pytest.fixture(scope="module")
def run_component() -> Iterator[Run]:
    """Runs source in the component: run(host, source, **arguments)."""
    wasm = WasmHost()
    program = wasm.load(component_path(), "python-runtime")

    def run(host: FakeHost, source: str, **arguments: object) -> Outcome:
        done, outcomes = threading.Event(), []

        def on_exit(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done.set()

        wasm.spawn(program, host, Limits(), input=json.dumps(arguments), source=source, on_exit=on_exit)
        assert done.wait(60), "the inferlet does not end"
        return outcomes[0]

    yield run
    wasm.close()


def result(outcome: Outcome) -> object:
    assert outcome.error is None, outcome.error
    assert outcome.value is not None
    return json.loads(outcome.value)


def inferlet(name: str) -> str:
    return (inferlets_folder() / name / "main.py").read_text()


def test_text_completion_streams_what_it_returns(run_component: Run) -> None:
    host = FakeHost()
    found = result(run_component(host, inferlet("text-completion"), prompt=PROMPT, max_tokens=30, top_k=3, seed=4,
                                 temperature=1.0))  # fmt: skip
    expected = lm.continuation(lm.tokenize(PROMPT), 30, 1.0, 3, 4)
    text = lm.detokenize([t for t in expected if t != lm.END], skip_special=True)
    assert found == {"text": text, "num_tokens": len(expected) - (expected[-1] == lm.END),
                     "finish_reason": "stop" if expected[-1] == lm.END else "length"}  # fmt: skip
    assert "".join(host.sent) == text
    host.assert_clean()


def test_forks_gathered(run_component: Run) -> None:
    source = """
import asyncio
from inferlet import Context

async def one(ctx, seed):
    async with ctx:
        generation = ctx.generate(10, temperature=1.0, seed=seed, stop_tokens=())
        await generation
        return generation.tokens

async def main(prompt: str):
    async with Context(prompt) as ctx, asyncio.timeout(60):
        await ctx.flush()
        return await asyncio.gather(*(one(ctx.fork(), seed) for seed in range(6)))
"""
    host = FakeHost()
    found = result(run_component(host, source, prompt=PROMPT))
    line = lm.tokenize(PROMPT)
    assert found == [lm.continuation(line, 10, 1.0, seed=s, stop=frozenset()) for s in range(6)]
    host.assert_clean()


def test_a_typed_error_crosses_the_border(run_component: Run) -> None:
    source = """
from inferlet import Context, OutOfPages, Error, log, session

async def main():
    async with Context("abc") as ctx:
        try:
            await ctx.generate(3)
        except OutOfPages as error:
            log.warning("caught %s", error)
            session.send(str(error))
        await ctx.generate(3)
"""
    host = FakeHost()
    host.fail_pass = lambda _: OutOfPages("no page in 30 s")
    outcome = run_component(host, source)
    assert host.sent == ["no page in 30 s"]
    assert ("warning", "caught no page in 30 s") in host.logs
    assert isinstance(outcome.error, GuestFailed)
    assert 'File "main.py", line 11, in main\n    await ctx.generate(3)' in str(outcome.error)
    assert str(outcome.error).count("File ") == 1


def test_print_goes_to_the_log_line_by_line(run_component: Run) -> None:
    source = (
        "import sys\ndef main():\n    print('one')\n    print('two', file=sys.stderr)\n    print('three', end='')\n"
    )
    host = FakeHost()
    run_component(host, source)
    out = "".join(text for level, text in host.logs if level == "fd1")
    assert out == "one\nthree"
    assert "two" in "".join(text for level, text in host.logs if level == "fd2")


def test_the_advertised_modules_are_there(run_component: Run) -> None:
    stdlib = Path(__file__).parents[3] / "pieray" / "guest" / "inferlet" / "_stdlib.py"
    lines = [line for line in stdlib.read_text().splitlines() if line.startswith("import ")]
    source = (
        "\n".join(lines) + "\ndef main():\n    return hashlib.sha256(b'x').hexdigest()[:8] + str(uuid.UUID(int=1))[-2:]"
    )
    assert result(run_component(FakeHost(), source)) == "2d71164201"


def test_random_differs_from_run_to_run_and_repeats_with_the_hosts(run_component: Run) -> None:
    source = "import random\ndef main():\n    return random.random()"
    host = FakeHost()
    first, second = result(run_component(host, source)), result(run_component(host, source))
    assert first != second
    assert result(run_component(FakeHost(), source)) == first


def test_asyncio_run_works_in_a_plain_main(run_component: Run) -> None:
    source = "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 5\ndef main():\n    return asyncio.run(f())"
    assert result(run_component(FakeHost(), source)) == 5


def test_a_deadlock_is_named(run_component: Run) -> None:
    outcome = run_component(FakeHost(), "import asyncio\nasync def main():\n    await asyncio.Event().wait()\n")
    assert "Deadlock: waiting for nothing" in str(outcome.error)
    assert "main.py:3 (await asyncio.Event().wait())" in str(outcome.error)


def test_wrong_arguments_name_the_parameters(run_component: Run) -> None:
    outcome = run_component(FakeHost(), inferlet("text-completion"), promt="x")
    assert "main() takes prompt: str, max_tokens: int = 64" in str(outcome.error)
    assert "did you mean 'prompt'?" in str(outcome.error)
