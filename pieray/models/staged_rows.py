"""The columns of a captured decode step: in memory that the host writes, and on the device, copied over in one go."""

from __future__ import annotations

import numpy as np
import torch

from pieray.arrays import I64
from pieray.kernels.meta import AttentionMeta, DrawColumns
from pieray.models.batch import DecodeRows, RaggedBatch
from pieray.models.kv_pool import KvPool
from pieray.models.sampler import draw_columns

ALIGNMENT = 128
"""Bytes: Triton compiles a kernel anew for pointers of another alignment."""


class StagedRows:
    """`num_rows` sequences of up to `max_kv_len` tokens, whose page tables lie side by side, and what they draw.

    Rows that a step does not fill are idle: they see nothing and write to the pool's scratch slot.
    """

    def __init__(self, num_rows: int, max_kv_len: int, pool: KvPool, device: torch.device) -> None:
        self.num_rows = num_rows
        self.width = -(-max_kv_len // pool.page_size)
        self._page_size, self._scratch_slot = pool.page_size, pool.scratch_slot
        columns: tuple[tuple[str, torch.dtype, int], ...] = (
            ("tokens", torch.int64, num_rows),
            ("positions", torch.int64, num_rows),
            ("slots", torch.int64, num_rows),
            ("uniforms", torch.float64, num_rows),
            ("top_ps", torch.float64, num_rows),
            ("temperatures", torch.float32, num_rows),
            ("log_min_ps", torch.float32, num_rows),
            ("top_ks", torch.int32, num_rows),
            ("kv_lens", torch.int32, num_rows),
            ("page_indptr", torch.int32, num_rows + 1),
            ("pages", torch.int32, num_rows * self.width),
        )
        starts = np.cumsum([0] + [_aligned(size * dtype.itemsize) for _, dtype, size in columns]).tolist()
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(starts[-1], dtype=torch.uint8, pin_memory=on_gpu)
        self._device = torch.zeros(starts[-1], dtype=torch.uint8, device=device)
        there: dict[str, torch.Tensor] = {}
        self._here: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
        for (name, dtype, size), start in zip(columns, starts, strict=False):
            last = start + size * dtype.itemsize
            there[name] = self._device[start:last].view(dtype)
            self._here[name] = self._host[start:last].view(dtype).numpy()
        self._tables = self._here["pages"].reshape(num_rows, self.width)
        self._here["page_indptr"][:] = np.arange(num_rows + 1) * self.width
        self._there = there
        attention = AttentionMeta(
            qo_indptr=torch.arange(num_rows + 1, dtype=torch.int32, device=device),
            page_indptr=there["page_indptr"],
            pages=there["pages"],
            kv_lens=there["kv_lens"],
            causal=torch.ones(num_rows, dtype=torch.int32, device=device),
            q_lens=[1] * num_rows,
            max_kv_len=max_kv_len,
        )
        every = torch.arange(num_rows, device=device)
        self.batch = RaggedBatch(there["tokens"], there["positions"], there["slots"], every, attention)
        draw = ("temperatures", "top_ps", "log_min_ps", "top_ks", "uniforms")
        self.draws = DrawColumns(**{name: there[name] for name in draw})
        self.drawn = _Drawn(num_rows, device)
        self.idle(0)
        self._send()

    def idle(self, first: int) -> None:
        """Rows from `first` on are idle, on the host."""
        for name, value in (("tokens", 0), ("positions", 0), ("kv_lens", 0), ("temperatures", 0)):
            self._here[name][first:] = value
        self._here["slots"][first:] = self._scratch_slot

    def write(self, rows: DecodeRows, num_pages: int) -> None:
        """Put valid rows, which see `num_pages` of their pages at most, on the device."""
        count, here = len(rows), self._here
        here["tokens"][:count] = rows.tokens
        here["positions"][:count] = rows.positions
        here["kv_lens"][:count] = rows.kv_lens + 1
        last = rows.pages[np.arange(count), rows.kv_lens // self._page_size].astype(np.int64)
        here["slots"][:count] = last * self._page_size + rows.kv_lens % self._page_size
        self._tables[:count, :num_pages] = rows.pages[:, :num_pages]
        for name, values in draw_columns(rows.choices).items():
            here[name][:count] = values
        self.idle(count)
        self._send()

    def take(self, batch: RaggedBatch) -> None:
        """Put a batch of single tokens, which is on the device already, in the place of rows; they draw greedily."""
        count, there, given = len(batch.tokens), self._there, batch.attention
        self.idle(0)
        self._send()
        for name, values in (
            ("tokens", batch.tokens),
            ("positions", batch.positions),
            ("slots", batch.slots),
            ("kv_lens", given.kv_lens),
            ("pages", given.pages),
        ):
            there[name][: len(values)].copy_(values)
        there["page_indptr"][: count + 1].copy_(given.page_indptr)

    def _send(self) -> None:
        self._device.copy_(self._host, non_blocking=True)


class _Drawn:
    """What rows have drawn: tokens int64, and is_bad int32, of one piece of memory."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._there = torch.zeros(12 * num_rows, dtype=torch.uint8, device=device)
        self._here = torch.zeros(12 * num_rows, dtype=torch.uint8, pin_memory=on_gpu)
        self._event = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        split = 8 * num_rows
        self.tokens, self.is_bad = self._there[:split].view(torch.int64), self._there[split:].view(torch.int32)
        self._tokens = self._here[:split].view(torch.int64).numpy()
        self._is_bad = self._here[split:].view(torch.int32).numpy()

    def read(self, count: int) -> tuple[I64, I64]:
        """(tokens, is_bad) of the first `count` rows, once the device has drawn them; copies."""
        self._here.copy_(self._there, non_blocking=True)
        if self._event is not None:
            self._event.record()
            self._event.synchronize()
        return self._tokens[:count].copy(), self._is_bad[:count].astype(np.int64)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
