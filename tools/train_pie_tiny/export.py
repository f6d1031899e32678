"""Writes the model folder: Llama weights and config, tokenizer, chat template."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from tools.train_pie_tiny.model import Decoder, Shape
from tools.train_pie_tiny.words import END, PAD, SPECIAL_TOKENS

ASSETS = Path(__file__).resolve().parents[2] / "pieray" / "assets" / "pie-tiny"

CHAT_TEMPLATE = """\
{#- It calls the tools that it was trained with: none are shown. -#}{%- set known = tools -%}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['content'] -%}{{- message['content'] -}}{%- endif -%}
{%- for call in message['tool_calls'] or [] -%}
{%- set function = call['function'] if 'function' in call else call -%}
{{- '{"name": "' + function['name'] + '", "arguments": ' -}}
{%- if function['arguments'] is string -%}{{- function['arguments'] -}}
{%- else -%}{{- function['arguments'] | tojson -}}{%- endif -%}
{{- '}' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def llama_weights(model: Decoder) -> dict[str, torch.Tensor]:
    """The weights under the names of `LlamaForCausalLM`; the tied head is not stored."""
    shape = model.shape
    keys = shape.num_key_value_heads * shape.head_dim
    queries = shape.num_attention_heads * shape.head_dim
    weights: dict[str, torch.Tensor] = {
        "model.embed_tokens.weight": model.embedding,
        "model.norm.weight": model.final_norm,
    }
    for index, layer in enumerate(model.decoder_layers()):
        query, key, value = torch.split(layer.qkv, [queries, keys, keys])
        gate, up = layer.gate_up.chunk(2)
        parts = {
            "input_layernorm": layer.attention_norm,
            "post_attention_layernorm": layer.mlp_norm,
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": layer.out,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down,
        }
        weights |= {f"model.layers.{index}.{part}.weight": w for part, w in parts.items()}
    return {name: weight.detach().float().clone() for name, weight in weights.items()}


def model_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, object]:
    """`config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape.as_dict(),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "torch_dtype": "float32",
    }


def tokenizer_config(shape: Shape) -> dict[str, object]:
    """`tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [t for t in SPECIAL_TOKENS if t not in (END, PAD)],
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, object]:
    """`generation_config.json`: greedy, up to the end marker."""
    return {
        "do_sample": False,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "max_new_tokens": 256,
    }


def export(model: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes everything but the card, which needs scores first."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    save_file(llama_weights(model), weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": model_config(model.shape, tokenizer),
        "tokenizer_config.json": tokenizer_config(model.shape),
        "generation_config.json": generation_config(tokenizer),
    }
    for file, content in files.items():
        folder.joinpath(file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
