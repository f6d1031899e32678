"""Pages in host memory have the bits that they had in the pool, for any layout, and memory is taken as it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pieray.assets import model_folder
from pieray.errors import InvalidRequest
from pieray.models import host_pool
from pieray.models.config import ModelConfig
from pieray.models.host_pool import HostPool, budget_of
from pieray.models.kv_pool import KvPool

CONFIG = ModelConfig.from_folder(model_folder("pie-tiny"))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
MIB = 1 << 20


def random_pool(dtype: torch.dtype = torch.float32, page_size: int = 16, device: str = "cpu", **config: int) -> KvPool:
    """Any bits, those of NaNs and infinities too."""
    pool = KvPool(replace(CONFIG, **config), 12, page_size, dtype, device)
    bits(pool.data).random_(-(1 << 15), 1 << 15)
    return pool


def bits(data: torch.Tensor) -> torch.Tensor:
    return data.view(torch.int16)


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk_pages", [1, 3, 100])
@pytest.mark.parametrize(
    ("dtype", "page_size", "shape"),
    [
        (torch.float32, 16, {}),
        (torch.bfloat16, 16, {}),
        (torch.float16, 32, {"num_kv_heads": 1}),
        (torch.float32, 4, {"num_kv_heads": 6, "head_dim": 8}),
        (torch.bfloat16, 1, {"num_layers": 1, "num_kv_heads": 3, "head_dim": 5}),
    ],
)
def test_a_page_that_went_out_comes_in_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    page_size: int,
    shape: dict[str, int],
    chunk_pages: int,
    device: str,
) -> None:
    pool = random_pool(dtype, page_size, device, **shape)
    page_nbytes = pool.data[:, 0].numel() * dtype.itemsize
    monkeypatch.setattr(host_pool, "CHUNK_BYTES", chunk_pages * page_nbytes)
    host = HostPool(pool, 64 * page_nbytes)
    before = pool.data.clone()
    host.swap_out(array(7, 2, 9, 4), array(5, 1, 2, 3))
    host.swap_out(array(0), array(0))
    bits(pool.data)[:, [7, 2, 9, 4, 0]] = 0
    host.swap_in(array(3, 5, 0, 1, 2), array(11, 2, 7, 0, 10))
    expected = before.clone()
    bits(expected)[:, [7, 2, 9, 4, 0]] = 0
    expected[:, [11, 2, 7, 0, 10]] = before[:, [4, 7, 0, 2, 9]]
    assert torch.equal(bits(pool.data), bits(expected))


def test_what_a_gpu_does_in_two_copies_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = random_pool()
    monkeypatch.setattr(host_pool, "CHUNK_BYTES", 3 * 49152)
    host = HostPool(pool, MIB)
    host._is_gpu = True
    monkeypatch.setattr(host, "_memory", lambda count, **_: torch.empty((count, *host._pages.shape[1:])))
    before = pool.data.clone()
    host.swap_out(array(7, 2, 9, 4), array(5, 1, 2, 3))
    host.swap_in(array(2, 5, 3, 1), array(0, 1, 2, 3))
    expected = before.clone()
    expected[:, :4] = before[:, [9, 7, 4, 2]]
    assert torch.equal(bits(pool.data), bits(expected))


def test_memory_is_taken_with_the_first_use_of_a_slot_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = random_pool()
    page = 49152
    monkeypatch.setattr(host_pool, "CHUNK_BYTES", 4 * page + 1)
    host = HostPool(pool, 6 * page + page // 2)
    assert (host.num_slots, host.nbytes) == (6, 0)
    taken = []
    for slot in (1, 3, 5, 0):
        host.swap_out(array(1), array(slot))
        taken.append(host.nbytes // page)
    assert taken == [4, 4, 6, 6]  # the last chunk is no longer than the budget


def test_pages_and_slots_outside_are_refused_and_nothing_moves() -> None:
    pool = random_pool()
    host = HostPool(pool, 6 * 49152)
    host.swap_out(array(0, 1), array(0, 1))
    before = pool.data.clone()
    with pytest.raises(InvalidRequest, match="page 12 is outside of 12 pages"):
        host.swap_in(array(0, 1), array(3, 12))
    with pytest.raises(InvalidRequest, match="slot 6 is outside of 6 slots"):
        host.swap_in(array(0, 6), array(3, 4))
    with pytest.raises(InvalidRequest, match="page -1 is outside"):
        host.swap_out(array(-1), array(0))
    assert torch.equal(bits(pool.data), bits(before))


def test_without_a_budget_there_are_no_slots() -> None:
    assert HostPool(random_pool(), 0).num_slots == 0
    assert HostPool(random_pool(), 49151).num_slots == 0


@pytest.mark.parametrize(
    ("budget", "page", "per_chunk", "expected"),
    [
        (160 * MIB, 2 * MIB, 8, 80),  # 16 MiB chunks
        (100 * MIB, 3 * MIB, 5, 31),  # 15 MiB take 16: six of these, and 4 MiB hold one
        (24 * MIB, 20 * MIB, 1, 0),  # a page takes 32 MiB
        (40 * MIB, 20 * MIB, 1, 1),
    ],
)
def test_pinned_chunks_count_as_the_powers_of_two_that_they_take(
    budget: int, page: int, per_chunk: int, expected: int
) -> None:
    found = host_pool._num_slots(budget, page, per_chunk, is_pinned=True)
    chunks = [per_chunk] * (found // per_chunk) + ([found % per_chunk] if found % per_chunk else [])
    taken = sum(1 << (count * page - 1).bit_length() for count in chunks)
    assert found == expected
    assert taken <= budget


def test_the_budget_is_as_set_or_four_pools_within_a_quarter_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert (budget_of(0, MIB), budget_of(123, MIB)) == (0, 123)
    monkeypatch.setattr(host_pool, "CGROUP", tmp_path)
    assert budget_of(-1, MIB) == 4 * MIB
    assert budget_of(-1, 1 << 60) == pytest.approx(host_pool.available_memory() / 4, rel=0.2)
    (tmp_path / "memory.max").write_text("max\n")
    assert budget_of(-1, MIB) == 4 * MIB
    (tmp_path / "memory.max").write_text(f"{20 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{8 * MIB}\n")
    assert budget_of(-1, MIB) == 3 * MIB
    (tmp_path / "memory.current").write_text(f"{80 * MIB}\n")
    assert budget_of(-1, MIB) == 0
