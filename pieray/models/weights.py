"""The decoder's weights: fused, cast and placed, as the forward wants them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pieray.errors import ModelError
from pieray.kernels.quantized import AnyMatrix, QuantizedMatrix
from pieray.models.architectures import ARCHITECTURES, Architecture, ExpertNames
from pieray.models.config import ExpertsConfig, ModelConfig
from pieray.models.dequantize import MatrixReader
from pieray.models.loader import Checkpoint

EMBED = "model.embed_tokens.weight"


@dataclass(slots=True)
class MlpWeights:
    """A gated MLP; matrices are [out, in].  `gate_up` has the gate over the up."""

    gate_up: AnyMatrix  # [2 * intermediate, hidden]
    gate_up_bias: torch.Tensor | None
    down: AnyMatrix  # [hidden, intermediate]
    down_bias: torch.Tensor | None


@dataclass(slots=True)
class ExpertWeights:
    """A mixture of E experts; matrices are [E, out, in]."""

    router: torch.Tensor  # [E, hidden]
    gate_up: torch.Tensor  # [E, 2 * width, hidden]
    down: torch.Tensor  # [E, hidden, width]
    shared: MlpWeights | None
    shared_gate: torch.Tensor | None  # [1, hidden]


@dataclass(slots=True)
class LayerWeights:
    """One layer; matrices are [out, in].  `qkv` stacks query, key and value heads.  Norms that are None are absent;
    where an architecture adds an offset to them they are float32, whatever the dtype of the model."""

    attn_norm: torch.Tensor | None  # [hidden]
    qkv: AnyMatrix  # [(num_heads + 2 * num_kv_heads) * head_dim, hidden]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [head_dim], or [num_heads * head_dim]
    k_norm: torch.Tensor | None
    out: AnyMatrix  # [hidden, num_heads * head_dim]
    out_bias: torch.Tensor | None
    attn_post: torch.Tensor | None  # [hidden]
    mlp_norm: torch.Tensor | None
    mlp: MlpWeights | ExpertWeights
    mlp_post: torch.Tensor | None


@dataclass(slots=True)
class DecoderWeights:
    """`layers` may be read once alone, in order, each made as it is asked for: see `open_weights`."""

    embed: torch.Tensor  # [vocab, hidden]
    layers: Iterable[LayerWeights]
    norm: torch.Tensor  # [hidden]
    lm_head: AnyMatrix  # [vocab, hidden]; the same tensor as `embed` if tied, unless it is quantized


@contextmanager
def open_weights(
    folder: str | Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    is_copied: bool = True,
    quantization: str = "none",
) -> Iterator[DecoderWeights]:
    """Read, check, fuse and place the weights of a model folder, layers one by one: who makes something else of them
    never has two copies of all.  ModelError names the file and the key.

    Unless `is_copied`, matrices other than the embedding may be maps of the file: for who packs them.
    `quantization` "int8" or "fp8" is what all matrices but the embedding and those of experts become.
    """
    with Checkpoint(folder) as checkpoint:
        yield _Fuser(checkpoint, config, dtype, device, is_copied=is_copied, quantization=quantization).weights()


def load_weights(
    folder: str | Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> DecoderWeights:
    """As `open_weights`, all layers at once."""
    with open_weights(folder, config, dtype, device) as weights:
        weights.layers = list(weights.layers)
        return weights


class _Fuser:
    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        is_copied: bool,
        quantization: str,
    ) -> None:
        self.is_copied = is_copied
        self.quantization = quantization
        self.reader = MatrixReader(checkpoint, config.stored, dtype)
        self.checkpoint = checkpoint
        self.config = config
        self.facts: Architecture = ARCHITECTURES[config.architecture]
        self.dtype = dtype
        self.device = device

    def weights(self) -> DecoderWeights:
        c = self.config
        embed = self._tensor(EMBED, c.vocab_size, c.hidden_size)
        if c.tie_embeddings:
            lm_head = self._quantized(embed, EMBED)
        else:
            lm_head = self._matrix([("lm_head", c.vocab_size)], c.hidden_size)
        layers = (self._layer(layer) for layer in range(c.num_layers))
        norm = self._norm("model.", "norm", c.hidden_size)
        assert norm is not None
        return DecoderWeights(embed, layers, norm, lm_head)

    def _layer(self, layer: int) -> LayerWeights:
        c, norms, prefix = self.config, self.facts.norms, f"model.layers.{layer}."
        q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        qkv = self._parts(prefix, self.facts.qkv, (q_size, kv_size, kv_size))
        out = [(prefix + "self_attn.o_proj", c.hidden_size)]
        sizes = {"": (0, 0), "head": (c.head_dim, c.head_dim), "row": (q_size, kv_size)}[c.qk_norm]
        return LayerWeights(
            attn_norm=self._norm(prefix, norms.attn, c.hidden_size),
            qkv=self._matrix(qkv, c.hidden_size),
            qkv_bias=self._bias(qkv, c.qkv_bias),
            q_norm=self._norm(prefix, "self_attn.q_norm" if c.qk_norm else None, sizes[0]),
            k_norm=self._norm(prefix, "self_attn.k_norm" if c.qk_norm else None, sizes[1]),
            out=self._matrix(out, q_size),
            out_bias=self._bias(out, c.out_bias),
            attn_post=self._norm(prefix, norms.attn_post, c.hidden_size),
            mlp_norm=self._norm(prefix, norms.mlp, c.hidden_size),
            mlp=self._mlp_or_experts(prefix, layer),
            mlp_post=self._norm(prefix, norms.mlp_post, c.hidden_size),
        )

    def _mlp_or_experts(self, prefix: str, layer: int) -> MlpWeights | ExpertWeights:
        experts, names = self.config.experts, self.facts.experts
        if experts is None or names is None or not experts.layers[layer]:
            gate_up = self._parts(prefix, self.facts.gate_up, (self.config.intermediate_size,) * 2)
            return self._mlp(gate_up, prefix + "mlp.down_proj", self.config.intermediate_size)
        return self._experts(prefix + names.block, experts, names)

    def _mlp(self, gate_up: Sequence[tuple[str, int]], down_name: str, width: int) -> MlpWeights:
        c = self.config
        down = [(down_name, c.hidden_size)]
        return MlpWeights(
            gate_up=self._matrix(gate_up, c.hidden_size),
            gate_up_bias=self._bias(gate_up, c.mlp_bias),
            down=self._matrix(down, width),
            down_bias=self._bias(down, c.mlp_bias),
        )

    def _experts(self, block: str, experts: ExpertsConfig, names: ExpertNames) -> ExpertWeights:
        hidden, width = self.config.hidden_size, experts.width
        gate_up = torch.empty(experts.num_experts, 2 * width, hidden, dtype=self.dtype, device=self.device)
        down = torch.empty(experts.num_experts, hidden, width, dtype=self.dtype, device=self.device)
        for number in range(experts.num_experts):
            prefix = f"{block}.experts.{number}."
            gate_up[number, :width] = self._plain(prefix + names.gate + ".weight", width, hidden)
            gate_up[number, width:] = self._plain(prefix + names.up + ".weight", width, hidden)
            down[number] = self._plain(prefix + names.down + ".weight", hidden, width)
        shared, shared_gate = None, None
        if experts.shared_width:
            prefix = f"{block}.shared_expert."
            parts = [(prefix + "gate_proj", experts.shared_width), (prefix + "up_proj", experts.shared_width)]
            shared = self._mlp(parts, prefix + "down_proj", experts.shared_width)
            shared_gate = self._plain(f"{block}.shared_expert_gate.weight", 1, hidden)
        router = self._plain(f"{block}.gate.weight", experts.num_experts, hidden)
        return ExpertWeights(router, gate_up, down, shared, shared_gate)

    @staticmethod
    def _parts(prefix: str, modules: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, int]]:
        """(name, outputs) of each module; one alone has the outputs of all."""
        if len(modules) == 1:
            return [(prefix + modules[0], sum(sizes))]
        return [(prefix + module, size) for module, size in zip(modules, sizes, strict=True)]

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        return self._placed(self.checkpoint.tensor(name, shape), is_mapped=not (len(shape) == 1 or name == EMBED))

    def _placed(self, stored: torch.Tensor, *, is_mapped: bool) -> torch.Tensor:
        """On the device, in the model's dtype; `is_mapped` may be a map of the file."""
        found = stored.to(self.device, self.dtype).contiguous()
        if is_mapped and not self.is_copied:
            return found
        # what still is the mapped file would change with it, or end the process where the file gets shorter
        return found.clone() if found.device == stored.device and found.data_ptr() == stored.data_ptr() else found

    def _plain(self, name: str, *shape: int) -> torch.Tensor:
        """A matrix as floats, however it is stored."""
        found = self._read(name, *shape)
        return found.dequantized(self.dtype) if isinstance(found, QuantizedMatrix) else found

    def _norm(self, prefix: str, name: str | None, size: int) -> torch.Tensor | None:
        if name is None:
            return None
        name = f"{prefix}{name}.weight"
        if not self.facts.norm_offset:
            return self._tensor(name, size)
        # half precision rounds the sum more coarsely than what is stored: 1 + weight stays in float32
        return (self.checkpoint.tensor(name, (size,)).float() + self.facts.norm_offset).to(self.device)

    def _matrix(self, parts: Sequence[tuple[str, int]], width: int) -> AnyMatrix:
        found = [self._read(f"{name}.weight", size, width) for name, size in parts]
        quantized = [one for one in found if isinstance(one, QuantizedMatrix)]
        if len(quantized) == len(found) and len({one.dtype for one in quantized}) == 1:
            return QuantizedMatrix.cat(quantized)
        plain = [one.dequantized(self.dtype) if isinstance(one, QuantizedMatrix) else one for one in found]
        return self._quantized(plain[0] if len(plain) == 1 else torch.cat(plain), parts[0][0])

    def _read(self, name: str, *shape: int) -> AnyMatrix:
        """A matrix as it is stored, on the device; floats in the model's dtype."""
        num_out, num_in = shape
        found = self.reader.read(name, (num_out, num_in))
        if isinstance(found, QuantizedMatrix):
            values = found.values.clone() if self.is_copied else found.values  # a map of the file, as in `_placed`
            return QuantizedMatrix(values.to(self.device), found.scales.to(self.device))
        return self._placed(found, is_mapped=True)

    def _quantized(self, matrix: torch.Tensor, name: str) -> AnyMatrix:
        try:
            return matrix if self.quantization == "none" else QuantizedMatrix.of(matrix, self.quantization)
        except ValueError as error:
            raise ModelError(f"{self.checkpoint.folder}: {name}: {error}") from error

    def _bias(self, parts: Sequence[tuple[str, int]], is_present: bool) -> torch.Tensor | None:
        return torch.cat([self._tensor(f"{name}.bias", size) for name, size in parts]) if is_present else None
