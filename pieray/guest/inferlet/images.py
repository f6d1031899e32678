"""Images: what a model that sees makes of them, and how they stand in a conversation.

    photo = await images.see(data)                      # the bytes of a file, or its base64
    ctx.user([photo, "What is this?"])
    answer = await ctx.collect_text(64)

`Context.image` does the first two at once.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from . import _convert, _host, _queues
from . import model as models
from ._waiting import wait_ticket
from .embeds import Embedding
from .errors import InvalidRequest, Unsupported

Data: TypeAlias = bytes | bytearray | str
"""Of a file: its bytes, its base64, or a `data:` URL that holds it."""
Part: TypeAlias = "str | Embedding | Mapping[str, Any]"
"""Of a content: a text, an image, or {"type": "text", "text": ...}."""


async def see(data: Data, *, model: str = "") -> Embedding:
    """The embeddings of an image: JPEG, PNG, WebP, GIF (its first frame) or BMP.

    Raises Unsupported if the model does not see, InvalidRequest for what is no image or is damaged, and QuotaExceeded
    for one of too many bytes or pixels.
    """
    queue = _queues.acquire(model, True)
    try:
        ticket = _host.embeds.image(queue, _base64(data))
        await wait_ticket(ticket)
        handle, num_rows = _host.tickets.take_tokens(ticket)
    finally:
        _queues.release(model, True, queue)
    return Embedding(handle, num_rows)


def rows(width: int, height: int, *, model: str = "") -> int:
    """How many tokens' room an image of that size in pixels takes.  Raises Unsupported if the model does not see."""
    return int(_host.embeds.image_rows(model, width, height))


def token(model: str = "") -> int:
    """What stands for a row of an image among the tokens of a text.  Raises Unsupported if the model does not see."""
    facts = models.info(model).get("image")
    if not facts:
        raise Unsupported(f"{models.info(model)['name']} does not see images")
    return int(facts["token"])


async def seen(messages: Sequence[Mapping[str, Any]], *, model: str = "") -> list[dict[str, Any]]:
    """Messages in OpenAI's form, with the images of `data:` URLs in their contents seen, for `Context.chat`.

    An image at another URL is refused: fetch it with `http` first.
    """
    found = []
    for message in _convert.instances("messages", messages, Mapping):  # type: ignore[type-abstract]
        content = message.get("content")
        if isinstance(content, list):
            content = [await _seen_part(part, model) for part in content]
        found.append({**message, "content": content})
    return found


async def _seen_part(part: Any, model: str) -> Any:
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return part
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str) or not url.startswith("data:"):
        raise InvalidRequest(
            f"an image is given by a data: URL that holds it, nothing is fetched; given {_convert.shown(url)}"
        )
    return await see(url, model=model)


def told(content: Any) -> tuple[Any, list[Embedding]]:
    """A content as a chat template takes it, and the images in it, in order."""
    if isinstance(content, Embedding):
        content = [content]
    if isinstance(content, str | Mapping) or not isinstance(content, Sequence):
        return content, []
    found = [part for part in content if isinstance(part, Embedding)]
    return [_told(part) for part in content], found


def _told(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Embedding):
        return {"type": "image"}
    if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
        raise InvalidRequest(
            f"parts of a content are texts, and images that `images.see` has given; given one of type {part['type']!r}"
        )
    return part


def _base64(data: Data) -> str:
    if isinstance(data, str):
        if not data.startswith("data:"):
            return data
        head, comma, text = data.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidRequest(f"a data: URL of an image is data:image/...;base64,...; given {_convert.shown(head)}")
        return text
    return base64.b64encode(bytes(_convert.instance("an image", data, bytes, bytearray))).decode()
