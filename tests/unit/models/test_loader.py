"""Weights: what is wrong with a folder is said with file and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pieray.errors import ModelError
from pieray.models.loader import INDEX, SINGLE, Checkpoint

SHAPE = (2, 3)


def whole(folder: Path) -> None:
    save_file({"a": torch.zeros(SHAPE), "i": torch.zeros(SHAPE, dtype=torch.int64)}, folder / SINGLE)


def sharded(folder: Path, weight_map: dict[str, str]) -> None:
    save_file({"a": torch.zeros(SHAPE)}, folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def corrupt(folder: Path) -> None:
    whole(folder)
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-8])


def pickled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


@pytest.mark.parametrize(
    ("prepare", "name", "says"),
    [
        (lambda folder: None, "a", "model.safetensors: no such file, and no model.safetensors.index.json beside it"),
        (pickled, "a", "pytorch_model.bin: pickled weights run code when loaded and are never read"),
        (corrupt, "a", "model.safetensors: not a readable safetensors file"),
        (whole, "b", "model.safetensors: no 'b'"),
        (whole, "i", "model.safetensors: 'i' is torch.int64; supported: float32, float16 or bfloat16"),
        (
            lambda f: sharded(f, {"a": "../x.safetensors"}),
            "a",
            "'a' is in '../x.safetensors'; only *.safetensors of the same",
        ),
        (lambda f: sharded(f, {"a": "/etc/x.safetensors"}), "a", "'a' is in '/etc/x.safetensors'"),
        (lambda f: sharded(f, {"a": "one.bin"}), "a", "'a' is in 'one.bin'"),
        (lambda f: sharded(f, {"a": "two.safetensors"}), "a", "no two.safetensors, which"),
        (
            lambda f: sharded(f, {"a": "x2.safetensors", "b": "x1.safetensors"}),
            "a",
            "no x1.safetensors, x2.safetensors, which model.safetensors.index.json names",
        ),
        (lambda f: sharded(f, {"b": "one.safetensors"}), "b", "one.safetensors: no 'b', which"),
        (lambda f: (f / INDEX).write_text("{}"), "a", "index.json: not a safetensors index with a weight_map"),
    ],
)
def test_errors_name_the_file_and_the_key(
    prepare: Callable[[Path], object], name: str, says: str, tmp_path: Path
) -> None:
    prepare(tmp_path)
    with pytest.raises(ModelError) as caught, Checkpoint(tmp_path) as checkpoint:
        checkpoint.tensor(name, SHAPE)
    assert says in caught.value.message
    assert str(tmp_path) in caught.value.message


def test_a_wrong_shape_names_both_shapes(tmp_path: Path) -> None:
    whole(tmp_path)
    with pytest.raises(ModelError, match=r"'a' has shape \(2, 3\); config.json implies \(3, 2\)"):
        Checkpoint(tmp_path).tensor("a", (3, 2))


def test_close_is_idempotent_and_tensors_outlive_it(tmp_path: Path) -> None:
    whole(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    tensor = checkpoint.tensor("a", SHAPE)
    checkpoint.close()
    checkpoint.close()
    assert torch.equal(tensor, torch.zeros(SHAPE))


@pytest.mark.parametrize(
    ("index", "is_told"),
    [
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', True),
        ("{broken", True),
        ('{"weight_map": {"a": "model.safetensors"}}', False),
    ],
)
def test_a_stale_index_beside_a_single_file_is_not_read(
    index: str, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole(tmp_path)
    (tmp_path / INDEX).write_text(index)
    assert torch.equal(Checkpoint(tmp_path).tensor("a", SHAPE), torch.zeros(SHAPE))
    assert bool(caplog.records) == is_told
