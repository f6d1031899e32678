"""Classifier-free guidance of a language model (Sanchez et al. 2023): two prompts, one text."""

from typing import Any

from inferlet import chat as templates
from inferlet import forward, kv, model, queue, session
from inferlet.tickets import Ticket


class Line:
    """One prompt and its KV; the text is the same behind each."""

    def __init__(self, prompt: str, max_tokens: int) -> None:
        self.pending = model.tokenize(prompt)
        self.pages = kv.alloc(-(-(len(self.pending) + max_tokens) // kv.page_size()))
        self.queue = queue.create()
        self.kv_len = 0

    def logits(self) -> Ticket[list[float]]:
        """Enqueue what is pending; the logits behind it."""
        asked = forward.forward(self.queue, self.pages, self.kv_len, self.pending).logits()
        self.kv_len += len(self.pending)
        return asked


async def main(
    prompt: str, away: str = "", scale: float = 1.5, max_tokens: int = 64, chat: bool = False
) -> dict[str, Any]:
    """Greedy text under guidance."""
    texts = [templates.render([{"role": "user", "content": one}]) if chat else one for one in (prompt, away or "\n")]
    towards, apart = (Line(text, max_tokens) for text in texts)
    stops, stream, pieces, num_tokens = model.stop_tokens(), model.TextStream(), [], 0
    while num_tokens < max_tokens:
        asked = towards.logits(), apart.logits()  # both before either is awaited: they share a step
        good, bad = await asked[0], await asked[1]
        guided = [b + scale * (g - b) for g, b in zip(good, bad, strict=True)]
        token = max(range(len(guided)), key=guided.__getitem__)
        num_tokens += 1
        if token in stops:
            break
        pieces.append(stream.push([token]))
        session.send(pieces[-1])
        towards.pending = apart.pending = [token]
    return {"text": "".join(pieces), "num_tokens": num_tokens}
