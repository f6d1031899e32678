"""Decode under a grammar in EBNF: at each token only what can still become a sentence of it."""

import re
from typing import Any

from inferlet import Context, Grammar, session

SUMS = """
root   ::= sum ("; " sum){2}
sum    ::= number "+" number "=" number
number ::= digit digit?
digit  ::= [0-9]
"""


async def main(
    prompt: str = "12+7=19; ",
    ebnf: str = SUMS,
    max_tokens: int = 128,
    temperature: float = 1.0,
    seed: int | None = 0,
    chat: bool = False,
) -> dict[str, Any]:
    """Text that the rule `root` describes; `finish_reason` is "length" where `max_tokens` has cut it off."""
    async with Context.of(prompt, chat=chat) as ctx:
        generation = ctx.generate(max_tokens, temperature=temperature, seed=seed, schema=Grammar.lark(lark_of(ebnf)))
        text = await session.stream(generation)
    return {"text": text, "finish_reason": generation.finish_reason}


def lark_of(ebnf: str) -> str:
    """EBNF as llama.cpp and XGrammar write it (`::=`, `root`, `[a-z]`, `#`) in the notation of Lark, for `Grammar`."""
    parts = re.split(r'("(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*)', ebnf)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            rules = re.sub(r"\broot\b", "start", part.replace("::=", ":"))
            parts[i] = re.sub(r"\b[A-Za-z][\w-]*\b", lambda name: name[0].lower().replace("-", "_"), rules)
        elif part.startswith("["):
            parts[i] = "/" + part.replace("/", r"\/") + "/"
        elif part.startswith("#"):
            parts[i] = "//" + part[1:]
    return "".join(parts)
