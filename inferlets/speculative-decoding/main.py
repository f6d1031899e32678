"""Speculate from the prompt: guess that what followed the last words before follows again, and check in one pass.

Written on the handlers alone (pages, passes, samples), to show that a decoding method needs nothing else.
"""

from typing import Any

from inferlet import chat as templates
from inferlet import forward, kv, model, queue, session


async def main(
    prompt: str = "Repeat: red blue red blue red blue",
    max_tokens: int = 64,
    num_draft: int = 8,
    ngram: int = 2,
    chat: bool = True,
) -> dict[str, Any]:
    """Greedy text, the same as without drafts; `num_passes` tells what the guesses saved."""
    text = templates.render([{"role": "user", "content": prompt}]) if chat else prompt
    tokens = model.tokenize(text)
    stops, end = model.stop_tokens(), len(tokens) + max_tokens
    pages = kv.alloc(-(-(end + num_draft) // kv.page_size()))
    line, stream, num_passes = queue.create(), model.TextStream(), 0
    first, pieces, kv_len = len(tokens), [], 0
    while len(tokens) < end and not (len(tokens) > first and tokens[-1] in stops):
        draft = guess(tokens, ngram, num_draft)
        pending = tokens[kv_len:]
        said = await check(line, pages, kv_len, pending, draft)
        num_passes += 1
        said = until_stop(said, stops)[: end - len(tokens)]
        kv_len = len(tokens) + len(said) - 1  # KV of the rejected drafts lies past this and is overwritten
        tokens += said
        pieces.append(stream.push([token for token in said if token not in stops]))
        session.send(pieces[-1])
    return {"text": "".join(pieces), "num_tokens": len(tokens) - first, "num_passes": num_passes}


def guess(tokens: list[int], ngram: int, num_draft: int) -> list[int]:
    """What followed the latest earlier occurrence of the last `ngram` tokens."""
    tail = tokens[-ngram:]
    for start in range(len(tokens) - ngram - 1, -1, -1):
        if tokens[start : start + ngram] == tail:
            return tokens[start + ngram : start + ngram + num_draft]
    return []


async def check(line: int, pages: list[int], kv_len: int, pending: list[int], draft: list[int]) -> list[int]:
    """Run the draft behind what is pending; the tokens that the model says: the draft as far as it agrees, and one."""
    run = forward.forward(line, pages, kv_len, pending + draft)
    samples = [run.sample(row=len(pending) - 1 + i) for i in range(len(draft) + 1)]
    said: list[int] = []
    for i, sample in enumerate(samples):
        token = (await sample)[0]
        said.append(token)
        if i < len(draft) and token != draft[i]:
            for rest in samples[i + 1 :]:
                rest.cancel()
            break
    return said


def until_stop(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """`tokens` up to the first stop token, that included."""
    for index, token in enumerate(tokens):
        if token in stops:
            return tokens[: index + 1]
    return tokens
