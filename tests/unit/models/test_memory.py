"""Memory that the system does not give is said with its size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import make_model

from pieray.assets import model_folder
from pieray.errors import ModelError
from pieray.kernels.cc import library
from pieray.models.arena import huge_memory
from pieray.models.config import ModelConfig
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner


@pytest.mark.parametrize("nbytes", [1 << 60, 1 << 70])
def test_more_than_there_is_raises_memory_error_with_the_bytes(nbytes: int) -> None:
    with pytest.raises(MemoryError, match=f"does not give {nbytes} bytes"):
        huge_memory(nbytes)


def test_a_pool_that_does_not_fit_is_a_model_error_with_the_bytes() -> None:
    config = ModelConfig.from_folder(model_folder("pie-tiny"))
    num_pages = 1 << 48
    nbytes = num_pages * KvPool.page_nbytes(config, 16, torch.float32)
    with pytest.raises(ModelError, match=f"a KV pool of {num_pages} pages of 16 tokens: .* {nbytes} bytes"):
        KvPool(config, num_pages, 16, torch.float32, "cpu")


@pytest.mark.slow
def test_how_products_are_computed_is_logged_with_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if library() is None:
        pytest.skip("no C compiler")
    make_model("llama", tmp_path, head_dim=16)
    caplog.set_level("INFO", logger="pieray")
    ModelRunner.load(tmp_path, dtype="bfloat16", num_pages=8)
    assert [one.message for one in caplog.records if "bf16_products auto: " in one.message]
    caplog.clear()
    ModelRunner.load(tmp_path, dtype="float32", num_pages=8, bf16_products="avx512_bf16")
    said = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert said == ["bf16_products 'avx512_bf16' does not apply: products in float32, for the weights are float32"]
    caplog.clear()
    ModelRunner.load(tmp_path, dtype="float16", num_pages=8, bf16_products="float32")
    assert "applies to the C decoder alone" in caplog.text
