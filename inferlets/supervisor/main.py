"""A supervisor, as Erlang has it: children that fail are launched again, each for itself, up to a number of times."""

import asyncio
import json
from typing import Any

from inferlet import Context, Error, children, gather, session


async def main(
    jobs: list[dict[str, Any]] | None = None,
    source: str = "",
    max_restarts: int = 5,
    backoff_s: float = 0.01,
    limits: dict[str, float] | None = None,
) -> dict[str, Any]:
    """A child for each of `jobs`, the arguments of `source`'s main (else of `work`), with `attempt`: 0, 1, ...

    A child that raises, loops beyond its limits or loses its actor is one that fails.
    """
    jobs = (
        [{"text": "In Vari lives Mavi, aged 89."}, {"text": "My friend Kemi from Bane is 31."}]
        if jobs is None
        else jobs
    )
    ends = await gather(*(supervise(job, source, max_restarts, backoff_s, limits) for job in jobs))
    return {
        "results": [end[0] for end in ends],
        "restarts": [len(end[1]) for end in ends],
        "failures": [end[1] for end in ends],
    }


async def supervise(
    job: dict[str, Any], source: str, max_restarts: int, backoff_s: float, limits: dict[str, float] | None
) -> tuple[Any, list[str]]:
    """The result of a job, or None when its child has failed too often; why it failed, each time."""
    failures: list[str] = []
    while True:
        given = {**job, "attempt": len(failures)}
        child = children.launch(source=source, limits=limits, **given) if source else children.launch(work, **given)
        try:
            async with child:
                return await child, failures
        except Error as error:
            failures.append(str(error).strip().splitlines()[-1])
            session.emit("failed", {"job": job, "why": failures[-1]})
            if len(failures) > max_restarts:
                return None, failures
            await asyncio.sleep(backoff_s * 2 ** (len(failures) - 1))


async def work(text: str, attempt: int, temperature: float = 2.5) -> Any:
    """A careless worker: JSON as the model happens to draw it, or the error of reading that."""
    async with Context.of(f"Extract JSON: {text}", chat=True) as ctx:
        return json.loads(await ctx.collect_text(64, temperature=temperature, seed=attempt))
