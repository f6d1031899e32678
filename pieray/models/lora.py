"""LoRA adapters (Hu et al. 2021): read, checked against the model, fused as its weights are, attached per item.

A module's output gets `scale * (x A^T) B^T` added, with A [rank, in] and B [out, rank].  Modules whose weights are
fused (`qkv`, `gate_up`) share one pair: their A stacked, their B side by side in their own rows, zero elsewhere.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from safetensors import SafetensorError
from safetensors.torch import load

from pieray.errors import ModelError, QuotaExceeded
from pieray.models.adapter_file import AdapterFile
from pieray.models.config import ModelConfig

MAX_RANK = 1024
NAME = re.compile(
    r"(?:base_model\.model\.)?model\.layers\.(\d{1,6})\."
    r"(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.lora_([AB])(?:\.default)?\.weight"
)
EXAMPLE = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
#: the decoder's matrices, in the order of the C kernel, and the modules that each is fused of
MATRICES = ("qkv", "out", "gate_up", "down")
MODULES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_serials = itertools.count(1)


@dataclass(slots=True)
class LowRank:
    """What is added to the output of one matrix: `(x down^T) up^T`, with the scale in `up`."""

    down: torch.Tensor  # [rank, in]
    up: torch.Tensor  # [out, rank]


@dataclass(slots=True, eq=False, weakref_slot=True)
class LoraAdapter:
    """An adapter on a device.  Whoever computes with it holds a reference: that is what keeps it loaded."""

    name: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    num_bytes: int
    layers: list[dict[str, LowRank]]  # by name of MATRICES; those that it does not change are absent
    compiled: Any = None  # the C kernel's form of it, made by its decoder
    serial: int = field(default_factory=lambda: next(_serials))  # a step puts the items of one adapter together


@dataclass(slots=True)
class LoraSegment:
    """Tokens `[first, last)` of a batch, and of its wanted rows `[first_row, last_row)`, run through `adapter`."""

    adapter: LoraAdapter
    first: int
    last: int
    first_row: int
    last_row: int


def read_lora(
    file: AdapterFile, config: ModelConfig, dtype: torch.dtype, device: torch.device | str, max_bytes: int
) -> LoraAdapter:
    """The adapter of `file`, fused and placed.

    Raises ModelError naming file, tensor and shape; QuotaExceeded if it takes more than `max_bytes` on the device.
    Nothing in the file is executed or unpickled.
    """
    return _LoraReader(file, config).adapter(dtype, device, max_bytes)


class _LoraReader:
    def __init__(self, file: AdapterFile, config: ModelConfig) -> None:
        self.file = file
        self.config = config
        self.where = file.source or f"adapter {file.name!r}"
        try:
            self.tensors = load(file.data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise ModelError(f"{self.where}: not a readable safetensors file: {error}") from error

    def adapter(self, dtype: torch.dtype, device: torch.device | str, max_bytes: int) -> LoraAdapter:
        found = self._pairs()
        ranks = [len(a) for modules in found for a, _ in modules.values()]
        targets = sorted({module.partition(".")[2] for modules in found for module in modules})
        num_bytes = sum(self._fused_size(modules) for modules in found) * dtype.itemsize
        if num_bytes > max_bytes:
            raise QuotaExceeded(f"adapter_bytes: {max_bytes} are left; adapter {self.file.name!r} takes {num_bytes}")
        layers = [self._fused(modules, dtype, device) for modules in found]
        alpha = float(self.file.alpha or max(ranks))
        return LoraAdapter(self.file.name, max(ranks), alpha, tuple(targets), num_bytes, layers)

    def _pairs(self) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """By layer and module, A and B, each of the shape that the model implies."""
        halves: dict[tuple[int, str], dict[str, str]] = {}
        for name in sorted(self.tensors):
            match = NAME.fullmatch(name)
            if match is None:
                raise ModelError(f"{self.where}: {name!r} is no LoRA weight of a decoder; a name is {EXAMPLE}")
            layer, module, half = int(match[1]), match[2], match[3]
            if layer >= self.config.num_layers:
                raise ModelError(f"{self.where}: {name!r}: layers are below {self.config.num_layers}; given {layer}")
            if half in halves.setdefault((layer, module), {}):
                raise ModelError(f"{self.where}: {name!r} is given twice, under two names")
            halves[layer, module][half] = name
        if not halves:
            raise ModelError(f"{self.where}: no LoRA weight in it; a name is {EXAMPLE}")
        found: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = [{} for _ in range(self.config.num_layers)]
        for (layer, module), names in halves.items():
            found[layer][module] = self._pair(module, names)
        return found

    def _pair(self, module: str, names: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
        if len(names) != 2:
            (name,) = names.values()
            raise ModelError(f"{self.where}: {name!r} has no counterpart: lora_A and lora_B come in pairs")
        num_in, num_out = self._sizes(module)
        a, b = self._tensor(names["A"]), self._tensor(names["B"])
        rank = len(a)
        if not 1 <= rank <= MAX_RANK:
            raise ModelError(f"{self.where}: {names['A']!r}: a rank is from 1 to {MAX_RANK}; given {rank}")
        for name, tensor, shape in ((names["A"], a, (rank, num_in)), (names["B"], b, (num_out, rank))):
            if tuple(tensor.shape) != shape:
                raise ModelError(f"{self.where}: {name!r} has shape {tuple(tensor.shape)}; the model implies {shape}")
            if not bool(tensor.isfinite().all()):
                raise ModelError(f"{self.where}: {name!r} has values that are not finite")
        return a, b

    def _tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self.tensors[name]
        if tensor.dtype not in FLOATS or tensor.ndim != 2:
            raise ModelError(
                f"{self.where}: {name!r} is {tensor.dtype} {tuple(tensor.shape)}; supported: matrices of "
                "float32, float16 or bfloat16"
            )
        return tensor

    def _sizes(self, module: str) -> tuple[int, int]:
        """(in, out) of a module."""
        c = self.config
        heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        return {
            "self_attn.q_proj": (c.hidden_size, heads),
            "self_attn.k_proj": (c.hidden_size, kv),
            "self_attn.v_proj": (c.hidden_size, kv),
            "self_attn.o_proj": (heads, c.hidden_size),
            "mlp.gate_proj": (c.hidden_size, c.intermediate_size),
            "mlp.up_proj": (c.hidden_size, c.intermediate_size),
            "mlp.down_proj": (c.intermediate_size, c.hidden_size),
        }[module]

    def _fused_size(self, modules: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> int:
        """Numbers that the layer's pairs hold."""
        size = 0
        for parts in MODULES.values():
            rank = sum(len(modules[part][0]) for part in parts if part in modules)
            size += rank * (self._sizes(parts[0])[0] + sum(self._sizes(part)[1] for part in parts))
        return size

    def _fused(
        self, modules: dict[str, tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype, device: torch.device | str
    ) -> dict[str, LowRank]:
        fused = {}
        for matrix, parts in MODULES.items():
            if not any(part in modules for part in parts):
                continue
            down = torch.cat([modules[part][0].float() for part in parts if part in modules])
            up = torch.zeros(sum(self._sizes(part)[1] for part in parts), len(down))
            row = column = 0
            for part in parts:
                num_out = self._sizes(part)[1]
                if part in modules:
                    b = modules[part][1].float() * self._scale(len(modules[part][0]))
                    up[row : row + num_out, column : column + b.shape[1]] = b
                    column += b.shape[1]
                row += num_out
            fused[matrix] = LowRank(down.to(device, dtype).contiguous(), up.to(device, dtype).contiguous())
        return fused

    def _scale(self, rank: int) -> float:
        alpha = self.file.alpha or rank
        return alpha / math.sqrt(rank) if self.file.is_rank_stabilized else alpha / rank


def add_low_rank(
    y: torch.Tensor, x: torch.Tensor, segments: Sequence[LoraSegment], layer: int, matrix: str, *, are_rows: bool
) -> torch.Tensor:
    """Add the segments' `(x down^T) up^T` to y, in place; x and y are of all tokens, or of the wanted rows."""
    for one in segments:
        pair = one.adapter.layers[layer].get(matrix)
        if pair is not None:
            rows = slice(one.first_row, one.last_row) if are_rows else slice(one.first, one.last)
            y[rows] += F.linear(F.linear(x[rows], pair.down), pair.up)
    return y


def segments_of(items: Sequence[tuple[LoraAdapter | None, int, int]], num_before: int = 0) -> list[LoraSegment]:
    """Runs of neighbours with one adapter, from each item's (adapter, tokens, wanted rows), in order, behind as many
    others of one token and one wanted row each."""
    found: list[LoraSegment] = []
    token = row = num_before
    for adapter, num_tokens, num_rows in items:
        last, last_row = token + num_tokens, row + num_rows
        if adapter is not None:
            if found and found[-1].adapter is adapter and found[-1].last == token:
                found[-1].last, found[-1].last_row = last, last_row
            else:
                found.append(LoraSegment(adapter, token, last, row, last_row))
        token, row = last, last_row
    return found
