"""Token healing: a prompt that ends within a token is taken back to before it, and goes on through what was cut."""

import re
from typing import Any

from inferlet import Context, Grammar, model, session


async def main(
    prompt: str = "a small ki", max_tokens: int = 32, num_healed: int = 1, is_healed: bool = True
) -> dict[str, Any]:
    """Greedy text after the prompt.  Its last `num_healed` tokens are drawn again, by tokens that spell the same."""
    tokens = model.tokenize(prompt)
    kept = tokens[: max(len(tokens) - num_healed, 1)] if is_healed else tokens
    tail = model.detokenize(tokens[len(kept) :])
    async with Context(kept) as ctx:
        begins = Grammar.regex(re.escape(tail) + r"(.|\n)*") if tail else None
        generation = ctx.generate(max_tokens, schema=begins)
        text = (await generation)[len(tail) :]
        session.send(text)
        return {"text": text, "healed": tail, "tokens": ctx.tokens}
