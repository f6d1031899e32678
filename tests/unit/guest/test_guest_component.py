"""The runtime component itself: CPython in wasm, the SDK baked in, a fake host outside."""

from __future__ import annotations

import codecs
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import fake_model as lm
import pytest
from fake_host import FakeHost
from interfaces import ByInterface

from pieray.config import Limits
from pieray.errors import OutOfPages
from pieray.programs.sources import inferlets_folder
from pieray.wasm.host import Outcome, WasmHost
from pieray.wasm.python_runtime import component_path

Run = Callable[..., Outcome]
PROMPT = "abc abc"


class PromptHost(FakeHost):
    """Has a result for every wait, so that the guest never parks: nothing would wake it."""

    def tickets_ready(self, tickets: Any) -> list[int]:
        self._deliver()
        while not (ready := super().tickets_ready(tickets)) and (self.hidden or self.step_plans()):
            if self.hidden:
                self._reveal()
        return ready


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

        wasm.spawn(program, ByInterface(host), Limits(), input=json.dumps(arguments), source=source, on_exit=on_exit)
        assert done.wait(60), "the inferlet does not end"
        return outcomes[0]

    yield run
    wasm.close()


def result(outcome: Outcome) -> Any:
    assert outcome.error is None, outcome.error
    assert outcome.value is not None
    return json.loads(outcome.value)


def streamed(tokens: list[int]) -> str:
    """The text of `tokens` as it streams: without an unfinished character at its end."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(lm.to_bytes(tokens, skip_special=True))


def inferlet(name: str) -> str:
    return (inferlets_folder() / name / "main.py").read_text()


def test_text_completion_streams_what_it_returns(run_component: Run) -> None:
    host = PromptHost()
    found = result(
        run_component(host, inferlet("text-completion"), prompt=PROMPT, max_tokens=30, top_k=3, seed=4, temperature=1.0)
    )
    expected = lm.continuation(lm.tokenize(PROMPT), 30, 1.0, 3, 4)
    text = streamed(expected)
    assert found == {
        "text": text,
        "num_tokens": len(expected) - (expected[-1] == lm.END),
        "finish_reason": "stop" if expected[-1] == lm.END else "length",
    }
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
    host = PromptHost()
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
    host = PromptHost()
    host.fail_pass = lambda _: OutOfPages("no page in 30 s")
    outcome = run_component(host, source)
    assert host.sent == ["no page in 30 s"]
    assert ("warning", "caught no page in 30 s") in host.logs
    assert isinstance(outcome.error, OutOfPages)
    assert 'File "main.py", line 11, in main\n    await ctx.generate(3)' in str(outcome.error)
    assert str(outcome.error).count("File ") == 1


def test_numbers_that_no_handler_takes_are_errors_and_not_the_end_of_the_guest(run_component: Run) -> None:
    source = """
from inferlet import Context, InvalidRequest, forward, kv, queue

def main():
    said = []
    for call in (
        lambda: kv.alloc(-1), lambda: kv.alloc(2**32), lambda: kv.alloc(1.5), lambda: kv.free([-7]),
        lambda: kv.copy(queue.create(), 0, 0, 0, 0, -1), lambda: queue.set_priority(1, 2**31),
        lambda: forward.forward(1, [1], -5, [1]), lambda: forward.forward(1, [1], 0, [2**40]),
        lambda: Context([1, -2]),
    ):
        try:
            call()
            said.append("nothing")
        except InvalidRequest as error:
            said.append(str(error).split("given ")[1])
    return said
