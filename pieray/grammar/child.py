"""`python -m pieray.grammar.child`: tries grammars for a `Trial`, in a process that may die of them.

The first frame has the tokenizer, each other a grammar; the answer is what is wrong with it, or "".
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from pieray.errors import shortened
from pieray.grammar.source import fault, new_tokenizer
from pieray.grammar.trial import frame, read_frame

STACK_BYTES = 4 << 20
"""Half of what those have that compile the grammar afterwards: what recurses too deep dies here."""
MAX_FAULT = 1000
"""Characters of what is wrong with a grammar: a library's complaint may quote all that it has made of the text."""
MEMORY_BYTES = 512 << 20
"""Address space for grammars, beyond what the process has once it is ready."""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the other side closes."""
    opening = read_frame(requests)
    if opening is None:
        return
    try:
        tokenizer = new_tokenizer(opening["tokenizer"], opening["vocab_size"], tuple(opening["eos_ids"]))
    except ValueError as error:
        _answer(answers, f"llguidance does not read its tokenizer: {error}")
        return
    _answer(answers, "")
    _limit_memory()
    while (asked := read_frame(requests)) is not None:
        try:
            found = fault(tokenizer, asked["kind"], asked["text"])
        except BaseException as error:  # noqa: BLE001 - a panic of llguidance too: the grammar is at fault
            found = str(error) or repr(error)
        _answer(answers, found)


def _answer(answers: BinaryIO, text: str) -> None:
    answers.write(frame(shortened(text, MAX_FAULT)))
    answers.flush()


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but answers goes there
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=serve, args=(sys.stdin.buffer, answers), daemon=True)
    thread.start()
    parent = os.getppid()
    while thread.is_alive() and os.getppid() == parent:  # an orphan must not go on with what takes for ever
        thread.join(1.0)
    os._exit(0)


if __name__ == "__main__":
    main()
