"""`python -m pieray.grammar.child`: tries grammars for a `Trial`, in a process that may die of them.

The opening has the tokenizer, each request a grammar; the answer is what is wrong with it, or "".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pieray.concurrency.child_process import serve
from pieray.errors import shortened
from pieray.grammar.source import fault, new_tokenizer

STACK_BYTES = 4 << 20
"""Half of what those have that compile the grammar afterwards: what recurses too deep dies here."""
MEMORY_BYTES = 512 << 20
"""Address space for grammars, beyond what the process has once it is ready."""
MAX_FAULT = 1000
"""Characters of what is wrong with a grammar: a library's complaint may quote all that it has made of the text."""


def open_with(opening: dict[str, Any]) -> Callable[[dict[str, str]], str]:
    """Raises ValueError for a tokenizer that llguidance does not read."""
    try:
        tokenizer = new_tokenizer(opening["tokenizer"], opening["vocab_size"], tuple(opening["eos_ids"]))
    except ValueError as error:
        raise ValueError(f"llguidance does not read its tokenizer: {error}") from None

    def answer(asked: dict[str, str]) -> str:
        try:
            found = fault(tokenizer, asked["kind"], asked["text"])
        except BaseException as error:  # noqa: BLE001 - a panic of llguidance too: the grammar is at fault
            found = str(error) or repr(error)
        return shortened(found, MAX_FAULT)

    return answer


if __name__ == "__main__":
    serve(open_with, stack_bytes=STACK_BYTES, memory_bytes=MEMORY_BYTES)
