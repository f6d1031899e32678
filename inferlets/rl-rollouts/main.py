"""Rollouts for reinforcement learning: tokens, log-probabilities, masks, rewards, advantages of groups of answers."""

import re
from statistics import mean, pstdev
from typing import Any

from inferlet import Context, InvalidRequest, gather, model
from inferlet.tools import calculate

TASKS = (("What is 12 plus 7?", "19"), ("Compute 6 times 8.", "48"))


async def main(
    tasks: list[tuple[str, str]] | tuple[tuple[str, str], ...] = TASKS,
    n: int = 4,
    max_tokens: int = 96,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`n` rollouts of each question through the calculator; the reward is 1 if it ends with the right answer.

    `mask` is 1 where the model wrote.  `logprobs` are those of the model at temperature 1, 0 where the tool wrote.
    `advantages` are GRPO's: rewards less the group's mean, over its deviation.
    """
    return list(await gather(*(group(*task, n, max_tokens, temperature, seed) for task in tasks)))


async def group(question: str, answer: str, n: int, max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
    async with Context.of(f"{question} Use tools.", chat=True) as ctx:
        await ctx.flush()
        prompt = ctx.tokens
        rollouts = await gather(
            *(rollout(ctx.fork(), answer, max_tokens, temperature, seed + 1000 * i) for i in range(n))
        )
    rewards = [one["reward"] for one in rollouts]
    spread = pstdev(rewards)
    advantages = [(reward - mean(rewards)) / spread if spread else 0.0 for reward in rewards]
    return {"question": question, "prompt": prompt, "rollouts": rollouts, "advantages": advantages}


async def rollout(ctx: Context, answer: str, max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
    start, logprobs, mask = ctx.position, [], []

    async with ctx:
        for turn in range(6):
            drawn = ctx.generate(
                max_tokens, temperature=temperature, seed=seed + turn, stop="Observation:", logprobs=True
            )
            text = await drawn
            logprobs += drawn.logprobs
            mask += [1] * drawn.num_tokens
            if drawn.stopped_by != "Observation:":
                if isinstance(drawn.stopped_by, int):  # the end of a turn is part of what is learned
                    logprobs.append(drawn.stop_logprob)
                    mask.append(1)
                break
            ctx.append(f" {observed(text)}\n")
            num_told = ctx.position - start - len(mask)
            logprobs += [0.0] * num_told
            mask += [0] * num_told
        text = model.detokenize(ctx.tokens[start:], skip_special=True)
        is_right = re.search(r"Answer: (.*)$", text.strip()) is not None and text.strip().endswith(f"Answer: {answer}")
        return {
            "tokens": ctx.tokens[start:],
            "logprobs": logprobs,
            "mask": mask,
            "text": text,
            "reward": float(is_right),
        }


def observed(text: str) -> str:
    """What the calculator says to the last action."""
    action = re.search(r"Action: calc\((.*)\)", text)
    try:
        return str(calculate(action[1])) if action else "error"
    except InvalidRequest:
        return "error"
