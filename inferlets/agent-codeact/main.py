"""CodeAct: what the model writes as its action is code, and runs in a sandbox of its own: a child with limits."""

import re
from typing import Any

from inferlet import Context, Error, launch, session

OBSERVATION = "Observation:"
SANDBOX = '''
class Names(dict):
    """What the code may use.  Any other bare word is a text."""

    def __missing__(self, name):
        return name

def main(code, ages):
    names = Names(calc=lambda value: value, lookup=lambda name: ages[name], abs=abs, min=min, max=max, sum=sum)
    return eval(code, {"__builtins__": {}}, names)
'''


async def main(
    question: str = "How old are Kemi and Bane together?",
    ages: dict[str, int] | None = None,
    max_steps: int = 5,
    max_tokens: int = 96,
    cpu_time_s: float = 2.0,
) -> dict[str, Any]:
    """`ages`: what the function `lookup` of the sandbox knows.  A mistake is an observation too."""
    ages = {"Kemi": 9, "Bane": 80} if ages is None else ages
    steps: list[dict[str, str]] = []
    async with Context() as ctx:
        ctx.user(f"{question} Use tools.")
        for _ in range(max_steps):
            generation = ctx.generate(max_tokens, stop=OBSERVATION)
            text = await generation
            session.send(text)
            if generation.stopped_by != OBSERVATION:
                return {"answer": text.rpartition("Answer:")[2].strip(), "steps": steps}
            code = re.search(r"Action: (.*)", text)
            observed = await execute(code[1] if code else "", ages, cpu_time_s)
            steps.append({"code": code[1] if code else "", "observation": observed})
            session.send(f"{OBSERVATION} {observed}\n")
            ctx.append(f" {observed}\n")
    return {"answer": None, "steps": steps}


async def execute(code: str, ages: dict[str, int], cpu_time_s: float) -> str:
    """What the code yields, or why it does not: it may loop or fail, and this program goes on."""
    try:
        return str(await launch(source=SANDBOX, code=code, ages=ages, limits={"cpu_time_s": cpu_time_s}))
    except Error as error:
        return f"error: {str(error).strip().splitlines()[-1]}"
