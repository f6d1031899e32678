"""LoRA adapters (Hu et al. 2021): read, checked against the model, fused as its weights are, attached per item.

A module's output gets `scale * (x A^T) B^T` added, with A [rank, in] and B [out, rank].  Modules whose weights are
fused (`qkv`, `gate_up`) share one pair: their A stacked, their B side by side in their own rows, zero elsewhere.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from safetensors import SafetensorError
from safetensors.torch import load

from pieray.errors import ModelError, QuotaExceeded
from pieray.models.adapter_file import AdapterFile
from pieray.models.architectures import ARCHITECTURES
from pieray.models.config import ModelConfig

MAX_RANK = 1024
NAME = re.compile(r"(?:base_model\.model\.)?(.{1,200})\.lora_([AB])(?:\.default)?\.weight")
#: the native decoders' matrices, in the order of the C kernel
MATRICES = ("qkv", "out", "gate_up", "down")
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
    layers: list[dict[str, LowRank]]  # by name of a matrix; those that it does not change are absent
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


@dataclass(frozen=True, slots=True)
class LoraTargets:
    """What adapters of a model may change.

    `layers[layer]` names the layer's matrices, each with the modules that it is fused of and their (in, out).  The name
    of a module in a file is `prefix`, the layer, a dot and its name here.
    """

    layers: Sequence[Mapping[str, Mapping[str, tuple[int, int]]]]
    prefix: str = "model.layers."

    def sizes(self, layer: int) -> dict[str, tuple[int, int]]:
        """(in, out) by module."""
        return {name: size for modules in self.layers[layer].values() for name, size in modules.items()}

    def example(self) -> str:
        """The name of a weight that an adapter may have; "" if there is none."""
        for layer in range(len(self.layers)):
            for module in self.sizes(layer):
                return f"base_model.model.{self.prefix}{layer}.{module}.lora_A.weight"
        return ""


def native_targets(config: ModelConfig) -> LoraTargets:
    """Those of a native decoder: attention, and the MLPs of layers without experts."""
    facts, hidden = ARCHITECTURES[config.architecture], config.hidden_size
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def fused(names: Sequence[str], sizes: Sequence[int]) -> dict[str, tuple[int, int]]:
        outs = [sum(sizes)] if len(names) == 1 else sizes
        return {name: (hidden, size) for name, size in zip(names, outs, strict=True)}

    attention = {"qkv": fused(facts.qkv, (heads, kv, kv)), "out": {"self_attn.o_proj": (heads, hidden)}}
    mlp = {
        "gate_up": fused(facts.gate_up, (config.intermediate_size,) * 2),
        "down": {"mlp.down_proj": (config.intermediate_size, hidden)},
    }
    are_mixed = config.experts.layers if config.experts else (False,) * config.num_layers
    return LoraTargets([attention if is_mixed else {**attention, **mlp} for is_mixed in are_mixed])


def read_lora(
    file: AdapterFile, targets: LoraTargets, dtype: torch.dtype, device: torch.device | str, max_bytes: int
) -> LoraAdapter:
    """The adapter of `file`, fused and placed.

    Raises ModelError naming file, tensor and shape; QuotaExceeded if it takes more than `max_bytes` on the device.
    Nothing in the file is executed or unpickled.
    """
    return _LoraReader(file, targets).adapter(dtype, device, max_bytes)


class _LoraReader:
    def __init__(self, file: AdapterFile, targets: LoraTargets) -> None:
        self.file = file
        self.targets = targets
        self.where = file.source or f"adapter {file.name!r}"
        try:
            self.tensors = load(file.data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise ModelError(f"{self.where}: not a readable safetensors file: {error}") from error

    def adapter(self, dtype: torch.dtype, device: torch.device | str, max_bytes: int) -> LoraAdapter:
        if not self.targets.example():
            raise ModelError(f"{self.where}: adapters add to matrices that all tokens go through; this model has none")
        found = self._pairs()
        ranks = [len(a) for modules in found for a, _ in modules.values()]
        targets = sorted({module.rpartition(".")[2] for modules in found for module in modules})
        num_bytes = sum(self._fused_size(layer, modules) for layer, modules in enumerate(found)) * dtype.itemsize
        if num_bytes > max_bytes:
            raise QuotaExceeded(f"adapter_bytes: {max_bytes} are left; adapter {self.file.name!r} takes {num_bytes}")
        layers = [self._fused(layer, modules, dtype, device) for layer, modules in enumerate(found)]
        alpha = float(self.file.alpha or max(ranks))
        return LoraAdapter(self.file.name, max(ranks), alpha, tuple(targets), num_bytes, layers)

    def _pairs(self) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """By layer and module, A and B, each of the shape that the model implies."""
        halves: dict[tuple[int, str], dict[str, str]] = {}
        num_layers = len(self.targets.layers)
        for name in sorted(self.tensors):
            layer, module, half = self._place(name)
            if layer >= num_layers:
                raise ModelError(f"{self.where}: {name!r}: layers are below {num_layers}; given {layer}")
            if module not in self.targets.sizes(layer):
                self._refuse_name(name)
            if half in halves.setdefault((layer, module), {}):
                raise ModelError(f"{self.where}: {name!r} is given twice, under two names")
            halves[layer, module][half] = name
        if not halves:
            raise ModelError(f"{self.where}: no LoRA weight in it; a name is {self.targets.example()}")
        found: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = [{} for _ in range(num_layers)]
        for (layer, module), names in halves.items():
            found[layer][module] = self._pair(self.targets.sizes(layer)[module], names)
        return found

    def _place(self, name: str) -> tuple[int, str, str]:
        """(layer, module, "A" or "B") of a tensor."""
        match = NAME.fullmatch(name)
        path = match[1].removeprefix(self.targets.prefix) if match is not None else ""
        number, _, module = path.partition(".")
        if match is None or path == match[1] or not re.fullmatch(r"\d{1,6}", number):
            self._refuse_name(name)
        assert match is not None
        return int(number), module, match[2]

    def _refuse_name(self, name: str) -> None:
        raise ModelError(f"{self.where}: {name!r} is no LoRA weight of a decoder; a name is {self.targets.example()}")

    def _pair(self, size: tuple[int, int], names: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
        if len(names) != 2:
            (name,) = names.values()
            raise ModelError(f"{self.where}: {name!r} has no counterpart: lora_A and lora_B come in pairs")
        num_in, num_out = size
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

    def _fused_size(self, layer: int, modules: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> int:
        """Numbers that the layer's pairs hold."""
        size = 0
        for parts in self.targets.layers[layer].values():
            rank = sum(len(modules[part][0]) for part in parts if part in modules)
            (num_in, *_), outs = {num_in for num_in, _ in parts.values()}, [num_out for _, num_out in parts.values()]
            size += rank * (num_in + sum(outs))
        return size

    def _fused(
        self,
        layer: int,
        modules: dict[str, tuple[torch.Tensor, torch.Tensor]],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> dict[str, LowRank]:
        fused = {}
        for matrix, parts in self.targets.layers[layer].items():
            if not any(part in modules for part in parts):
                continue
            down = torch.cat([modules[part][0].float() for part in parts if part in modules])
            up = torch.zeros(sum(num_out for _, num_out in parts.values()), len(down))
            row = column = 0
            for part, (_, num_out) in parts.items():
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
