"""Random programs over contexts: whatever the order, every text is the model's and every page comes back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

import fake_model as lm
from fake_host import FakeHost
from guest_install import install
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from inferlet import Context
from inferlet._running import run

Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "fork", "truncate", "generate", "leave", "flush", "score", "top", "close", "pair"]),
        st.integers(0, 50),
        st.integers(0, 13),
    ),
    max_size=25,
)


@dataclass
class Program:
    """Contexts beside the tokens that each must hold."""

    lines: list[tuple[Context, list[int]]] = field(default_factory=list)

    async def run(self, steps: list[Step]) -> None:
        for verb, which, amount in [("open", 0, 3), *steps]:
            if verb == "open" or not self.lines:
                self.lines.append((Context(b"start"[: amount + 1]), [*b"start"[: amount + 1]]))
            else:
                await getattr(self, verb)(which % len(self.lines), amount)
            for ctx, tokens in self.lines:
                assert ctx.tokens == tokens
        for ctx, _ in self.lines:
            ctx.close()

    async def append(self, index: int, amount: int) -> None:
        ctx, tokens = self.lines[index]
        more = [*b"lorem ipsum dolor"[:amount]]
        ctx.append(more)
        tokens += more

    async def fork(self, index: int, amount: int) -> None:
        ctx, tokens = self.lines[index]
        self.lines.append((ctx.fork(), list(tokens)))

    async def truncate(self, index: int, amount: int) -> None:
        ctx, tokens = self.lines[index]
        keep = max(1, len(tokens) - amount)
        ctx.truncate(keep)
        del tokens[keep:]

    async def generate(self, index: int, amount: int) -> None:
        ctx, tokens = self.lines[index]
        await ctx.generate(amount, temperature=1.0, seed=amount)
        tokens += lm.continuation(tokens, amount, 1.0, seed=amount)

    async def pair(self, index: int, amount: int) -> None:
        other = (index + 1) % len(self.lines)
        if other != index:
            await asyncio.gather(self.generate(index, amount), self.generate(other, amount + 1))

    async def leave(self, index: int, amount: int) -> None:
        ctx, tokens = self.lines[index]
        goal = len(tokens) + amount // 2 + 1
        async for _ in ctx.generate(amount + 1, stop_tokens=()):
            if ctx.position == goal:
                break
        tokens += lm.continuation(tokens, amount // 2 + 1, stop=frozenset())

    async def flush(self, index: int, amount: int) -> None:
        await self.lines[index][0].flush()

    async def score(self, index: int, amount: int) -> None:
        scores = await self.lines[index][0].logprobs([*b"abcdefghhgfed"[:amount]])
        assert len(scores) == amount

    async def top(self, index: int, amount: int) -> None:
        ctx, tokens = self.lines[index]
        assert await ctx.distribution(amount + 1) == list(lm.distribution(lm.chain_of(tokens))[: amount + 1])

    async def close(self, index: int, amount: int) -> None:
        self.lines.pop(index)[0].close()


@settings(max_examples=examples(80))
@given(steps=STEPS, page_size=st.integers(1, 5), order=st.one_of(st.none(), st.integers(0, 99)))
def test_any_program_gets_the_models_text_and_leaves_nothing(
    steps: list[Step], page_size: int, order: int | None
) -> None:
    host = install(FakeHost(page_size=page_size, order=order, num_queues=4))
    run(Program().run(steps))
    host.assert_clean()


@settings(max_examples=examples(40))
@given(seed=st.integers(0, 10_000))
def test_cancelling_at_any_moment_leaves_contexts_that_go_on(seed: int) -> None:
    rng = Random(seed)
    host = install(FakeHost(page_size=rng.randint(1, 4), order=seed))

    async def main() -> None:
        contexts = [Context(f"line {i}") for i in range(3)]
        works = [
            lambda c: c.collect_text(50, stop_tokens=()),
            lambda c: c.logprobs("abcdefgh"),
            lambda c: c.flush(),
            lambda c: c.distribution(3),
        ]
        tasks = [asyncio.create_task(rng.choice(works)(ctx)) for ctx in contexts]
        for _ in range(rng.randint(0, 12)):
            await asyncio.sleep(0 if rng.random() < 0.5 else 0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for ctx in contexts:
            before = ctx.tokens
            await ctx.generate(4, stop_tokens=())
            assert ctx.tokens == before + lm.continuation(before, 4, stop=frozenset())
            ctx.close()

    run(main())
    host.assert_clean()
