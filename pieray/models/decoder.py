"""The native decoder of all architectures of architectures.py over the page pool, one ragged batch a call."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from pieray.kernels.decoder_torch import rms_norm
from pieray.kernels.dispatch import attention, layer_ops
from pieray.kernels.quantized import linear
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import RaggedBatch
from pieray.models.config import ModelConfig
from pieray.models.experts import mix_experts
from pieray.models.kv_pool import KvPool
from pieray.models.lora import LoraAdapter, add_low_rank, native_targets, read_lora
from pieray.models.rope import RopeTables
from pieray.models.weights import DecoderWeights, ExpertWeights, LayerWeights, MlpWeights


class Decoder:
    """Owns the weights and the rotary tables; keeps no state between calls, all of that is in the pool."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self.layers = list(weights.layers)
        self.device = weights.embed.device
        self.ops = layer_ops(self.device)
        tables = RopeTables(config.head_dim, config.max_position, self.device)
        self.ropes = [tables.of(config.rope_of(layer)) for layer in range(config.num_layers)]

    def adapt(self, file: AdapterFile, max_bytes: int) -> LoraAdapter:
        """Load an adapter for this model, in its dtype; see `read_lora`."""
        return read_lora(file, native_targets(self.config), self.weights.embed.dtype, self.device, max_bytes)

    def embeddings(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, hidden] of tokens int64 [n], in model dtype: what given in their place computes the same."""
        return _scaled(F.embedding(tokens, self.weights.embed), self.config.embed_scale)

    def forward(self, batch: RaggedBatch, pool: KvPool) -> torch.Tensor:
        """Write the keys and values of all T tokens to `pool`; logits [R, vocab] of the wanted rows, in model dtype."""
        c = self.config
        with torch.inference_mode():
            x = self.embeddings(batch.tokens)
            if batch.embeds is not None:
                x[batch.embeds.rows] = batch.embeds.values.to(x.dtype)
            x = _scaled(x, c.input_scale)
            delta = None
            for layer, weights in enumerate(self.layers):
                are_rows = layer == c.num_layers - 1
                if batch.programs is not None and batch.programs.steers(layer):
                    x, delta = x.clone() if delta is None else x + delta, None
                    batch.programs.hidden(layer, x)
                x, normed = self._normed(x, delta, weights.attn_norm)
                mixed = self._attend(normed, weights, layer, batch, pool)
                if are_rows:
                    x, mixed = x[batch.rows], mixed[batch.rows]  # nothing after the last keys needs the other rows
                delta = linear(mixed, weights.out, weights.out_bias)
                add_low_rank(delta, mixed, batch.adapters, layer, "out", are_rows=are_rows)
                x, normed = self._normed(x, self._added(delta, weights.attn_post), weights.mlp_norm)
                delta = self._added(self._mlp(normed, weights.mlp, layer, batch), weights.mlp_post)
            _, x = self.ops.add_rms_norm(x, delta, self.weights.norm, c.rms_eps)
            if batch.hidden is not None:
                batch.hidden.copy_(x)
            lm_head = self.weights.lm_head
            if batch.logits is None:
                return self._bent(linear(x, lm_head))
            if isinstance(lm_head, torch.Tensor):
                return self._bent(torch.mm(x, lm_head.T, out=batch.logits))
            return self._bent(batch.logits.copy_(linear(x, lm_head)))

    def _normed(
        self, x: torch.Tensor, delta: torch.Tensor | None, norm: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, its norm, or itself if there is none)."""
        if norm is not None:
            return self.ops.add_rms_norm(x, delta, norm, self.config.rms_eps)
        total = x if delta is None else x + delta
        return total, total

    def _added(self, delta: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        """What attention or MLP adds to the rows."""
        if norm is not None:
            _, delta = self.ops.add_rms_norm(delta, None, norm, self.config.rms_eps)
        return _scaled(delta, self.config.residual_scale)

    def _attend(
        self, x: torch.Tensor, weights: LayerWeights, layer: int, batch: RaggedBatch, pool: KvPool
    ) -> torch.Tensor:
        """x [T, hidden], normed -> [T, num_heads * head_dim], not yet projected."""
        c = self.config
        projected = linear(x, weights.qkv, weights.qkv_bias)
        add_low_rank(projected, x, batch.adapters, layer, "qkv", are_rows=False)
        norms = None if weights.q_norm is None or weights.k_norm is None else (weights.q_norm, weights.k_norm)
        if norms is not None and c.qk_norm == "row":
            q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
            for part, norm in zip(torch.split(projected, [q_size, kv_size, kv_size], -1), norms, strict=False):
                part.copy_(rms_norm(part, norm, c.rms_eps))
            norms = None
        heads = projected.view(len(x), -1, c.head_dim)
        kv, (cos, sin) = pool.layers[layer], self.ropes[layer]
        self.ops.rope_append(heads, cos, sin, batch.positions, kv, batch.slots, norms, c.rms_eps)
        queries, window, cap = heads[:, : c.num_heads], c.windows[layer], c.attention_softcap
        meta = batch.attention
        if batch.programs is not None and batch.programs.selects(layer):
            meta = batch.programs.attention(layer, queries)
        mixed = attention(queries, kv, meta, scale=c.softmax_scale, window=window, softcap=cap)
        return mixed.reshape(len(x), -1)

    def _mlp(
        self, x: torch.Tensor, weights: MlpWeights | ExpertWeights, layer: int, batch: RaggedBatch
    ) -> torch.Tensor:
        if isinstance(weights, ExpertWeights):
            return self._experts(x, weights)
        are_rows = layer == self.config.num_layers - 1
        wide = linear(x, weights.gate_up, weights.gate_up_bias)
        add_low_rank(wide, x, batch.adapters, layer, "gate_up", are_rows=are_rows)
        gated = self.ops.gated(wide, self.config.activation)
        down = linear(gated, weights.down, weights.down_bias)
        return add_low_rank(down, gated, batch.adapters, layer, "down", are_rows=are_rows)

    def _experts(self, x: torch.Tensor, weights: ExpertWeights) -> torch.Tensor:
        c = self.config
        assert c.experts is not None
        mixed = mix_experts(x, weights, c.experts, self.ops, c.activation)
        if weights.shared is None or weights.shared_gate is None:
            return mixed
        gated = self.ops.gated(linear(x, weights.shared.gate_up), c.activation)
        return mixed + F.linear(x, weights.shared_gate).sigmoid() * linear(gated, weights.shared.down)

    def _bent(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits divided and capped as the model does, in place."""
        c = self.config
        if c.logits_divisor != 1:
            logits.div_(c.logits_divisor)
        if c.logits_softcap:
            logits.div_(c.logits_softcap).tanh_().mul_(c.logits_softcap)
        return logits


def _scaled(x: torch.Tensor, scale: float) -> torch.Tensor:
    """x * scale, with the scale rounded to the dtype of x as transformers does."""
    return x if scale == 1 else x * torch.tensor(scale, dtype=x.dtype).item()
