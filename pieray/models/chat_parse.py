"""Replies of chat models, taken apart: reasoning, content, calls of tools.

How a model writes calls is told from its chat template, which renders earlier calls that way.  No text is an error:

* A call counts once it has ended; later text never changes it.  Text that only begins a call or a thought (half a tag
  as well) is in neither `content` nor `tool_calls`, and the reply is not complete.
* A call that has ended but is none, for instance because its JSON is broken, stays in `content` as it was written.
* Of a reply that is over, a call whose closing tag is missing counts too, and half a tag is content.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pieray.models.call_formats import Format, format_of
from pieray.models.chat import render_chat
from pieray.models.reply import Reply, without_half_tag

THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


def parse_reply(template: str | None, text: str, *, is_over: bool = False) -> Reply:
    """The parts of what a model with this chat template (None: without one) wrote; `is_over`: no more comes."""
    known = _way_of(template)
    reply = Reply()
    if known.thought is not None:
        text = _take_thought(text, known, reply, is_over=is_over)
    if reply.is_complete:
        known.calls.extract(text, reply, is_over)
        if reply.tool_calls or reply.reasoning or not reply.is_complete:
            reply.content = reply.content.strip()
    return reply


def thought_tags(template: str | None) -> tuple[str, str] | None:
    """What begins and ends a thought of a model with this chat template, if it has any."""
    return _way_of(template).thought


@dataclass(frozen=True, slots=True)
class _Way:
    calls: Format
    thought: tuple[str, str] | None
    begins_thinking: bool
    """The template's generation prompt opens the thought."""


@lru_cache(maxsize=16)
def _way_of(template: str | None) -> _Way:
    text = template or ""
    thought = next((tags for tags in THOUGHTS if tags[0] in text or tags[1] in text), None)
    return _Way(format_of(template), thought, thought is not None and _begins_with(text, thought[0]))


def _begins_with(template: str, tag: str) -> bool:
    try:
        prompt = render_chat(template, [{"role": "user", "content": "a"}], names={"bos_token": "", "eos_token": ""})
    except Exception:  # noqa: BLE001 - a template that refuses this question tells nothing
        return False
    return prompt.rstrip().endswith(tag)


def _take_thought(text: str, known: _Way, reply: Reply, *, is_over: bool) -> str:
    """Move the thought that `text` begins with into the reply; what is behind it."""
    assert known.thought is not None
    opening, closing = known.thought
    rest = text.lstrip()
    if not is_over and len(rest) > 1 and not rest.startswith(opening) and opening.startswith(rest):
        reply.is_complete = False
        return ""
    is_opened = rest.startswith(opening)
    if not is_opened and not known.begins_thinking and closing not in rest:
        return text
    thought, closed, behind = rest.removeprefix(opening).partition(closing)
    reply.is_complete = bool(closed)
    reply.reasoning = (thought if closed or is_over else without_half_tag(thought, closing)[0]).strip()
    return behind
