"""Forward passes, and what can be asked of their rows."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

from . import _convert, _host
from .adapters import Adapter
from .embeds import Embedding
from .sampler import Sampler, SamplerHandle
from .tickets import Ticket, take_distribution, take_floats, take_none, take_tokens


class Pass(Ticket[None]):
    """An enqueued forward pass.  Ask for outputs before anything is awaited; then the pass need not be."""

    __slots__ = ("num_rows",)

    def __init__(self, id: int, num_rows: int) -> None:
        super().__init__(id, take_none)
        self.num_rows = num_rows

    def row(self, row: int) -> int:
        """The index of a row; negative ones count from the end."""
        row = _convert.integer("a row of this pass", row, -self.num_rows, self.num_rows - 1)
        return row + self.num_rows if row < 0 else row

    def sample(
        self,
        row: int = -1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        *,
        sampler: Sampler | SamplerHandle | None = None,
    ) -> Ticket[list[int]]:
        """Sample the token after `row`: temperature 0 is greedy; top-k 0, top-p 1, min-p 0 are off.

        `sampler` stands in place of the numbers; a `SamplerHandle` saves making one for each draw.
        """
        if sampler is None:
            return sample(self, row, temperature, top_k, top_p, min_p, seed)
        return sample_with(self, row, sampler)

    def samples(self, rows: Iterable[int], *, sampler: Sampler | None = None) -> Samples:
        """Sample the token after each of `rows`, greedy without a sampler: await it for one token a row, in order.

        A sampler without a seed draws one for all of them.
        """
        numbers = [self.row(row) for row in _convert.items("rows", rows, "numbers of rows")]
        if sampler is None:
            return Samples([sample(self, row) for row in numbers])
        with _convert.instance("sampler", sampler, Sampler).handle() as made:
            return Samples([sample_with(self, row, made) for row in numbers])

    def distribution(self, k: int, row: int = -1) -> Ticket[tuple[list[int], list[float]]]:
        """The `k` most probable next tokens after `row`, by falling probability, and their probabilities."""
        return distribution(self, row, k)

    def logprobs(self, tokens: Sequence[int], row: int = -1) -> Ticket[list[float]]:
        """Log-probabilities of `tokens` as the next token after `row`."""
        return logprobs(self, row, tokens)

    def logits(self, row: int = -1) -> Ticket[list[float]]:
        """All logits after `row`."""
        return logits(self, row)

    def entropy(self, row: int = -1) -> Ticket[float]:
        """Entropy of the next token after `row`, in nats."""
        return entropy(self, row)

    def hidden(self, row: int = -1) -> Ticket[list[float]]:
        """The last hidden state of `row`, behind the final norm."""
        return hidden(self, row)

    def mask_runs(self, row: int, runs: Sequence[int]) -> Pass:
        """Hide slots from one row by run lengths: hidden, visible, hidden, ... in turns, beginning with hidden.

        Slots behind the last run are visible; what the mask of the pass hides stays hidden.
        """
        mask_runs(self, row, runs)
        return self


class Samples:
    """The tokens sampled after several rows: await it for them."""

    __slots__ = ("_tickets",)

    def __init__(self, tickets: Sequence[Ticket[list[int]]]) -> None:
        self._tickets = list(tickets)

    def __await__(self) -> Generator[Any, None, list[int]]:
        return self._take().__await__()

    async def _take(self) -> list[int]:
        return [(await ticket)[0] for ticket in self._tickets]

    def cancel(self) -> None:
        """Forget the tokens; a pass already enqueued still runs."""
        for ticket in self._tickets:
            ticket.cancel()


def forward(
    queue: int,
    pages: Sequence[int],
    kv_len: int,
    tokens: Sequence[int],
    positions: Sequence[int] = (),
    mask: Sequence[int] = (),
    adapter: Adapter | None = None,
) -> Pass:
    """Enqueue a pass of `tokens` on top of the `kv_len` tokens in `pages`, writing KV into the slots after them.

    `positions` empty: kv_len, kv_len + 1, ...  `mask` empty: causal; else bits packed into u32, least
    significant first, row-major [len(tokens), kv_len + len(tokens)], 1 = may attend.  `adapter`: LoRA, for this pass.

    Whole pages of a sequence may be left out of `pages`: the pass does not see their tokens.  `kv_len` counts those
    that are there, and `positions` says where in the sequence the new tokens stand.  `Context.drop` does so.
    """
    tokens, lora = _convert.u32s("tokens", tokens), _adapter_id(adapter)
    handle = _host.forward.forward(queue, pages, kv_len, tokens, positions, mask)
    if lora:
        _host.forward.set_adapter(handle, lora)
    return Pass(handle, len(tokens))


def forward_embeds(
    queue: int,
    pages: Sequence[int],
    kv_len: int,
    embeds: Sequence[Embedding],
    positions: Sequence[int] = (),
    mask: Sequence[int] = (),
    adapter: Adapter | None = None,
) -> Pass:
    """As `forward`, over the rows of `embeds`, one after the other."""
    rows = _convert.instances("embeds", embeds, Embedding)
    lora = _adapter_id(adapter)
    handle = _host.forward.forward_embeds(queue, pages, kv_len, [one.id for one in rows], positions, mask)
    if lora:
        _host.forward.set_adapter(handle, lora)
    return Pass(handle, sum(one.num_rows for one in rows))


def verify(
    queue: int,
    pages: Sequence[int],
    kv_len: int,
    tokens: Sequence[int],
    drafts: Sequence[int],
    parents: Sequence[int] = (),
    sampler: Sampler | SamplerHandle | None = None,
    adapter: Adapter | None = None,
) -> Ticket[list[int]]:
    """Run `tokens`, at least one, and behind them verify drafts, a chain or a tree: the tokens sampled.

    `parents[i]` is 0 if draft i follows the last of `tokens`, else 1 + the earlier draft that it follows.  The result
    is the accepted drafts and one token more; the slots behind kv_len hold `tokens` and the accepted drafts.
    Greedy without a sampler; one without a seed draws another at each call.

    It tells no samples behind the first draft that is rejected.  For all of them (lookahead decoding, or to judge a
    drafter), run a chain of drafts with `forward`, take `Pass.samples` of its last rows, and `kv.truncate` the pages
    behind those that you accept.
    """
    if isinstance(sampler, Sampler):
        with sampler.handle() as made:
            return verify(queue, pages, kv_len, tokens, drafts, parents, made, adapter)
    chain = 0 if sampler is None else _convert.instance("sampler", sampler, SamplerHandle, Sampler).id
    ticket = _host.forward.verify(queue, pages, kv_len, tokens, drafts, parents, chain, _adapter_id(adapter))
    return Ticket(ticket, take_tokens)


def _adapter_id(adapter: Adapter | None) -> int:
    """The handle; 0: none."""
    return 0 if adapter is None else _convert.instance("adapter", adapter, Adapter).id


def _row(pass_: Pass, row: int) -> tuple[int, int]:
    """A pass and one of its rows, as the handlers take them."""
    return _convert.instance("a pass", pass_, Pass).id, pass_.row(row)


def mask_runs(pass_: Pass, row: int, runs: Sequence[int]) -> None:
    """Hide slots of a pass that is not sent yet from one of its rows; see `Pass.mask_runs`."""
    _host.forward.mask_runs(*_row(pass_, row), runs)


def sample(
    pass_: Pass,
    row: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> Ticket[list[int]]:
    """Sample the token after `row`; the draw depends on the seed and the row's position alone."""
    return Ticket(_host.forward.sample(*_row(pass_, row), temperature, top_k, top_p, min_p, seed), take_tokens)


