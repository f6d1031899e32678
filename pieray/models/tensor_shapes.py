"""The tensors that the native decoder reads of a checkpoint, by name, without torch: for who looks at headers alone."""

from __future__ import annotations

from collections.abc import Sequence

from pieray.models.architectures import ARCHITECTURES
from pieray.models.config import ModelConfig


def wanted_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor that the native decoder reads; see `pieray/models/weights.py`."""
    facts, c = ARCHITECTURES[config.architecture], config
    hidden, q_size, kv_size = c.hidden_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, hidden)}

    def add(name: str, num_out: int, num_in: int, *, has_bias: bool = False) -> None:
        found[f"{name}.weight"] = num_out, num_in
        if has_bias:
            found[f"{name}.bias"] = (num_out,)

    def add_parts(prefix: str, modules: Sequence[str], sizes: Sequence[int], *, has_bias: bool) -> None:
        for module, size in zip(modules, sizes if len(modules) > 1 else (sum(sizes),), strict=True):
            add(prefix + module, size, hidden, has_bias=has_bias)

    for layer in range(c.num_layers):
        prefix = f"model.layers.{layer}."
        add_parts(prefix, facts.qkv, (q_size, kv_size, kv_size), has_bias=c.qkv_bias)
        add(prefix + "self_attn.o_proj", hidden, q_size, has_bias=c.out_bias)
        norms = facts.norms
        for norm in (norms.attn, norms.attn_post, norms.mlp, norms.mlp_post):
            if norm is not None:
                found[f"{prefix}{norm}.weight"] = (hidden,)
        if c.qk_norm:
            is_row = c.qk_norm == "row"
            found[f"{prefix}self_attn.q_norm.weight"] = (q_size if is_row else c.head_dim,)
            found[f"{prefix}self_attn.k_norm.weight"] = (kv_size if is_row else c.head_dim,)
        experts, names = c.experts, facts.experts
        if experts is None or names is None or not experts.layers[layer]:
            add_parts(prefix, facts.gate_up, (c.intermediate_size,) * 2, has_bias=c.mlp_bias)
            add(prefix + "mlp.down_proj", hidden, c.intermediate_size, has_bias=c.mlp_bias)
            continue
        block = prefix + names.block
        add(f"{block}.gate", experts.num_experts, hidden)
        for number in range(experts.num_experts):
            add(f"{block}.experts.{number}.{names.gate}", experts.width, hidden)
            add(f"{block}.experts.{number}.{names.up}", experts.width, hidden)
            add(f"{block}.experts.{number}.{names.down}", hidden, experts.width)
        if experts.shared_width:
            shared = f"{block}.shared_expert."
            add_parts(shared, ("gate_proj", "up_proj"), (experts.shared_width,) * 2, has_bias=c.mlp_bias)
            add(shared + "down_proj", hidden, experts.shared_width, has_bias=c.mlp_bias)
            add(f"{block}.shared_expert_gate", 1, hidden)
    found["model.norm.weight"] = (hidden,)
    if not c.tie_embeddings:
        add("lm_head", c.vocab_size, hidden)
    return found
