"""Jacobi decoding: guess a block of tokens, run it in one pass, take what the model says in its place, and again."""

from typing import Any

from inferlet import Context, model, session


async def main(
    prompt: str = "Repeat: red blue red blue red blue", max_tokens: int = 64, block: int = 8, chat: bool = True
) -> dict[str, Any]:
    """Greedy text, token for token that of decoding one by one: a guess counts when it is a fixed point."""
    stops = model.stop_tokens()
    said: list[int] = []
    num_passes = 0
    async with Context.of(prompt, chat=chat) as ctx:
        guess = ctx.tokens[-block:]
        while len(said) < max_tokens and not (said and said[-1] in stops):
            start = ctx.position
            step = ctx.append(guess).forward()
            told = step.samples(range(-len(guess) - 1, 0))
            await step
            tokens = await told  # the token after each prefix of the guess
            num_passes += 1
            num_right = next(
                (i for i, pair in enumerate(zip(guess, tokens, strict=False)) if pair[0] != pair[1]), len(guess)
            )
            new = until_stop(tokens[: num_right + 1], stops)[: max_tokens - len(said)]
            kept = min(num_right, len(new))  # guessed right: their KV stays
            ctx.truncate(start + kept).append(new[kept:])
            said += new
            guess = [*tokens[num_right + 1 :], *tokens[-1:] * (num_right + 1)][:block]  # the next iterate
    text = model.detokenize([token for token in said if token not in stops], skip_special=True)
    session.send(text)
    return {"text": text, "num_tokens": len(said), "num_passes": num_passes}


def until_stop(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """`tokens` up to the first stop token, that included."""
    end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]
