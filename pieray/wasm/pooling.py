"""Where guests' memories, tables and stacks come from: slots that wasmtime reserves once and uses again.

A guest of the Python runtime writes to a few hundred pages of its image.  In memory of its own each of them is a page
fault, which is most of what a launch costs; in a slot that a guest has had before they are there already.  wasmtime
puts a slot back to the image when its guest is gone: the pages that were written, as Linux tells (PAGEMAP_SCAN, since
6.7), or all of them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
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

SCAN_VERSION = "50.0.1"
"""The layout of this version is known, see `allow_scan`."""
_MARK = 0x5A17C3
_WORDS = 33
"""Of the structure, in front of the flags."""
_AUTO, _NO = 0, 2


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
