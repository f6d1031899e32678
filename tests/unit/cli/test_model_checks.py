"""`pieray doctor --model`: whether a folder can be served, what it needs and why not, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pieray.assets import model_folder
from pieray.cli.checks import Check
from pieray.cli.model_checks import model_checks
from pieray.models.ways import TABLE, glance

GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def folder_of(folder: Path, config: dict[str, Any], dtype: type = np.float32) -> Path:
    """A folder with a config, one tensor of 1000 numbers and a tokenizer."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"one": np.zeros((10, 100), dtype)}, folder / "model.safetensors")
    shutil.copy(model_folder("pie-tiny") / "tokenizer.json", folder)
    return folder


def found(folder: str | Path) -> dict[str, Check]:
    return {check.name: check for check in model_checks(str(folder))}


def test_the_embedded_model_is_served_by_a_decoder_of_its_own() -> None:
    checks = found("pie-tiny")
    assert {check.status for check in checks.values()} == {"ok"}
    assert list(checks) == ["model", "weights", "KV pages", "memory", "tokenizer"]
    assert checks["model"].detail == "LlamaForCausalLM, a decoder of pieray's own"
    assert checks["weights"].detail == "1,931,712 parameters, 7.4 MiB as F32"
    assert checks["KV pages"].detail.startswith("3.0 KiB for each token")


def test_an_architecture_without_one_is_served_through_transformers(tmp_path: Path) -> None:
    checks = found(folder_of(tmp_path, GPT_OSS, np.float16))
    assert checks["model"].status == "ok"
    assert "GptOssForCausalLM, through transformers' module" in checks["model"].detail
    assert checks["weights"].detail == "1,000 parameters, 2.0 KiB as F16"
    assert checks["KV pages"].detail.startswith(("768 bytes for", "384 bytes for"))


