"""Quest: each token reads the pages whose keys may matter most to it, and no others."""

from typing import Any

from inferlet import Context, model, session, tensor

PROMPT = "the quick brown fox jumps over the lazy dog, and so on, as 3+4=7, 20+31=51, 25+45=70, red blue red blue; "


async def main(
    prompt: str = PROMPT, num_pages: int = 4, first_layer: int = 2, max_tokens: int = 32, ignore_eos: bool = False
) -> dict[str, Any]:
    """Greedy text; from `first_layer` on a token's attention reads `num_pages` pages and its own."""
    layers = range(first_layer, model.info()["num_layers"])
    with tensor.pages(lambda bound: bound.max().rank() < num_pages, layers=layers) as program:
        async with Context(prompt) as ctx:
            generation = ctx.generate(max_tokens, programs=[program], stop_tokens=() if ignore_eos else None)
            text = await session.stream(generation)
            return {"text": text, "tokens": ctx.tokens, "num_tokens": generation.num_tokens, **await program.counts()}
