"""Host memory for swapped KV pages: memory only; whose a slot is, `pieray.sched.swap_slots` knows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from pieray.arrays import I64
from pieray.errors import InvalidRequest
from pieray.models.kv_pool import KvPool

CHUNK_BYTES = 16 << 20
"""Of host memory that is taken at once, when the first slot in it is used: to pin more would hold up a step."""
STEP_BYTES = 32 << 20
"""Of pages that one step moves at most; on a GPU they lie there once more meanwhile."""
CGROUP = Path("/sys/fs/cgroup")


class HostPool:
    """`num_slots` slots of one page each, all layers of it together: as many as fit in `budget` bytes.

    Memory is taken in chunks as slots are first used, and kept.  On a GPU it is pinned, and copies run on the current
    stream: in order with all that steps compute, and nobody waits for them.
    """

    def __init__(self, pool: KvPool, budget: int) -> None:
        self._pages = pool.bits.transpose(0, 1)  # [pages, layers, 2, heads, page_size, head_dim]
        self._num_pages = pool.num_pages
        self._is_gpu = pool.data.device.type == "cuda"
        page_nbytes = self._pages[0].numel() * self._pages.element_size()
        self._per_chunk = max(CHUNK_BYTES // page_nbytes, 1)
        self.num_slots = _num_slots(budget, page_nbytes, self._per_chunk, is_pinned=self._is_gpu)
        self.max_step_pages = max(STEP_BYTES // page_nbytes, 1)
        self._chunks: dict[int, torch.Tensor] = {}  # by number: slots, each as a page is in `_pages`

    @property
    def nbytes(self) -> int:
        """Of host memory taken so far."""
        return sum(chunk.numel() * chunk.element_size() for chunk in list(self._chunks.values()))

    def swap_out(self, pages: I64, slots: I64) -> None:
        """Copy page i to slot i; InvalidRequest if one is outside, nothing is copied then."""
        self._check(pages, slots)
        places = torch.from_numpy(pages).to(self._pages.device)
        if not self._is_gpu:
            for part, memory in self._runs(slots):
                torch.index_select(self._pages, 0, places[part], out=memory)
            return
        staged = self._pages.index_select(0, places)
        for part, memory in self._runs(slots):
            memory.copy_(staged[part], non_blocking=True)

    def swap_in(self, slots: I64, pages: I64) -> None:
        """Copy slot i to page i, each page given once; InvalidRequest if one is outside, nothing is copied then."""
        self._check(pages, slots)
        places = torch.from_numpy(pages).to(self._pages.device)
        if not self._is_gpu:
            for part, memory in self._runs(slots):
                self._pages.index_copy_(0, places[part], memory)
            return
        staged = torch.empty((len(slots), *self._pages.shape[1:]), dtype=self._pages.dtype, device=self._pages.device)
        for part, memory in self._runs(slots):
            staged[part].copy_(memory, non_blocking=True)
        self._pages.index_copy_(0, places, staged)

    def _runs(self, slots: I64) -> Iterator[tuple[slice, torch.Tensor]]:
        """Which of the slots follow each other, and their memory."""
        is_new = (np.diff(slots) != 1) | (slots[1:] % self._per_chunk == 0)
        starts = [0, *(np.flatnonzero(is_new) + 1).tolist(), len(slots)]
        for first, last in pairwise(starts):
            if first < last:
                chunk, begin = divmod(int(slots[first]), self._per_chunk)
                yield slice(first, last), self._chunk(chunk)[begin : begin + last - first]

    def _chunk(self, number: int) -> torch.Tensor:
        found = self._chunks.get(number)
        if found is None:
            num_slots = min(self._per_chunk, self.num_slots - number * self._per_chunk)
            found = self._chunks[number] = self._memory(num_slots, is_pinned=self._is_gpu)
        return found

    def _memory(self, num_slots: int, *, is_pinned: bool) -> torch.Tensor:
        return torch.empty((num_slots, *self._pages.shape[1:]), dtype=self._pages.dtype, pin_memory=is_pinned)

    def _check(self, pages: I64, slots: I64) -> None:
        for name, numbers, total in (("page", pages, self._num_pages), ("slot", slots, self.num_slots)):
            bad = numbers[(numbers < 0) | (numbers >= total)]
            if len(bad):
                raise InvalidRequest(f"swap: {name} {int(bad[0])} is outside of {total} {name}s")


def budget_of(setting: int, pool_nbytes: int) -> int:
    """Bytes of host memory for swapped pages: what `model.swap_memory_bytes` says, or, below 0, four times the KV pool
    and at most a quarter of the memory that is available now."""
    return setting if setting >= 0 else min(4 * pool_nbytes, available_memory() // 4)


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control group if that has a limit."""
    import psutil

    found: int = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        found = min(found, max(limit - int((CGROUP / "memory.current").read_text()), 0))
    except (OSError, ValueError):  # no control group here, or "max"
        pass
    return found


def _num_slots(budget: int, page_nbytes: int, per_chunk: int, *, is_pinned: bool) -> int:
    """How many slots the budget holds.  Pinned memory is given in powers of two: each chunk takes the next one."""
    chunk_nbytes = per_chunk * page_nbytes
    if is_pinned:
        chunk_nbytes = 1 << (chunk_nbytes - 1).bit_length()
    num_chunks, rest = divmod(budget, chunk_nbytes)
    if is_pinned and rest:
        rest = 1 << (rest.bit_length() - 1)
    return num_chunks * per_chunk + min(rest // page_nbytes, per_chunk)