"""
    assert result(run_component(PromptHost(), source)) == [
        "-1",
        "4294967296",
        "1.5",
        "-7",
        "-1",
        "2147483648",
        "-5",
        "1099511627776",
        "-2",
    ]


def test_print_goes_to_the_log_line_by_line(run_component: Run) -> None:
    source = (
        "import sys\ndef main():\n    print('one')\n    print('two', file=sys.stderr)\n    print('three', end='')\n"
    )
    host = PromptHost()
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
    assert result(run_component(PromptHost(), source)) == "2d71164201"


def test_random_differs_from_run_to_run_and_repeats_with_the_hosts(run_component: Run) -> None:
    source = "import random\ndef main():\n    return random.random()"
    host = PromptHost()
    first, second = result(run_component(host, source)), result(run_component(host, source))
    assert first != second
    assert result(run_component(PromptHost(), source)) == first


def test_a_launch_asks_for_one_random_number_and_the_programs_own_seed_holds(run_component: Run) -> None:
    source = "import random\ndef main():\n    random.seed(5)\n    return [random.random(), random.Random(6).random()]"
    asked: list[int] = []

    class CountingHost(PromptHost):
        def runtime_random_u64(self) -> int:
            asked.append(super().runtime_random_u64())
            return asked[-1]

    assert result(run_component(CountingHost(), source)) == [Random(5).random(), Random(6).random()]
    assert len(asked) == 1


def test_asyncio_run_works_in_a_plain_main(run_component: Run) -> None:
    source = "import asyncio\nasync def f():\n    return await asyncio.sleep(0, 5)\n"
    source += "def main():\n    return asyncio.run(f())"
    assert result(run_component(PromptHost(), source)) == 5


def test_a_deadlock_is_named(run_component: Run) -> None:
    outcome = run_component(PromptHost(), "import asyncio\nasync def main():\n    await asyncio.Event().wait()\n")
    assert "Deadlock: waiting for nothing" in str(outcome.error)
    assert "main.py:3 (await asyncio.Event().wait())" in str(outcome.error)


def test_wrong_arguments_name_the_parameters(run_component: Run) -> None:
    outcome = run_component(PromptHost(), inferlet("text-completion"), promt="x")
    assert "main() takes prompt: str = '12+7=', max_tokens: int = 64" in str(outcome.error)
    assert "did you mean 'prompt'?" in str(outcome.error)


def test_chat_keeps_a_conversation(run_component: Run) -> None:
    host = PromptHost()
    host.inbox = [(0.0, "one"), (0.0, "two"), (0.0, "")]
    found = result(run_component(host, inferlet("chat"), system="be kind", max_tokens=12))
    assert [turn["user"] for turn in found["turns"]] == ["one", "two"]
    assert host.sent == [turn["assistant"] for turn in found["turns"]]
    host.assert_clean()


def test_prompt_lookup_says_what_greedy_says_in_fewer_passes(run_component: Run) -> None:
    said = lm.continuation(lm.tokenize(PROMPT), 30)
    prompt = PROMPT + lm.detokenize(said[:8], skip_special=True) * 2 + PROMPT
    host = PromptHost()
    found = result(run_component(host, inferlet("speculative-decoding"), chat=False, prompt=prompt, max_tokens=30))
    expected = lm.continuation(lm.tokenize(prompt), 30)
    assert found["text"] == streamed(expected)
    assert found["num_passes"] <= found["num_tokens"] == len(expected)
    assert host.num_passes == found["num_passes"]


def test_beam_search_of_width_one_is_greedy_and_wider_ones_are_no_worse(run_component: Run) -> None:
    expected = lm.continuation(lm.tokenize(PROMPT), 10)
    found = [
        result(run_component(PromptHost(), inferlet("beam-search"), prompt=PROMPT, width=w, max_tokens=10))
        for w in (1, 4)
    ]
    assert found[0]["text"] == lm.detokenize(expected, skip_special=True)
    assert found[1]["logprob"] >= found[0]["logprob"]


def test_best_of_n_keeps_the_most_probable(run_component: Run) -> None:
    host = PromptHost()
    found = result(run_component(host, inferlet("best-of-n"), chat=False, prompt=PROMPT, n=5, max_tokens=8))
    assert found["score"] == max(candidate["score"] for candidate in found["candidates"])
    host.assert_clean()


def test_parallel_gather_is_each_by_itself(run_component: Run) -> None:
    host = PromptHost(order=3)
    prompts = ["one", "two", "three"]
    found = result(run_component(host, inferlet("parallel-gather"), prompts=prompts, max_tokens=9, preamble="a b "))
    expected = [lm.continuation(lm.tokenize("a b " + prompt), 9) for prompt in prompts]
    assert [one["text"] for one in found] == [streamed(tokens) for tokens in expected]
    host.assert_clean()


def test_self_consistency_counts_answers(run_component: Run) -> None:
    host = PromptHost()
    found = result(run_component(host, inferlet("self-consistency"), question="?", n=6, max_tokens=9, answer="([a-h])"))
    assert found["votes"][found["answer"]] == max(found["votes"].values())
    host.assert_clean()


def test_react_agent_ends_without_an_answer_from_a_model_that_cannot_act(run_component: Run) -> None:
    host = PromptHost()
    found = result(run_component(host, inferlet("agent-react"), question="What is 1 plus 2?", max_tokens=9))
    assert found["steps"] == []
    host.assert_clean()


@pytest.mark.parametrize(
    "call",
    [
        "session.send(None)",
        "session.send('\\ud800')",
        "session.emit('\\ud800', 1)",
        "session.send_file(7)",
        "scratch.size(b'a')",
        "scratch.write('\\ud800', b'')",
        "asyncio.run(http.get('http://\\ud800/'))",
        "asyncio.run(http.get('http://a/', headers={'a': '\\ud800'}))",
        "asyncio.run(http.post('http://a/', data='\\ud800'))",
        "asyncio.run(mcp.call(None, 'a'))",
        "asyncio.run(mcp.tools('\\ud800'))",
    ],
)
def test_what_is_no_text_is_an_error_and_no_trap(run_component: Run, call: str) -> None:
    source = f"""
import asyncio
from inferlet import InvalidRequest, http, mcp, scratch, session

def main():
    try:
        {call}
    except InvalidRequest as error:
        return str(error)
"""
    assert "text" in result(run_component(PromptHost(), source))
