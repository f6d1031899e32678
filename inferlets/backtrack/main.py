"""Generate with a decode plan, and take back what may not be said: pause, cut, draw another token, go on."""

from collections.abc import Sequence
from typing import Any

from inferlet import Context, Plan, Sampler, kv, model, queue, session


async def main(
    prompt: str = "the",
    avoid: Sequence[str] = ("small", "dog"),
    max_tokens: int = 64,
    max_rewrites: int = 16,
    chat: bool = False,
) -> dict[str, Any]:
    """Greedy text without the texts in `avoid`: where one begins, the next best token stands in its place."""
    tokens = Context().user(prompt).cue().tokens if chat else model.tokenize(prompt)
    pages = kv.alloc(-(-(len(tokens) + max_tokens) // kv.page_size()))
    line, rewrites = queue.create(), []
    with Plan(line, pages, 0, tokens, max_tokens) as plan:
        plan.set_stop(model.stop_tokens())
        plan.start()
        written = Written(plan)
        while (found := await written.read_until(avoid)) and len(rewrites) < max_rewrites:
            rewrites.append(found[0])
            await written.replace(found[1])
        state = plan.state()
        if found:
            await plan.cancel()
    kv.free(pages)
    text = model.detokenize(written.tokens, skip_special=True)
    session.send(text)
    reason = "avoided" if found else state["finish_reason"]
    return {"text": text, "rewrites": rewrites, "finish_reason": reason, "num_steps": state["num_steps"]}


class Written:
    """What a plan has drawn, as far as it is read and kept."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tokens: list[int] = []
        self.banned: dict[int, set[int]] = {}  # by place

    async def read_until(self, avoid: Sequence[str]) -> tuple[str, int] | None:
        """Read on to the first text of `avoid`: it and where its first token stands; None at the end."""
        if found := find(self.tokens, avoid):  # what stands in for one may bring in another
            return found
        async for token in self.plan:
            self.tokens.append(token)
            if found := find(self.tokens, avoid):
                return found
        return None

    async def replace(self, place: int) -> None:
        """Another token at `place`, and go on from there."""
        self.banned = {at: ids for at, ids in self.banned.items() if at <= place}
        self.banned.setdefault(place, set()).add(self.tokens[place])
        await self.cut(place)
        bias: dict[int | str, float] = dict.fromkeys(self.banned[place], float("-inf"))
        with Sampler(temperature=0.0, logit_bias=bias).handle() as chain:
            self.plan.set_sampler(chain.id)
            self.plan.resume()
            self.tokens.append((await self.plan.next())[0])
        await self.cut(place + 1)
        self.plan.set_sampler(0)
        self.plan.resume()

    async def cut(self, length: int) -> None:
        """Pause the plan, and forget what it has drawn behind `length` tokens."""
        await self.plan.pause()
        self.plan.truncate(length)
        del self.tokens[length:]


def find(tokens: list[int], avoid: Sequence[str]) -> tuple[str, int] | None:
    """A text of `avoid` at the end of the tokens, and the token in which it begins."""
    text = model.detokenize(tokens, skip_special=True)
    for bad in avoid:
        start = text.find(bad)
        if start >= 0:
            return bad, next(n for n in range(len(tokens)) if len(model.detokenize(tokens[: n + 1])) > start)
    return None
