"""The ragged batch: exact layouts, and what makes an item invalid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import u32

from pieray.errors import InvalidRequest, ModelError
from pieray.kernels import decoder_torch
from pieray.models.batch import ForwardItem, build_batch, validate_item
from pieray.models.config import ModelConfig, RopeConfig
from pieray.models.kv_pool import KvPool

CONFIG = ModelConfig(
    family="llama",
    vocab_size=50,
    hidden_size=8,
    intermediate_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_position=20,
    rms_eps=1e-6,
    rope=RopeConfig(),
    windows=(0, 0),
)


def pool() -> KvPool:
    return KvPool(CONFIG, num_pages=10, page_size=4, dtype=torch.float32, device="cpu")


def item(**changes: Any) -> ForwardItem:
    fields: dict[str, Any] = {"pages": u32([7, 2]), "kv_len": 3, "tokens": u32([10, 11]), "positions": u32([3, 4])}
    return ForwardItem(**{**fields, **changes})


def test_two_items_lie_side_by_side() -> None:
    batch = build_batch(
        [item(rows=[1]), item(pages=u32([5]), kv_len=0, tokens=u32([1]), positions=u32([9]), rows=[0])], 4
    )
    assert batch.tokens.tolist() == [10, 11, 1]
    assert batch.positions.tolist() == [3, 4, 9]
    assert batch.slots.tolist() == [7 * 4 + 3, 2 * 4, 5 * 4]
    assert batch.rows.tolist() == [1, 2]
    meta = batch.attention
    assert (meta.qo_indptr.tolist(), meta.page_indptr.tolist(), meta.pages.tolist()) == (
        [0, 2, 3],
        [0, 2, 3],
        [7, 2, 5],
    )
    assert (meta.kv_lens.tolist(), meta.q_lens, meta.max_kv_len) == ([5, 1], [2, 1], 5)
    assert meta.mask is None


def test_masks_are_packed_byte_by_byte_and_marked_absent_with_minus_one() -> None:
    batch = build_batch([item(mask=b"\xff\x03", causal=False), item(), item(mask=b"\x01\x02")], 4)
    assert batch.attention.mask is not None
    assert batch.attention.mask_indptr is not None
    assert batch.attention.mask.tolist() == [0xFF, 3, 1, 2]
    assert batch.attention.mask_indptr.tolist() == [0, -1, 2]
    assert batch.attention.causal.tolist() == [0, 1, 1]


def test_an_item_without_tokens_is_an_empty_row() -> None:
    batch = build_batch([item(tokens=u32([]), positions=u32([])), item()], 4)
    assert batch.attention.qo_indptr.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kv_len": 7}, "7 cached and 2 new tokens need 9 slots; 2 pages of 4 hold 8"),
        ({"kv_len": -1}, "-1 cached"),
        ({"tokens": u32([10, 50])}, "token 50 is outside the vocabulary of 50"),
        ({"positions": u32([3, 20])}, "position 20 is outside the context of 20"),
        ({"positions": u32([3])}, "1 positions given for 2 tokens"),
        ({"pages": u32([7, 10])}, "page 10 is outside the pool of 10"),
        ({"mask": b"\x00"}, "a mask of 2 x 5 bits takes 2 bytes, given 1"),
        ({"rows": [2]}, "rows [2] reach outside of 2 tokens"),
    ],
)
def test_an_invalid_item_says_limit_and_value(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate_item(item(**changes), CONFIG, pool())
    assert says in caught.value.message


def test_a_valid_item_passes() -> None:
    validate_item(item(kv_len=6, mask=b"\xff\xff", rows=[0, 1]), CONFIG, pool())


def test_copy_tokens_reads_all_before_it_writes() -> None:
    memory = pool()
    memory.data.copy_(torch.arange(memory.data.numel()).view(memory.data.shape))
    before = memory.data.clone()
    memory.copy_tokens([(1, 0, 2, 1, 3), (2, 1, 1, 0, 3)])  # swaps
    assert torch.equal(memory.data[:, 2, :, :, 1:4], before[:, 1, :, :, 0:3])
    assert torch.equal(memory.data[:, 1, :, :, 0:3], before[:, 2, :, :, 1:4])
    rest = [0, *range(3, 10)]
    assert torch.equal(memory.data[:, rest], before[:, rest])


@pytest.mark.parametrize("bad", [(0, 0, 10, 0, 1), (0, 2, 1, 0, 3), (0, -1, 1, 0, 1), (0, 0, 1, 0, -1)])
def test_a_bad_copy_is_refused_whole(bad: tuple[int, int, int, int, int]) -> None:
    memory = pool()
    memory.data[:, 0] = 1
    with pytest.raises(InvalidRequest):
        memory.copy_tokens([(0, 0, 1, 0, 1), bad])
    assert not memory.data[:, 1:].any()


def test_pages_are_sized_from_a_budget() -> None:
    page = KvPool.page_nbytes(CONFIG, 4, torch.float32)
    assert page == 2 * 2 * 1 * 4 * 4 * 4
    assert KvPool.pages_for(CONFIG, 4, torch.float32, 10 * page + 1) == 10
    assert pool().nbytes == 10 * page
    with pytest.raises(Exception, match="holds no page"):
        KvPool.pages_for(CONFIG, 4, torch.float32, page - 1)


def test_a_pool_is_sized_from_its_budget_or_from_what_the_device_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    page = KvPool.page_nbytes(CONFIG, 4, torch.float32)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000 * page, 4000 * page))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def fit(device: str, budget: int, fraction: float = 0.5) -> int:
        return KvPool.pages_that_fit(CONFIG, 4, torch.float32, device, budget, fraction)

    assert fit("cpu", 0) == (256 << 20) // page
    assert fit("cpu", 7 * page) == fit("cuda", 7 * page) == 7
    assert fit("cuda:0", 0) == 500
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 40, 1 << 40))
    assert fit("cuda", 0) == 1 << 18
    with pytest.raises(ModelError, match="0 bytes holds no page"):
        fit("cuda", 0, 0.0)


def test_keys_and_values_go_to_their_slots() -> None:
    memory = pool()
    heads = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4, 4), dtype=np.float32))
    kv = heads[:, 2:].reshape(2, 2, 1, 4).clone()
    cos, sin = torch.ones(1, 2), torch.zeros(1, 2)  # of position 0: nothing turns
    slots, positions = torch.tensor([7, 36]), torch.zeros(2, dtype=torch.int64)
    decoder_torch.rope_append(heads, cos, sin, positions, memory.layers[1], slots, None, 1e-6)
    assert torch.equal(memory.layers[1][1, :, :, 3], kv[0])
    assert torch.equal(memory.layers[1][9, :, :, 0], kv[1])
    assert not memory.layers[0].any()
