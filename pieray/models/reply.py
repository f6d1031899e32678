"""What a chat model wrote, taken apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Reply:
    """`tool_calls`: {"name": str, "arguments": object}, with "id" if the model gives one, in order."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    is_complete: bool = True

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__})

    def add(self, call: dict[str, Any] | None, written: str) -> None:
        """Take a call in, or, if it is none, what was written as content."""
        if call is None:
            self.content += written
        else:
            self.tool_calls.append(call)

    def end(self, text: str, openings: Sequence[str], *, is_over: bool) -> None:
        """Take in the text behind the last call, which may end within one of these tags."""
        for opening in () if is_over else openings:
            text, is_half = without_half_tag(text, opening)
            self.is_complete = self.is_complete and not is_half
        self.content += text


def without_half_tag(text: str, tag: str) -> tuple[str, bool]:
    """The text without the beginning of `tag` (two characters at least) that it may end with, and whether it did."""
    for length in range(min(len(text), len(tag) - 1), 1, -1):
        if text.endswith(tag[:length]):
            return text[:-length], True
    return text, False
