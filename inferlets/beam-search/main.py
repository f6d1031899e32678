"""Beam search: keep the `width` most probable continuations at every step, on KV that they share."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any

from inferlet import Context, model


@dataclass
class Beam:
    """A continuation: its context, the tokens after the prompt, the sum of their log-probabilities."""

    ctx: Context
    tokens: list[int]
    score: float


async def main(prompt: str = "the", width: int = 3, max_tokens: int = 32, chat: bool = False) -> dict[str, Any]:
    """The most probable of the continuations found, by the sum of log-probabilities."""
    stops = model.stop_tokens()
    beams, finished = [Beam(Context.of(prompt, chat=chat), [], 0.0)], []
    for _ in range(max_tokens):
        beams = await step(beams, width)
        finished += [(beam.score, beam.tokens[:-1]) for beam in beams if beam.tokens[-1] in stops]
        beams = [beam for beam in beams if beam.tokens[-1] not in stops]
        best = max((score for score, _ in finished), default=-math.inf)
        if not beams or best >= beams[0].score:
            break  # scores only fall
    finished += [(beam.score, beam.tokens) for beam in beams]
    ranked = sorted(finished, reverse=True)[:width]
    found = [{"text": model.detokenize(tokens, skip_special=True), "logprob": score} for score, tokens in ranked]
    return {"text": found[0]["text"], "logprob": found[0]["logprob"], "beams": found}


async def step(beams: list[Beam], width: int) -> list[Beam]:
    """The `width` best extensions of all beams by one token, best first.  The old beams are used up."""
    spreads = await asyncio.gather(*(beam.ctx.distribution(width) for beam in beams))
    extensions = [
        (beam.score + math.log(probability), index, token)
        for index, (beam, spread) in enumerate(zip(beams, spreads, strict=True))
        for token, probability in spread
        if probability > 0
    ]
    best = sorted(extensions, reverse=True)[:width]
    extended = []
    for score, index, token in best:
        ctx = beams[index].ctx.fork()
        ctx.append([token])
        extended.append(Beam(ctx, [*beams[index].tokens, token], score))
    for beam in beams:
        beam.ctx.close()
    return extended
