"""LoRA adapters: open or load one, and run passes through it."""

from __future__ import annotations

import json
from typing import Any

from . import _host
from ._waiting import wait_ticket
from .tickets import take_tokens


class Adapter:
    """An open adapter, for `forward.forward` and `Context`.  Close it, use it in `with`, or let the host do it."""

    __slots__ = ("_is_closed", "digest", "id", "name")

    def __init__(self, id: int, name: str, digest: str = "") -> None:
        """`digest`: what it is, by its content (see `adapters.info`)."""
        self.id = id
        self.name = name
        self.digest = digest
        self._is_closed = False

    def close(self) -> None:
        """Give the handle back; passes enqueued already still run through the adapter.  Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            _host.adapters.close(self.id)

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def names() -> list[str]:
    """Names of the adapters that this inferlet may open."""
    return list(_host.adapters.names())


def info(name: str) -> dict[str, Any]:
    """name, rank, alpha, targets, num_bytes, owner, digest (of weights and scaling: a name may be given again)"""
    return dict(json.loads(_host.adapters.info(name)))


def open(name: str) -> Adapter:  # noqa: A001 - the handler's name
    """An adapter of the engine's, by name.  Raises NotFound."""
    return _opened(_host.adapters.open(name), name)


async def load(path: str, alpha: float = 0.0) -> Adapter:
    """Load an adapter for this inferlet alone from the scratch folder: a safetensors file, named as PEFT names its
    tensors, or a folder as PEFT saves it, whose settings (adapter_config.json) are applied, or refused by name.

    `alpha` 0: the folder's, else the rank.  Raises InvalidRequest naming the tensor or setting, QuotaExceeded,
    NotFound.
    """
    ticket = _host.adapters.load(path, alpha)
    await wait_ticket(ticket)
    return _opened(take_tokens(ticket)[0], path)


def _opened(handle: int, name: str) -> Adapter:
    return Adapter(handle, name, _host.adapters.digest(handle))
