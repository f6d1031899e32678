"""What pages of a pool hold, as bytes, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_host_pool import bits, random_pool

from pieray.errors import InvalidRequest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_move_between_pools_of_one_model(dtype: torch.dtype) -> None:
    pools = [random_pool(dtype, page_size=4) for _ in range(2)]
    data = pools[0].read_pages(np.array([5, 2, 7]))
    assert len(data) == 3 * pools[0].data[:, 0].numel() * dtype.itemsize
    before = pools[1].data.clone()
    pools[1].write_pages(np.array([1, 6, 0]), data)
    for source, target in ((5, 1), (2, 6), (7, 0)):
        assert torch.equal(bits(pools[1].data)[:, target], bits(pools[0].data)[:, source])
    untouched = [page for page in range(pools[1].num_pages) if page not in (0, 1, 6)]
    assert torch.equal(bits(pools[1].data)[:, untouched], bits(before)[:, untouched])


@pytest.mark.parametrize(
    ("pages", "cut", "text"),
    [([12], 0, "page 12 is outside of 12 pages"), ([-1], 0, "page -1 is outside"), ([1], 4, "given")],
)
def test_what_does_not_fit_writes_nothing(pages: Any, cut: int, text: str) -> None:
    pool = random_pool(page_size=4)
    before = pool.data.clone()
    data = pool.read_pages(np.array([0]))
    with pytest.raises(InvalidRequest, match=text):
        pool.write_pages(np.array(pages), data[: len(data) - cut])
    if not cut:
        with pytest.raises(InvalidRequest, match=text):
            pool.read_pages(np.array(pages))
    assert torch.equal(bits(pool.data), bits(before))
