"""InferletActor -> Batcher: LoRA adapters that inferlets load for themselves."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.messages.frame import Message, register

PRIVATE = 1 << 31
"""Numbers of adapters from here on mean what their inferlet has loaded; those below are the engine's."""


@register(60)
@dataclass(frozen=True, slots=True)
class LoadAdapter(Message):
    """Load an adapter for one inferlet alone, until it is unloaded or the inferlet is cancelled; answered with
    its digest (str)."""

    ticket: int
    inferlet: int
    adapter: int  # PRIVATE + the inferlet's number for it
    name: str  # for errors
    data: bytes  # safetensors
    alpha: float  # 0: the rank
    is_rank_stabilized: bool  # as in `AdapterFile`
    max_bytes: int  # that all adapters of the inferlet may take on the device


@register(61)
@dataclass(frozen=True, slots=True)
class UnloadAdapter(Message):
    """Later commands cannot name it; those before it still run through it; answered with None."""

    ticket: int
    inferlet: int
    adapter: int