def test_a_model_that_sees_is_said_to_and_needs_what_scales_its_images(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "text_config": text}
    folder = folder_of(tmp_path, config, np.float16)
    assert found(folder)["images"].status == "fail"
    assert "preprocessor_config.json: no such file" in found(folder)["images"].detail
    (folder / "preprocessor_config.json").write_text("{}")
    checks = found(folder)
    assert {check.status for check in checks.values()} == {"ok"}
    assert checks["KV pages"].detail.startswith(("1.0 KiB for", "512 bytes for")), "a layer more, of shifts"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**GPT_OSS, "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM: its layers keep a recurrent state"),
        ({**GPT_OSS, "architectures": ["BartForCausalLM"]}, "an encoder-decoder"),
        ({**GPT_OSS, "quantization_config": {"quant_method": "awq"}}, "quantization_config: bits is None"),
        ({}, "no such file"),
    ],
)
def test_what_cannot_be_served_says_why(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    if config:
        folder_of(tmp_path, config)
    checks = list(model_checks(str(tmp_path)))
    assert [check.status for check in checks] == ["fail"]
    assert says in checks[0].detail


def test_weights_and_tokenizer_are_looked_at(tmp_path: Path) -> None:
    folder_of(tmp_path, GPT_OSS, np.int8)
    assert found(tmp_path)["weights"].detail == "I8; supported: float32, float16 or bfloat16"
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickled weights run code" in [check.detail for check in model_checks(str(tmp_path))][-1]
    folder_of(tmp_path, GPT_OSS)
    (tmp_path / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in [check.detail for check in model_checks(str(tmp_path))][-1]


def test_memory_that_is_not_there_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pieray.cli.model_checks.has_gpu", lambda: False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100 << 20))
    check = found(folder_of(tmp_path, GPT_OSS))["memory"]
    assert check.status == "fail"
    assert "256.0 MiB for the weights as float32" in check.detail
    assert "100.0 MiB free" in check.detail


@pytest.mark.slow
def test_the_answer_comes_without_torch_and_within_seconds(tmp_path: Path) -> None:
    folder_of(tmp_path, GPT_OSS)
    code = (
        "import sys; from pieray.cli.app import application\n"
        f"application('doctor')(['doctor', '--model', {str(tmp_path)!r}, '--json'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 10  # half a second on a quiet machine
    checks, heavy = done.stdout.splitlines()
    assert [check["status"] for check in json.loads(checks)] == ["ok"] * 5
    assert heavy == "[]"


def test_the_table_is_of_the_transformers_that_is_installed() -> None:
    from importlib.metadata import version

    table = json.loads(TABLE.read_text())
    if table["transformers"] != version("transformers"):
        pytest.skip("another transformers: `make models` writes the table anew")
    assert {"GptOssForCausalLM", "Glm4ForCausalLM", "CohereForCausalLM"} <= set(table["served"])
    assert not set(table["served"]) & set(table["refused"])
    assert glance(model_folder("pie-tiny"))[:2] == ("native", "")


def test_models_says_which_way_each_runs(call: Any) -> None:
    done = call("models", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert (rows["pie-tiny"]["way"], rows["pie-tiny"]["why"]) == ("native", "")


def test_buffers_that_no_module_reads_neither_fail_nor_count(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, GPT_OSS)
    tensors = {
        "one": np.zeros((10, 100), np.float32),
        "transformer.h.0.attn.bias": np.ones((1, 1, 8, 8), np.uint8),
        "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 8, 8), np.bool_),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    assert found(folder)["weights"].detail == "1,000 parameters, 3.9 KiB as F32"
    assert "whether this one does is seen when it is loaded" in found(folder)["model"].detail


def test_tensors_that_the_native_decoder_reads_are_looked_for(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(model_folder("pie-tiny") / name, tmp_path)
    good = load_file(model_folder("pie-tiny") / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    path = tmp_path / "model.safetensors"
    save_file({**good, "model.rotary_emb.inv_freq": np.ones(8, np.int64)}, path)
    start = time.monotonic()
    assert found(tmp_path)["weights"].detail == "1,931,712 parameters, 7.4 MiB as F32"
    assert time.monotonic() - start < 5  # a tenth of a second on a quiet machine
    save_file({key: one for key, one in good.items() if key != name}, path)
    assert (found(tmp_path)["weights"].status, found(tmp_path)["weights"].detail) == ("fail", f"no {name!r}")
    save_file({**good, name: good[name].T.copy()}, path)
    assert f"{name!r} has shape {good[name].T.shape}; config.json implies {good[name].shape}" in (
        found(tmp_path)["weights"].detail
    )


def test_a_quantized_checkpoint_says_its_format_and_what_it_takes(tmp_path: Path) -> None:
    shutil.copytree(model_folder("pie-tiny"), tmp_path, dirs_exist_ok=True)
    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    rows = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    group = {"weights": weights, "input_activations": rows}
    config = json.loads((tmp_path / "config.json").read_text())
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
    }
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    tensors = load_file(tmp_path / "model.safetensors")
    num_bytes = 0
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name.replace("weight", "weight_scale")] = np.ones((len(tensors[name]), 1), np.float32)
        tensors[name] = tensors[name].astype(np.int8)
        num_bytes += tensors[name].nbytes
    save_file(tensors, tmp_path / "model.safetensors")
    checks = found(tmp_path)
    assert {check.status for check in checks.values()} == {"ok"}
    assert checks["weights"].detail.startswith("1,931,712 parameters, 2.2 MiB of compressed-tensors as F32, I8")
    assert checks["KV pages"].detail == "3.0 KiB for each token of context; 768 bytes with model.kv_dtype=fp8"
    needed = num_bytes + 4 * (1_931_712 - num_bytes) + (256 << 20)
    assert checks["memory"].detail.startswith(f"{needed / (1 << 20):.1f} MiB for the weights, of which float32")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    assert found(tmp_path)["weights"].detail.startswith("no 'model.layers.1.mlp.up_proj.weight', nor what compressed")
    config["quantization_config"] = {"quant_method": "hqq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "quant_method is 'hqq'; supported:" in found(tmp_path)["model"].detail


def test_what_int8_weights_would_take_is_said() -> None:
    assert "; with model.quantization=int8 2.2 MiB" in found("pie-tiny")["memory"].detail
