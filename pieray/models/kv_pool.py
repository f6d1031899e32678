"""The KV page pool of one device: memory only; who owns which page is the ResourceManager's business."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from pieray.arrays import I64
from pieray.errors import InvalidRequest, ModelError
from pieray.kernels.cells import as_bits
from pieray.models.arena import huge_memory
from pieray.models.config import ModelConfig
from pieray.models.key_bounds import KeyBounds

#: (src_page, src_offset, dst_page, dst_offset, count): `count` tokens, within one page on either side
TokenRange = tuple[int, int, int, int, int]
CPU_BYTES = 256 << 20
MOST_PAGES = 1 << 18
"""Of a pool that is sized by a GPU's memory: a small model would have millions, which others must keep account of."""


class KvPool:
    """`layers[i]` is [num_pages, 2, num_kv_heads, page_size, head_dim]: keys at 0, values at 1.

    Of float32, float16 or bfloat16, or of E4M3 without scales. A token's *slot* is `page * page_size + offset`. The
    memory starts as zeros and is never cleared again. On a GPU one more page lies behind the others, for the idle
    rows of captured steps to write to.

    A model whose positions run on otherwise behind an image (`ModelConfig.has_shifts`) has one layer more, which no
    attention reads: whatever moves a page moves what it holds too.  `shifts` is int32 [num_pages, page_size]: what is
    to be added to the position of the token *behind* the slot.

        text     | a   b  [ i   i   i   i   i   i ] c   d       an image of 2 x 3 rows
        position | 0   1    2   3   4   5   6   7   8   9       as the guest counts
        shift    | 0   0    0   0   0   0   0  -3  -3  -3       the image takes max(2, 3) positions, not 6
        rotated  | 0   1      (2, 2..3, 2..4)       5   6
    """

    def __init__(
        self, config: ModelConfig, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if num_pages < 1 or page_size < 1:
            raise ModelError(f"a pool needs num_pages and page_size of at least 1, given {num_pages} and {page_size}")
        self.num_pages = num_pages
        self.page_size = page_size
        num_held = num_pages + (torch.device(device).type == "cuda")
        shape = (config.num_pool_layers, num_held, 2, config.num_kv_heads, page_size, config.head_dim)
        if torch.device(device).type == "cpu":
            try:
                memory = huge_memory(math.prod(shape) * dtype.itemsize)
            except MemoryError as error:
                raise ModelError(f"a KV pool of {num_pages} pages of {page_size} tokens: {error}") from error
            self.data = memory.view(dtype).view(shape)
        else:
            self.data = torch.zeros(shape, dtype=dtype, device=device)
        self.scratch_slot = num_pages * page_size
        self.layers = list(self.data[: config.num_layers].unbind(0))
        self.shifts: torch.Tensor | None = None
        if config.has_shifts:
            self.shifts = self.data[-1].view(torch.int32)[:, 0, 0, :, 0]
        self.bits = as_bits(self.data)  # for who moves pages and does not look at them
        self._key_bounds: KeyBounds | None = None

    def key_bounds(self) -> KeyBounds:
        """Bounds of the keys of pages, kept from now on for as long as they have users."""
        if self._key_bounds is None:
            self._key_bounds = KeyBounds(self.layers)
        return self._key_bounds

    @property
    def keeps_bounds(self) -> bool:
        """Whether those who write to pages have to say so."""
        if self._key_bounds is not None and not self._key_bounds.users:
            self._key_bounds = None
        return self._key_bounds is not None

    def written(self, pages: torch.Tensor | I64) -> None:
        """Something is written to these pages: what is kept about their keys holds no more."""
        if self._key_bounds is not None:
            self._key_bounds.written(torch.as_tensor(pages).to(self.data.device))

    @staticmethod
    def page_nbytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
        """Bytes of one page over all layers."""
        return config.num_pool_layers * 2 * config.num_kv_heads * page_size * config.head_dim * dtype.itemsize

    @classmethod
    def pages_for(cls, config: ModelConfig, page_size: int, dtype: torch.dtype, budget: int) -> int:
        """How many pages fit in `budget` bytes; ModelError if none does."""
        page = cls.page_nbytes(config, page_size, dtype)
        if budget < page:
            raise ModelError(f"a KV budget of {budget} bytes holds no page: one page of this model takes {page} bytes")
        return budget // page

    @classmethod
    def pages_that_fit(
        cls, config: ModelConfig, page_size: int, dtype: torch.dtype, device: str, budget: int, gpu_fraction: float
    ) -> int:
        """How many pages fit in `budget` bytes; 0: in CPU_BYTES, or in `gpu_fraction` of what is free on the GPU, and
        MOST_PAGES then.  ModelError if none does."""
        if budget or not device.startswith("cuda"):
            return cls.pages_for(config, page_size, dtype, budget or CPU_BYTES)
        torch.cuda.empty_cache()  # what loading has left
        free, _ = torch.cuda.mem_get_info(torch.device(device))
        return min(cls.pages_for(config, page_size, dtype, int(free * gpu_fraction)), MOST_PAGES)

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def read_pages(self, pages: I64) -> bytes:
        """What pages hold, one behind the other, all layers of each together; InvalidRequest if one is outside."""
        places = self._places(pages)
        found = self.bits.transpose(0, 1).index_select(0, places).cpu().contiguous()
        return found.view(torch.uint8).numpy().tobytes()

    def write_pages(self, pages: I64, data: bytes) -> None:
        """The other way, each page given once.  InvalidRequest if one is outside or the size is another; nothing is
        written then."""
        places = self._places(pages)
        memory = self.bits.transpose(0, 1)
        shape = (len(pages), *memory.shape[1:])
        num_bytes = math.prod(shape) * memory.element_size()
        if len(data) != num_bytes:
            raise InvalidRequest(f"{len(pages)} pages of this pool hold {num_bytes} bytes; given {len(data)}")
        given = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(memory.dtype).view(shape)
        memory.index_copy_(0, places, given.to(memory.device))
        self.written(places)

    def _places(self, pages: I64) -> torch.Tensor:
        if len(bad := pages[(pages < 0) | (pages >= self.num_pages)]):
            raise InvalidRequest(f"page {int(bad[0])} is outside of {self.num_pages} pages")
        return torch.from_numpy(pages).to(self.data.device)

    def copy_tokens(self, ranges: Sequence[TokenRange]) -> None:
        """Copy token ranges across all layers; all are read before any is written.

        InvalidRequest if a page is outside the pool or a range leaves its page; nothing is copied then.
        """
        if not ranges:
            return
        table = np.asarray(ranges, dtype=np.int64).reshape(-1, 5)
        self._check(table)
        counts = table[:, 4]
        step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        src_page, src_off, dst_page, dst_off = (
            torch.from_numpy(column).to(self.data.device)
            for column in (
                np.repeat(table[:, 0], counts),
                np.repeat(table[:, 1], counts) + step,
                np.repeat(table[:, 2], counts),
                np.repeat(table[:, 3], counts) + step,
            )
        )
        self.bits[:, dst_page, :, :, dst_off] = self.bits[:, src_page, :, :, src_off]
        self.written(dst_page)

    def _check(self, table: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
        pages, offsets, counts = table[:, [0, 2]], table[:, [1, 3]], table[:, 4]
        if (pages < 0).any() or (pages >= self.num_pages).any():
            raise InvalidRequest(f"copy_tokens: page {int(pages.max())} is outside a pool of {self.num_pages} pages")
        if (counts < 0).any() or (offsets < 0).any() or (offsets + counts[:, None] > self.page_size).any():
            raise InvalidRequest(f"copy_tokens: a range leaves its page of {self.page_size} tokens")
