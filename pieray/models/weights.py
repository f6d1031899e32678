"""The decoder's weights: fused, cast and placed, as the forward wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pieray.models.config import ModelConfig
from pieray.models.loader import Checkpoint


@dataclass(slots=True)
class LayerWeights:
    """One layer; matrices are [out, in].  `qkv` stacks query, key and value heads, `gate_up` the gate over the up."""

    attn_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [(num_heads + 2 * num_kv_heads) * head_dim, hidden]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None
    out: torch.Tensor  # [hidden, num_heads * head_dim]
    out_bias: torch.Tensor | None
    mlp_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [2 * intermediate, hidden]
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor  # [hidden, intermediate]
    down_bias: torch.Tensor | None


@dataclass(slots=True)
class DecoderWeights:
    embed: torch.Tensor  # [vocab, hidden]
    layers: list[LayerWeights]
    norm: torch.Tensor  # [hidden]
    lm_head: torch.Tensor  # [vocab, hidden]; the same tensor as `embed` if tied

    @property
    def step_bytes(self) -> int:
        """What a step reads: all matrices but the embedding."""
        matrices = [getattr(one, name) for one in self.layers for name in ("qkv", "out", "gate_up", "down")]
        return sum(one.numel() * one.element_size() for one in (*matrices, self.lm_head))


def load_weights(
    folder: str | Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str
) -> DecoderWeights:
    """Read, check, fuse and place all weights of a model folder; ModelError names the file and the key."""
    with Checkpoint(folder) as checkpoint:
        return _Fuser(checkpoint, config, dtype, device).weights()


class _Fuser:
    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.dtype = dtype
        self.device = device

    def weights(self) -> DecoderWeights:
        c = self.config
        embed = self._vector("model.embed_tokens.weight", c.vocab_size, c.hidden_size)
        lm_head = embed if c.tie_embeddings else self._vector("lm_head.weight", c.vocab_size, c.hidden_size)
        layers = [self._layer(f"model.layers.{layer}.") for layer in range(c.num_layers)]
        return DecoderWeights(embed, layers, self._vector("model.norm.weight", c.hidden_size), lm_head)

    def _layer(self, prefix: str) -> LayerWeights:
        c = self.config
        q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        qkv = [
            (prefix + f"self_attn.{name}_proj", size)
            for name, size in zip("qkv", (q_size, kv_size, kv_size), strict=True)
        ]
        out = [(prefix + "self_attn.o_proj", c.hidden_size)]
        gate_up = [(prefix + f"mlp.{name}_proj", c.intermediate_size) for name in ("gate", "up")]
        down = [(prefix + "mlp.down_proj", c.hidden_size)]
        return LayerWeights(
            attn_norm=self._vector(prefix + "input_layernorm.weight", c.hidden_size),
            qkv=self._matrix(qkv, c.hidden_size),
            qkv_bias=self._bias(qkv, c.qkv_bias),
            q_norm=self._vector(prefix + "self_attn.q_norm.weight", c.head_dim) if c.qk_norm else None,
            k_norm=self._vector(prefix + "self_attn.k_norm.weight", c.head_dim) if c.qk_norm else None,
            out=self._matrix(out, q_size),
            out_bias=self._bias(out, c.out_bias),
            mlp_norm=self._vector(prefix + "post_attention_layernorm.weight", c.hidden_size),
            gate_up=self._matrix(gate_up, c.hidden_size),
            gate_up_bias=self._bias(gate_up, c.mlp_bias),
            down=self._matrix(down, c.intermediate_size),
            down_bias=self._bias(down, c.mlp_bias),
        )

    def _vector(self, name: str, *shape: int) -> torch.Tensor:
        return self.checkpoint.tensor(name, shape).to(self.device, self.dtype).contiguous()

    def _matrix(self, parts: Sequence[tuple[str, int]], width: int) -> torch.Tensor:
        return torch.cat([self._vector(f"{name}.weight", size, width) for name, size in parts])

    def _bias(self, parts: Sequence[tuple[str, int]], is_present: bool) -> torch.Tensor | None:
        return torch.cat([self._vector(f"{name}.bias", size) for name, size in parts]) if is_present else None