def sample_with(pass_: Pass, row: int, sampler: Sampler | SamplerHandle) -> Ticket[list[int]]:
    """Sample the token after `row` with a sampler chain."""
    if isinstance(sampler, SamplerHandle):
        return Ticket(_host.forward.sample_with(*_row(pass_, row), sampler.id), take_tokens)
    if _convert.instance("sampler", sampler, Sampler, SamplerHandle).is_plain:
        return sample(pass_, row, *sampler.numbers())
    with sampler.handle() as made:
        return sample_with(pass_, row, made)


def entropy(pass_: Pass, row: int) -> Ticket[float]:
    """Entropy of the next token after `row`, in nats."""
    return Ticket(_host.forward.entropy(*_row(pass_, row)), lambda ticket: take_floats(ticket)[0])


def hidden(pass_: Pass, row: int) -> Ticket[list[float]]:
    """The last hidden state of `row`, behind the final norm: as many floats as the model's hidden size."""
    return Ticket(_host.forward.hidden(*_row(pass_, row)), take_floats)


def distribution(pass_: Pass, row: int, k: int) -> Ticket[tuple[list[int], list[float]]]:
    """The `k` most probable next tokens after `row`, by falling probability, and their probabilities."""
    return Ticket(_host.forward.distribution(*_row(pass_, row), k), take_distribution)


def logprobs(pass_: Pass, row: int, tokens: Sequence[int]) -> Ticket[list[float]]:
    """Log-probabilities of `tokens` as the next token after `row`."""
    return Ticket(_host.forward.logprobs(*_row(pass_, row), tokens), take_floats)


def logits(pass_: Pass, row: int) -> Ticket[list[float]]:
    """All logits after `row`, one per vocabulary entry."""
    return Ticket(_host.forward.logits(*_row(pass_, row)), take_floats)
