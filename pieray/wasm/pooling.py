"""Where guests' memories, tables and stacks come from: slots that wasmtime reserves once and uses again.

A guest of the Python runtime writes to a few hundred pages of its image.  In memory of its own each of them is a page
fault, which is most of what a launch costs; in a slot that a guest has had before they are there already.  wasmtime
puts a slot back to the image when its guest is gone: the pages that were written, as Linux tells (PAGEMAP_SCAN, since
6.7), or all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from ctypes import c_size_t, c_uint8, c_uint32
from pathlib import Path

from pieray.wasm import native

MEMORIES_PER_GUEST = 4
TABLES_PER_GUEST = 8
TABLE_ELEMENTS = 30_000
INSTANCES_PER_GUEST = 100
"""Core instances, what componentize-py needs."""
MEMORY_BYTES = 4 << 30
"""Of address space, for each memory; a guest's own limit is below."""
MOST_MEMORIES = 16_384
"""They fill half of the address space."""
KEEP_BYTES = 8 << 20
"""Of each slot's memory, that stay resident between guests."""
WARM_SLOTS = 32
"""Slots that keep such memory while no guest has them, at most."""
LOOK_EVERY_S = 0.5
"""New slots are looked for no sooner again: it takes the longer the more there are, and a storm has ever new ones."""

SCAN_VERSION = "50.0.1"
"""The layout of this version is known, see `allow_scan`."""
_MARK = 0x5A17C3
_WORDS = 33
"""Of the structure, in front of the flags."""
_AUTO, _NO = 0, 2


_POPULATE_READ = 22
"""Of madvise, since Linux 5.14."""
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, c_size_t, ctypes.c_int]


def can_pool(num_guests: int) -> bool:
    """Whether so many guests' slots can be reserved.  wasmtime ends the process where it is refused address space."""
    if not sys.platform.startswith("linux") or not num_guests:
        return False
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    with contextlib.suppress(OSError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            return False
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return num_guests * native.STACK_BYTES < memory_bytes


def use_pool(config: int, num_guests: int) -> None:
    """Make an engine's configuration (its address) one that has slots for so many guests at a time."""
    pool = native.pooling_config_new()
    try:
        for name, value in _settings(num_guests).items():
            kind = c_uint32 if name.startswith(("total", "max_")) and not name.endswith("size") else c_size_t
            native.pooling_setter(name, kind)(pool, value)
        allow_scan(pool)
        native.pooling_strategy_set(config, pool)
    finally:
        native.pooling_config_delete(pool)


def _settings(num_guests: int) -> dict[str, int]:
    return {
        "total_component_instances": num_guests,
        "total_core_instances": num_guests * INSTANCES_PER_GUEST,
        "total_memories": min(num_guests * MEMORIES_PER_GUEST, MOST_MEMORIES),
        "total_tables": num_guests * TABLES_PER_GUEST,
        "total_stacks": num_guests,
        "max_core_instances_per_component": INSTANCES_PER_GUEST,
        "max_memories_per_component": MEMORIES_PER_GUEST,
        "max_memories_per_module": MEMORIES_PER_GUEST,
        "max_tables_per_component": TABLES_PER_GUEST,
        "max_tables_per_module": TABLES_PER_GUEST,
        "max_unused_warm_slots": WARM_SLOTS,
        "max_memory_size": MEMORY_BYTES,
        "max_core_instance_size": 16 << 20,
        "max_component_instance_size": 16 << 20,
        "table_elements": TABLE_ELEMENTS,
        "linear_memory_keep_resident": KEEP_BYTES,
        "table_keep_resident": 64 << 10,
        "async_stack_keep_resident": 0,
    }


def allow_scan(pool: int) -> bool:
    """Let wasmtime ask Linux which pages were written; False if this build cannot be told to.

    The C API has no function for it (`PoolingAllocationConfig::pagemap_scan` in Rust).  In the version that is known
    the setting is a byte behind `max_unused_warm_slots`, one of two that are "no" by default: it is set only if they
    are found as expected.  "auto" does nothing where the kernel has no such call.
    """
    if native.wasmtime_version() != SCAN_VERSION:
        return False
    words = (c_uint32 * _WORDS).from_address(pool)
    set_warm = native.pooling_setter("max_unused_warm_slots", c_uint32)
    set_warm(pool, _MARK)
    found = [i for i, word in enumerate(words) if word == _MARK]
    set_warm(pool, WARM_SLOTS)
    if len(found) != 1:
        return False
    flags = (c_uint8 * 2).from_address(pool + 4 * found[0] + 4)
    if list(flags) != [_NO, _NO]:
        return False
    flags[1] = _AUTO
    return True


class Slots:
    """Those that instances have had so far: their memory is mapped as a whole before it is put back first.

    wasmtime 50 takes a page that nobody has touched for one that was written, and copies up to KEEP_BYTES of those too
    each time, where a guest writes to less than half as much.  What is mapped from a file, or is Linux's page of zeros,
    it knows to be as it was.  Mapping takes no memory.  Thread-safe.
    """

    def __init__(self) -> None:
        self._num_live = 0
        self._most = 0  # of them at one time: so many slots there are
        self._counting = threading.Lock()
        self._num_looked_for = 0
        self._looked_at = -math.inf
        self._known: set[int] = set()
        self._looking = threading.Lock()  # for a tenth of a second perhaps: no new instance waits for it

    def taken(self) -> None:
        """For an instance."""
        with self._counting:
            self._num_live += 1
            self._most = max(self._most, self._num_live)

    def given_back(self) -> None:
        """One is about to be; its memory is still there."""
        with self._counting:
            self._num_live -= 1
            most = self._most
        with self._looking:
            now = time.monotonic()
            if self._num_looked_for == most or now - self._looked_at < LOOK_EVERY_S:
                return
            self._num_looked_for, self._looked_at = most, now
            for begin, end in _slots():
                if begin not in self._known:
                    self._known.add(begin)
                    _madvise(begin, end - begin, _POPULATE_READ)  # an older Linux refuses it: nothing is lost


def _slots() -> Iterator[tuple[int, int]]:
    """Where memories lie that begin with a component's image, with what can be written to in front of it and behind."""
    with Path("/proc/self/maps").open() as file:
        maps = [_Map(line.split(maxsplit=5)) for line in file]
    for before, image, behind in zip(maps, maps[1:], maps[2:], strict=False):
        if image.rights.startswith("rw") and image.name.endswith(".cwasm"):
            begin = before.begin if before.end == image.begin and before.is_plain else image.begin
            end = behind.end if behind.begin == image.end and behind.is_plain else image.end
            yield begin, end


class _Map:
    """A line of /proc/self/maps."""

    def __init__(self, fields: list[str]) -> None:
        self.begin, self.end = (int(at, 16) for at in fields[0].split("-"))
        self.rights = fields[1]
        self.name = fields[5].rstrip() if len(fields) > 5 else ""

    @property
    def is_plain(self) -> bool:
        """Whether it is memory of no file, to be written to."""
        return self.rights.startswith("rw") and not self.name
