"""Lookahead decoding: Jacobi iterations in a window leave n-grams behind, and these are verified in the same pass."""

from array import array
from typing import Any

from inferlet import chat as templates
from inferlet import forward, kv, model, queue, session


async def main(
    prompt: str = "Repeat: red blue red blue red blue",
    max_tokens: int = 64,
    window: int = 6,
    ngram: int = 4,
    num_guesses: int = 4,
    chat: bool = True,
) -> dict[str, Any]:
    """Greedy text, token for token that of decoding one by one, in fewer passes."""
    tokens = model.tokenize(templates.render([{"role": "user", "content": prompt}]) if chat else prompt)
    stops, first, end, kv_len, num_passes = model.stop_tokens(), len(tokens), len(tokens) + max_tokens, 0, 0
    line = queue.create()
    pages = kv.alloc(-(-(end + (ngram - 1) * (window + num_guesses)) // kv.page_size()))
    rows = [(tokens * window)[i : i + window] for i in range(ngram - 1)]  # of the iterations before, the oldest first
    pool: dict[int, list[tuple[int, ...]]] = {}
    for i in range(len(tokens) - ngram):
        remember(pool, tokens[i : i + ngram])
    while len(tokens) < end and not (len(tokens) > first and tokens[-1] in stops):
        guesses = pool.get(tokens[-1], [])[-num_guesses:]
        pending = tokens[kv_len:]
        batch = Batch(kv_len, pending)
        for r, row in enumerate(rows):
            for c, token in enumerate(row):  # it sees the first row up to its column, and its column up to its row
                batch.add(token, 1 + r + c, [*range(c + 1), *(k * window + c for k in range(1, r + 1))])
        for guess in guesses:
            base = batch.num_added
            for i, token in enumerate(guess):
                batch.add(token, 1 + i, range(base, base + i + 1))
        step = forward.forward(line, pages, kv_len, batch.tokens, batch.positions, batch.mask())
        here, ahead = len(pending) - 1, len(pending) + (ngram - 2) * window
        behind = len(pending) + (ngram - 1) * window
        said = await step.samples([here, *range(ahead, ahead + window), *range(behind, len(batch.tokens))])
        num_passes += 1
        news, checks = said[1 : 1 + window], said[1 + window :]
        for c in range(window):
            remember(pool, [*(row[c] for row in rows), news[c]])
        rows = [*rows[1:], news]
        best, source, size = [said[0]], 0, kv.page_size()
        for g, guess in enumerate(guesses):
            told = [said[0], *checks[g * (ngram - 1) : (g + 1) * (ngram - 1)]]
            num_right = next((i for i, token in enumerate(guess) if told[i] != token), len(guess))
            if num_right >= len(best):
                best, source = told[: num_right + 1], kv_len + behind + g * (ngram - 1)
        for i in range(len(best) - 1):  # the KV of what was guessed right moves behind the text
            place = len(tokens) + i
            kv.copy(line, pages[(source + i) // size], (source + i) % size, pages[place // size], place % size, 1)
        kv_len = len(tokens) + len(best) - 1
        kv.truncate(pages, kv_len)
        stop = next((i + 1 for i, token in enumerate(best) if token in stops), len(best))
        tokens += best[:stop][: end - len(tokens)]
    text = model.detokenize([token for token in tokens[first:] if token not in stops], skip_special=True)
    session.send(text)
    return {"text": text, "num_tokens": len(tokens) - first, "num_passes": num_passes}


def remember(pool: dict[int, list[tuple[int, ...]]], gram: list[int]) -> None:
    """Keep an n-gram by its first token, the latest last."""
    known, rest = pool.setdefault(gram[0], []), tuple(gram[1:])
    if rest in known:
        known.remove(rest)
    known.append(rest)


class Batch:
    """Tokens of one pass, each with its position and what it sees besides the text."""

    def __init__(self, kv_len: int, pending: list[int]) -> None:
        self.kv_len, self.num_pending, self.num_added = kv_len, len(pending), 0
        self.tokens = list(pending)
        self.positions = list(range(kv_len, kv_len + len(pending)))
        self.seen = [(1 << (kv_len + i + 1)) - 1 for i in range(len(pending))]

    def add(self, token: int, ahead: int, seen: Any) -> None:
        """A token `ahead` of the text that sees it, and of those added before it these, itself included."""
        base = self.kv_len + self.num_pending
        self.tokens.append(token)
        self.positions.append(base - 1 + ahead)
        self.seen.append(((1 << base) - 1) | sum(1 << (base + one) for one in seen))
        self.seen[-1] |= 1 << (base + self.num_added)
        self.num_added += 1

    def mask(self) -> list[int]:
        """The bits of all rows, one behind the other."""
        width = self.kv_len + len(self.tokens)
        bits = sum(row << (i * width) for i, row in enumerate(self.seen))
        return array("I", bits.to_bytes(-(-width * len(self.seen) // 32) * 4, "little")).tolist()
