"""Memory for what each step reads whole: side by side, in huge pages where the system gives them."""

from __future__ import annotations

import contextlib
import mmap

import torch

CHUNK = 64 << 20
LINE = 64
HUGE_PAGE = 2 << 20


class Arena:
    """Takes copies of tensors that are never given back one by one; the memory lives as long as the arena.

    What is taken one after the other lies so, in lines of the cache.  Pages of 4 KiB would cost a third of the
    bandwidth, for each is looked up anew.
    """

    def __init__(self) -> None:
        self._chunks: list[torch.Tensor] = []
        self._used = 0

    def take(self, tensor: torch.Tensor) -> int:
        """The address of a contiguous copy, whether the tensor is contiguous or not."""
        nbytes = tensor.numel() * tensor.element_size()
        if not self._chunks or self._used + nbytes > len(self._chunks[-1]):
            self._chunks.append(huge_memory(max(nbytes, CHUNK)))
            self._used = 0
        place = self._chunks[-1][self._used : self._used + nbytes]
        self._used += -(-nbytes // LINE) * LINE
        place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return place.data_ptr()


def huge_memory(nbytes: int) -> torch.Tensor:
    """Bytes [nbytes] of zeros that begin a huge page; pages are taken from the system as they are first used.

    Raises MemoryError where the system does not give so many.
    """
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        memory = mmap.mmap(-1, nbytes + HUGE_PAGE, **flags)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"the system does not give {nbytes} bytes: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    found = torch.frombuffer(memory, dtype=torch.uint8)
    first = -found.data_ptr() % HUGE_PAGE
    return found[first : first + nbytes]
