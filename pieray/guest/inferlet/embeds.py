"""Embeddings: what a pass reads in place of tokens (`forward.forward_embeds`)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from . import _convert, _host
from .errors import BadHandle
from .tickets import Ticket, take_floats


class Embedding:
    """Rows of embeddings, held by the host.  Close it, use it in `with`, or let it go."""

    __slots__ = ("_id", "num_rows")

    def __init__(self, id: int, num_rows: int) -> None:
        self._id = id
        self.num_rows = num_rows

    @property
    def id(self) -> int:
        """The handle; raises BadHandle once it is closed."""
        if not self._id:
            raise BadHandle("this embedding is closed")
        return self._id

    def values(self, queue: int) -> Ticket[list[float]]:
        """The values, row by row: num_rows times the model's hidden size."""
        return Ticket(_host.embeds.values(queue, self.id), take_floats)

    def close(self) -> None:
        """Give it back; passes enqueued already keep it.  A second time does nothing."""
        handle, self._id = self._id, 0
        if handle:
            _host.embeds.free([handle])

    def __len__(self) -> int:
        return self.num_rows

    def __enter__(self) -> Embedding:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # nobody is there to be told
            self.close()


def text(tokens: Sequence[int], model: str = "") -> Embedding:
    """The embeddings of tokens, looked up when a pass uses them, one on that model."""
    ids = _convert.u32s("tokens", tokens)
    return Embedding(_host.embeds.text_for(model, ids) if model else _host.embeds.text(ids), len(ids))


def put(values: Sequence[float], model: str = "") -> Embedding:
    """Embeddings of your own, for passes on that model: finite, row by row, each row of its hidden size."""
    handle = _host.embeds.put_for(model, values) if model else _host.embeds.put(values)
    return Embedding(handle, int(_host.embeds.size(handle)))
