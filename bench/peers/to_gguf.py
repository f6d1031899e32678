"""A model folder of models.py as one GGUF file in bfloat16: to_gguf.py FOLDER FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np

folder, target = Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text())
writer = gguf.GGUFWriter(target, "llama")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_block_count(config["num_hidden_layers"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_key_length(config["head_dim"])
writer.add_value_length(config["head_dim"])
writer.add_rope_dimension_count(config["head_dim"])
writer.add_rope_freq_base(config["rope_theta"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_vocab_size(config["vocab_size"])
writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
writer.add_tokenizer_model("no_vocab")
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(matrix: np.ndarray, num_heads: int) -> np.ndarray:
    """The rows of a head in the order of llama.cpp's rotation: pairs side by side."""
    halves = matrix.reshape(num_heads, 2, config["head_dim"] // 2, *matrix.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


data = (folder / "model.safetensors").read_bytes()
start = 8 + int.from_bytes(data[:8], "little")
for name, entry in json.loads(data[8:start]).items():
    if name == "__metadata__":
        continue
    first, last = entry["data_offsets"]
    bits = np.frombuffer(data[start + first : start + last], np.uint16).reshape(entry["shape"])
    stem = name.removesuffix(".weight")
    prefix = ""
    if stem.startswith("model.layers."):
        layer, stem = stem.removeprefix("model.layers.").split(".", 1)
        prefix = f"blk.{layer}."
    if stem in ("self_attn.q_proj", "self_attn.k_proj"):
        heads = config["num_attention_heads" if stem == "self_attn.q_proj" else "num_key_value_heads"]
        bits = interleaved(bits, heads)
    if bits.ndim == 1:
        writer.add_tensor(f"{prefix}{NAMES[stem]}.weight", (bits.astype(np.uint32) << 16).view(np.float32))
    else:
        given = np.ascontiguousarray(bits).view(np.uint8)
        writer.add_tensor(f"{prefix}{NAMES[stem]}.weight", given, raw_dtype=gguf.GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
