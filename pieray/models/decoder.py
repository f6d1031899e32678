"""The native decoder: Llama, Mistral, Qwen2 and Qwen3 over the page pool, one ragged batch a call."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from pieray.kernels.dispatch import attention, layer_ops
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import RaggedBatch
from pieray.models.config import ModelConfig
from pieray.models.kv_pool import KvPool
from pieray.models.lora import LoraAdapter, add_low_rank, read_lora
from pieray.models.rope import rope_tables
from pieray.models.weights import DecoderWeights, LayerWeights


class Decoder:
    """Owns the weights and the rotary tables; keeps no state between calls, all of that is in the pool."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self.device = weights.embed.device
        self.ops = layer_ops(self.device)
        self.cos, self.sin = rope_tables(config.rope, config.head_dim, config.max_position, self.device)

    def adapt(self, file: AdapterFile, max_bytes: int) -> LoraAdapter:
        """Load an adapter for this model, in its dtype; see `read_lora`."""
        return read_lora(file, self.config, self.weights.embed.dtype, self.device, max_bytes)

    def embeddings(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, hidden] of tokens int64 [n], in model dtype."""
        return self.weights.embed[tokens]

    def forward(self, batch: RaggedBatch, pool: KvPool) -> torch.Tensor:
        """Write the keys and values of all T tokens to `pool`; logits [R, vocab] of the wanted rows, in model dtype."""
        with torch.inference_mode():
            x = F.embedding(batch.tokens, self.weights.embed)
            if batch.embeds is not None:
                x[batch.embeds.rows] = batch.embeds.values.to(x.dtype)
            delta = None
            for layer, weights in enumerate(self.weights.layers):
                are_rows = layer == self.config.num_layers - 1
                x, normed = self.ops.add_rms_norm(x, delta, weights.attn_norm, self.config.rms_eps)
                mixed = self._attend(normed, weights, layer, batch, pool)
                if are_rows:
                    x, mixed = x[batch.rows], mixed[batch.rows]  # nothing after the last keys needs the other rows
                delta = F.linear(mixed, weights.out, weights.out_bias)
                add_low_rank(delta, mixed, batch.adapters, layer, "out", are_rows=are_rows)
                x, normed = self.ops.add_rms_norm(x, delta, weights.mlp_norm, self.config.rms_eps)
                delta = self._mlp(normed, weights, layer, batch)
            _, x = self.ops.add_rms_norm(x, delta, self.weights.norm, self.config.rms_eps)
            if batch.hidden is not None:
                batch.hidden.copy_(x)
            if batch.logits is not None:
                return torch.mm(x, self.weights.lm_head.T, out=batch.logits)
            return F.linear(x, self.weights.lm_head)

    def _attend(
        self, x: torch.Tensor, weights: LayerWeights, layer: int, batch: RaggedBatch, pool: KvPool
    ) -> torch.Tensor:
        """x [T, hidden], normed -> [T, num_heads * head_dim], not yet projected."""
        c = self.config
        projected = F.linear(x, weights.qkv, weights.qkv_bias)
        add_low_rank(projected, x, batch.adapters, layer, "qkv", are_rows=False)
        heads = projected.view(len(x), -1, c.head_dim)
        norms = None if weights.q_norm is None or weights.k_norm is None else (weights.q_norm, weights.k_norm)
        kv = pool.layers[layer]
        self.ops.rope_append(heads, self.cos, self.sin, batch.positions, kv, batch.slots, norms, c.rms_eps)
        mixed = attention(heads[:, : c.num_heads], kv, batch.attention, window=c.windows[layer])
        return mixed.reshape(len(x), -1)

    def _mlp(self, x: torch.Tensor, weights: LayerWeights, layer: int, batch: RaggedBatch) -> torch.Tensor:
        are_rows = layer == self.config.num_layers - 1
        wide = F.linear(x, weights.gate_up, weights.gate_up_bias)
        gated = self.ops.swiglu(add_low_rank(wide, x, batch.adapters, layer, "gate_up", are_rows=are_rows))
        down = F.linear(gated, weights.down, weights.down_bias)
        return add_low_rank(down, gated, batch.adapters, layer, "down", are_rows=are_rows)
