"""LoRA adapters as the C step takes them: packed matrices, and the segments of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pieray.kernels.decoder_step_cpu import FLOATS, CLoraBlock, CLowRank, CMatrix, CSegment, pack, padded
from pieray.models.lora import MATRICES, LoraAdapter, LoraSegment, LowRank


class _Compiled:
    """One `CLoraBlock` a layer, and the tensors that they point into."""

    def __init__(self, layers: Sequence[dict[str, LowRank]]) -> None:
        self.keep: list[torch.Tensor] = []
        self.blocks = (CLoraBlock * len(layers))()
        ranks = [len(pair.down) for layer in layers for pair in layer.values()]
        self.width = padded(max(ranks))
        for block, layer in zip(self.blocks, layers, strict=True):
            for field, name in zip(CLoraBlock._fields_, MATRICES, strict=True):
                if name in layer:
                    pair = CLowRank(self._matrix(layer[name].down), self._matrix(layer[name].up))
                    setattr(block, field[0], pair)

    def _matrix(self, matrix: torch.Tensor) -> CMatrix:
        self.keep.append(pack(matrix))
        return CMatrix(self.keep[-1].data_ptr(), None, *matrix.shape, FLOATS)


def compile_adapter(adapter: LoraAdapter) -> None:
    """Pack the adapter's matrices; the plain ones are dropped."""
    adapter.compiled = _Compiled(adapter.layers)
    adapter.layers = []


def segments(found: Sequence[LoraSegment]) -> tuple[Any, torch.Tensor]:
    """The segments for a `CStep`, and work space for them; both must live until the step has run."""
    if not found:
        return None, torch.empty(0)
    made = (CSegment * len(found))()
    for target, one in zip(made, found, strict=True):
        target.blocks = one.adapter.compiled.blocks
        target.first, target.num_tokens = one.first, one.last - one.first
        target.first_row, target.num_rows = one.first_row, one.last_row - one.first_row
    return made, torch.empty(max(one.adapter.compiled.width * (one.last - one.first) for one in found))
