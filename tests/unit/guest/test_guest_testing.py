"""`inferlet.testing`: what users' own tests run on."""

from __future__ import annotations

import asyncio
import json

import pytest

from inferlet import Context, Sampler, Unsupported, errors, forward, kv, log, model, queue, session, testing


async def complete(prompt: str, max_tokens: int = 64, n: int = 1) -> list[str]:
    async with Context(prompt) as ctx:
        await ctx.flush()
        forks = [ctx.fork() for _ in range(n)]
        texts = [await fork.generate(max_tokens, sampler=Sampler(seed=i)) for i, fork in enumerate(forks)]
        for fork, text in zip(forks, texts, strict=True):
            session.send(text)
            fork.close()
    return texts


def test_the_model_says_what_it_is_told_and_every_page_comes_back() -> None:
    done = testing.run(complete, reply="Grüße, 42!", prompt="Say hello to forty-two people", n=3)
    assert done.result == done.sent == ["Grüße, 42!"] * 3
    assert done.host._pages == {}
    assert testing.run(complete, reply="abcdef", prompt="x", max_tokens=3).result == ["abc"]


def test_a_function_sees_all_of_the_text() -> None:
    seen = []

    def reply(text: str) -> str:
        seen.append(text)
        return "" if text.endswith("!") else "!"

    assert testing.run(complete, reply=reply, prompt="Hey").result == ["!"]
    assert seen == ["Hey", "Hey!"]


def test_messages_chats_logs_and_sleeps() -> None:
    async def main() -> str:
        async with Context() as ctx:
            ctx.user(await session.receive())
            await asyncio.sleep(1000)
            log.info("asked")
            return await ctx.generate(20)

    done = testing.run(main, reply="Fine.", messages=["How are you?"])
    assert (done.result, "info: asked" in done.logs) == ("Fine.", True)
    with pytest.raises(AssertionError, match="waits for ever"):
        testing.run(main, reply="Fine.")


def test_the_bare_handlers_are_there() -> None:
    async def main() -> list[object]:
        q, pages = queue.create(), kv.alloc(1)
        run = forward.forward(q, pages, 0, model.tokenize("ab"))
        ids, (top, _) = await run.sample(), await run.distribution(1)
        return [ids, top, sorted(model.stop_tokens())]

    result = testing.run(main, reply="c").result
    assert result == [[ord("c")], [ord("c")], [testing.END]]


def test_mistakes_are_the_sdks_errors() -> None:
    async def freed() -> None:
        kv.free([99])

    with pytest.raises(errors.BadHandle, match="page 99"):
        testing.run(freed)
    with pytest.raises(errors.InvalidRequest, match="did you mean 'prompt'"):
        testing.run(complete, promt="x")
    with pytest.raises(TypeError, match="JSON"):
        testing.run(object)


def test_a_handler_of_ones_own_or_none() -> None:
    from inferlet import _host

    class Store(testing.Host):
        def store_get(self, key: str) -> int:
            return self.ticket(f"value of {key}")

    def main() -> str:
        return str(_host.tickets.take_text(_host.store.get("k")))

    assert testing.run(main, host=Store()).result == "value of k"
    with pytest.raises(Unsupported, match="has no store_get"):
        testing.run(main)


def test_generations_run_as_plans_as_usual() -> None:
    async def main() -> list[object]:
        async with Context("x") as ctx:
            generation = ctx.generate(9, stop="de", logprobs=True)
            text = await generation
            return [text, generation.is_plan, generation.finish_reason, len(generation.logprobs)]

    done = testing.run(main, reply="abcdef")
    assert done.result == ["abc", True, "stop", 5]
    assert (done.host._plans, done.host._pages) == ({}, {})


class Thinker(testing.Host):
    """Its chat template tells of thoughts."""

    def model_info(self, model: str) -> str:
        return json.dumps({**json.loads(super().model_info(model)), "thought_tags": ["<think>", "</think>"]})


@pytest.mark.parametrize(
    ("reply", "max_tokens", "thought"),
    [("It is 3.</think>Yes", 64, "It is 3."), ("It goes on and on</think>", 5, "It go"), ("Done", 64, "Done")],
)
def test_a_thought_ends_before_what_is_constrained(reply: str, max_tokens: int, thought: str) -> None:
    async def main() -> list[str]:
        async with Context() as ctx:
            found = await ctx.user("1+2?").think(max_tokens)
            return [found, ctx.text]

    done = testing.run(main, host=Thinker(reply))
    found, text = done.result
    assert found == thought
    assert text.startswith(f"user: 1+2?\nassistant: <think>\n{thought}")
    assert text.rstrip().endswith("</think>")
    assert text.count("</think>") == 1


def test_a_model_without_thoughts_says_so() -> None:
    async def main() -> None:
        await Context().user("1+2?").think()

    with pytest.raises(Unsupported, match="no thoughts"):
        testing.run(main, reply="3")
