"""`python -m pieray.host.text.text_child`: tokenizes, renders and parses long texts for a `TextWorkers`.

The opening has the tokenizers by model, each request one operation of OPERATIONS; the answer is
[value or None, error's code, error's text, seconds of CPU time].
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pieray.concurrency.child_process import serve
from pieray.errors import PierayError
from pieray.models.tokenizer import Tokenizer, TokenizerSpec

NICE = 5
"""Behind the processes that compute tokens."""
MEMORY_BYTES = 1 << 30
"""Address space for texts, beyond what the process has once it is ready."""


def tokenize(tokenizer: Tokenizer, text: str) -> bytes:
    return np.array(tokenizer.encode(text), "<u4").tobytes()


def detokenize(tokenizer: Tokenizer, tokens: bytes, skip_special: bool) -> str:
    return tokenizer.decode(np.frombuffer(tokens, "<u4").tolist(), skip_special_tokens=skip_special)


def render(
    tokenizer: Tokenizer, messages: str, tools: str, add_generation_prompt: bool, arguments: str, now: int
) -> str:
    return tokenizer.render_json(messages, tools, add_generation_prompt, arguments, now)


def parse(tokenizer: Tokenizer, text: str, is_over: bool) -> str:
    return tokenizer.parse_reply(text, is_over=is_over).to_json()


OPERATIONS: dict[str, Callable[..., Any]] = {one.__name__: one for one in (tokenize, detokenize, render, parse)}


def open_with(opening: dict[str, dict[str, Any]]) -> Callable[[list[Any]], list[Any]]:
    """Raises ModelError for what is no tokenizer."""
    os.nice(NICE)
    tokenizers = {name: Tokenizer(TokenizerSpec(**spec)) for name, spec in opening.items()}

    def answer(request: list[Any]) -> list[Any]:
        operation, model, *arguments = request
        began = time.process_time()
        value, code, text = None, "", ""
        try:
            value = OPERATIONS[operation](tokenizers[model], *arguments)
        except PierayError as error:
            code, text = error.code, error.message
        except BaseException as error:  # noqa: BLE001 - a panic of a library too: the text is at fault
            code, text = PierayError.code, f"{operation} failed: {error!r}"
        return [value, code, text, time.process_time() - began]

    return answer


if __name__ == "__main__":
    serve(open_with, memory_bytes=MEMORY_BYTES)
