"""The training model: a Llama decoder on flat ragged batches.

It computes what `transformers.LlamaForCausalLM` computes (RMSNorm, rotate-half RoPE, grouped
queries, SwiGLU, tied embeddings); `export` renames its weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

from tools.train_pie_tiny.batches import IGNORED, Batch, Bucket

RESIDUAL_GAIN = 0.2
EMBEDDING_SCALE = 0.05


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the decoder, under the names of `config.json`."""

    vocab_size: int = 640
    hidden_size: int = 192
    intermediate_size: int = 352
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def as_dict(self) -> dict[str, int | float]:
        """The fields, for a checkpoint or a config file."""
        return asdict(self)


def matrix(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
    """A weight `[rows, columns]` that keeps the scale of its input, times `gain`."""
    return nn.Parameter(torch.randn(rows, columns) * gain / math.sqrt(columns))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on `x` `[tokens, heads, head_dim]`, pairing dimension i with i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Layer(nn.Module):
    """One decoder layer; query, key and value share a matrix, as do gate and up."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, queries = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.attention_norm = nn.Parameter(torch.ones(hidden))
        self.mlp_norm = nn.Parameter(torch.ones(hidden))
        self.qkv = matrix(queries + 2 * keys, hidden)
        self.out = matrix(hidden, queries, RESIDUAL_GAIN)
        self.gate_up = matrix(2 * shape.intermediate_size, hidden)
        self.down = matrix(hidden, shape.intermediate_size, RESIDUAL_GAIN)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.shape.rms_norm_eps)

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, buckets: Sequence[Bucket]) -> torch.Tensor:
        """Causal attention within each document; `x` is `[tokens, hidden]`."""
        heads, kv_heads = self.shape.num_attention_heads, self.shape.num_key_value_heads
        split = F.linear(x, self.qkv).view(x.shape[0], heads + 2 * kv_heads, -1)
        turned = rotate(split[:, : heads + kv_heads], cos, sin)
        group = heads // kv_heads
        query = turned[:, :heads]
        key = turned[:, heads:].repeat_interleave(group, dim=1)
        value = split[:, heads + kv_heads :].repeat_interleave(group, dim=1)
        outputs = []
        for bucket in buckets:
            part = [
                t[bucket.start : bucket.stop].view(bucket.rows, bucket.length, heads, -1) for t in (query, key, value)
            ]
            rows = [t.transpose(1, 2) for t in part]
            mixed = F.scaled_dot_product_attention(rows[0], rows[1], rows[2], is_causal=True)
            outputs.append(mixed.transpose(1, 2).reshape(bucket.rows * bucket.length, -1))
        return F.linear(torch.cat(outputs), self.out)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, buckets: Sequence[Bucket]) -> torch.Tensor:
        x = x + self.attend(self.norm(x, self.attention_norm), cos, sin, buckets)
        gate, up = F.linear(self.norm(x, self.mlp_norm), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Decoder(nn.Module):
    """The whole decoder; the embedding is also the output head."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * EMBEDDING_SCALE)
        self.final_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        half = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        places = torch.arange(shape.max_position_embeddings).float()
        angles = places[:, None] / shape.rope_theta**half
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)

    def decoder_layers(self) -> list[Layer]:
        """The layers, with their type."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]`."""
        x = F.embedding(batch.ids, self.embedding)
        cos, sin = self.cos[batch.positions], self.sin[batch.positions]
        for layer in self.layers:
            x = layer(x, cos, sin, batch.buckets)
        return F.rms_norm(x, (x.shape[-1],), self.final_norm, self.shape.rms_norm_eps)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Next-token logits `[tokens, vocab]`."""
        return F.linear(self.hidden(batch), self.embedding)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Mean cross entropy over the tokens that the model writes."""
        is_target = batch.targets != IGNORED
        logits = F.linear(self.hidden(batch)[is_target], self.embedding)
        return F.cross_entropy(logits, batch.targets[is_target])
