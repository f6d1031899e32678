"""Continue a prompt that lies between two prompts: the mix of their embeddings."""

from typing import Any

from inferlet import InvalidRequest, embeds, forward, kv, model, queue, session


async def main(a: str = "12+7=", b: str = "35+8=", weight: float = 0.5, max_tokens: int = 32) -> dict[str, Any]:
    """Greedy text after (1 - weight) * embeddings of `a` + weight * embeddings of `b`, of as many tokens each."""
    first, second = model.tokenize(a), model.tokenize(b)
    if len(first) != len(second):
        raise InvalidRequest(f"both prompts have as many tokens; these have {len(first)} and {len(second)}")
    line, length = queue.create(), len(first)
    pages = kv.alloc(-(-(length + max_tokens) // kv.page_size()))
    with embeds.text(first) as one, embeds.text(second) as other:
        values = zip(await one.values(line), await other.values(line), strict=True)
        mixed = [(1 - weight) * x + weight * y for x, y in values]
    with embeds.put(mixed) as prompt:
        (token,) = await forward.forward_embeds(line, pages, 0, [prompt]).sample()
    tokens: list[int] = []
    while token not in model.stop_tokens():
        tokens.append(token)
        if len(tokens) == max_tokens:
            break
        (token,) = await forward.forward(line, pages, length + len(tokens) - 1, [token]).sample()
    kv.free(pages)
    text = model.detokenize(tokens, skip_special=True)
    session.send(text)
    return {"text": text, "num_tokens": len(tokens), "num_prompt": length}
