"""`Context.forward`, the adapter of one generation, and how generations tell of their end."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import fake_model as lm
import pytest
from fake_host import FakeHost

import inferlet
from inferlet import Adapter, Context, Finish, InvalidRequest, Token, structured
from inferlet._running import run

PROMPT = "abc abc"


def said(text: str, max_tokens: int) -> list[int]:
    return lm.continuation(lm.tokenize(text), max_tokens, stop=frozenset())


def test_one_pass_answers_several_questions_and_its_kv_counts_once_awaited(host: FakeHost) -> None:
    async def main() -> list[int]:
        async with Context(PROMPT) as ctx:
            for _ in range(5):
                step = ctx.forward()
                drawn, spread = step.sample(), step.distribution(3)
                await step
                assert ctx.sequence.kv_len == ctx.position
                token = (await drawn)[0]
                assert token == (await spread)[0][0]
                ctx.append([token])
            return ctx.tokens[-5:]

    assert run(main()) == said(PROMPT, 5)
    assert host.num_passes == 5
    assert host.num_computed == len(lm.tokenize(PROMPT)) + 4


def test_a_pass_blocks_its_context_until_it_is_awaited_or_given_up(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            step = ctx.forward()
            for change in (ctx.forward, lambda: ctx.truncate(1)):
                with pytest.raises(InvalidRequest, match="running a pass"):
                    change()
            step.cancel()
            assert ctx.sequence.kv_len == 0
            ctx.truncate(1)
            await ctx.forward()
            assert ctx.sequence.kv_len == 1
            generation = ctx.generate(4, stop_tokens=())
            await generation
            assert generation.tokens == lm.continuation(ctx.tokens[:1], 4, stop=frozenset())

    run(main())


def test_events_end_with_how_it_ended(host: FakeHost) -> None:
    async def main() -> None:
        async with Context(PROMPT) as ctx:
            events = [event async for event in ctx.generate(3, stop_tokens=()).events()]
            assert [type(event) for event in events] == [Token, Token, Token, Finish]
            assert events[-1] == Finish("length", None, 3)

    run(main())


def test_json_that_is_cut_says_by_what() -> None:
    class Ctx:
        def generate(self, max_tokens: int, **options: Any) -> Any:
            class Cut(SimpleNamespace):
                def __await__(self) -> Any:
                    return iter_nothing("[1, 2")

            return Cut(finish_reason="length", num_tokens=4)

    def iter_nothing(text: str) -> Any:
        yield from ()
        return text

    with pytest.raises(structured.Mismatch, match=r"ended by 'length' after 4 tokens \(max_tokens 4\): '\[1, 2'"):
        run(structured.collect_json(Ctx(), list[int], 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["plan", "logprobs", "draft"])
def test_all_that_a_generation_runs_goes_through_its_adapter(
    make_host: Callable[..., FakeHost], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    make_host()
    used: list[int] = []
    forward, plans = inferlet._host.forward, inferlet._host.plans
    verify = forward.verify

    def counted(*args: Any) -> Any:
        used.append(args[-1])
        return verify(*args)

    monkeypatch.setattr(forward, "verify", counted)
    monkeypatch.setattr(forward, "set_adapter", lambda handle, adapter: used.append(adapter), raising=False)
    monkeypatch.setattr(plans, "set_adapter", lambda plan, adapter: used.append(adapter), raising=False)

    async def main() -> None:
        async with Context(PROMPT) as ctx:
            options: dict[str, Any] = {"drafter": lambda tokens: []} if way == "draft" else {"logprobs": way != "plan"}
            await ctx.generate(6, stop_tokens=(), adapter=Adapter(7, "seven"), **options)
            assert used
            assert set(used) == {7}
            num_used = len(used)
            await ctx.generate(2, stop_tokens=())
            assert len(used) == num_used
            assert ctx.sequence.adapter is None

    run(main())


def test_what_programs_need_of_asyncio_is_at_hand(host: FakeHost) -> None:
    async def main() -> list[str]:
        async with inferlet.TaskGroup() as group:
            group.create_task(inferlet.sleep(0.01))
        with pytest.raises(TimeoutError):
            async with inferlet.timeout(0.01):
                await inferlet.sleep(5)
        return list(await inferlet.gather(*(Context(PROMPT).collect_text(2, stop_tokens=()) for _ in range(2))))

    one, other = run(main())
    assert one == other
    assert inferlet.launch is inferlet.children.launch
