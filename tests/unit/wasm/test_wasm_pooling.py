"""Slots of memory that guests have one after another: nothing of a guest is left in them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Container, Iterator

import pytest
import wasmtime
from wasm_fakes import GUESTS_C, Watched

from pieray.config import Limits
from pieray.errors import InvalidRequest
from pieray.wasm import host as host_module
from pieray.wasm import native, pooling
from pieray.wasm.host import WasmHost
from pieray.wasm.python_runtime import component_path

MARK = b"left-by-an-earlier-guest"
HOLDS = f"""
def main():
    held = [({MARK.decode()[::-1]!r}[::-1] + str(n)) * 50 for n in range(9000)]
    return len(held)
"""


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def images() -> Iterator[tuple[list[str], list[str]]]:
    """Lines of /proc/self/maps, as fields: each image of a component that is mapped to be written, and what follows."""
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
    for line, following in itertools.pairwise(lines):
        if line[1].startswith("rw") and len(line) > 5 and line[5].endswith(".cwasm"):
            yield line, following


def slots(of_others: Container[str]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Of each image but those at these addresses: its bytes, those of its file, those that follow."""
    with open("/proc/self/mem", "rb") as memory:
        for line, following in images():
            if line[0] in of_others:
                continue
            begin, end = (int(at, 16) for at in line[0].split("-"))
            memory.seek(begin)
            image = memory.read(end - begin)
            with open(line[5], "rb") as source:
                source.seek(int(line[2], 16))
                written = source.read(end - begin)
            begin, end = (int(at, 16) for at in following[0].split("-"))
            memory.seek(begin)
            yield image, written, memory.read(end - begin) if following[1].startswith("rw") else b""


@pytest.fixture
def wasm() -> Iterator[WasmHost]:
    wasm = WasmHost("fiber", most_guests=4)
    yield wasm
    wasm.close()


@pytest.mark.skipif(not pooling.can_pool(1), reason="no slots on this machine")
def test_a_slot_is_its_image_again(wasm: WasmHost) -> None:
    of_others = {line[0] for line, _ in images()}  # whose files may have changed since
    program = wasm.load(component_path(), "python-runtime")
    for _ in range(3):
        watched = Watched(wasm, program, "{}", source=HOLDS, limits=Limits(memory_bytes=64 << 20))
        assert watched.value == "9000"
    until(lambda: wasm.num_waiting == 0)
    found = list(slots(of_others))
    assert found
    for image, written, following in found:
        assert image == written
        assert MARK not in following


NEEDS_SCAN = pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 7), reason="Linux has no PAGEMAP_SCAN"
)


def copied_bytes() -> dict[str, int]:
    """Of each image that is mapped to be written: what is memory of this process's own."""
    name, sizes = "", {}
    with open("/proc/self/smaps") as file:
        for line in file:
            fields = line.split()
            if "-" in fields[0]:
                name = fields[0] if fields[1].startswith("rw") and line.rstrip().endswith(".cwasm") else ""
            elif fields[0] == "Anonymous:" and name:
                sizes[name] = int(fields[1]) << 10
    return sizes


@pytest.mark.skipif(not pooling.can_pool(1), reason="no slots on this machine")
@NEEDS_SCAN
def test_a_slot_keeps_what_guests_write_to_and_no_more(wasm: WasmHost) -> None:
    program = wasm.load(component_path(), "python-runtime")
    of_others = copied_bytes().keys()
    for _ in range(6):
        assert Watched(wasm, program, "{}", source="def main():\n    return 1\n").value == "1"
        until(lambda: wasm.num_waiting == 0)
    assert 1 << 20 < max(size for name, size in copied_bytes().items() if name not in of_others) < 5 << 20


@pytest.mark.skipif(not pooling.can_pool(1), reason="no slots on this machine")
@NEEDS_SCAN
def test_linux_tells_which_pages_were_written(wasm: WasmHost) -> None:
    assert native.wasmtime_version() == pooling.SCAN_VERSION, "find the setting in this one, see allow_scan"
    pool = native.pooling_config_new()
    assert pooling.allow_scan(pool)
    assert not pooling.allow_scan(pool)  # it is not what is expected any more: nothing is written
    native.pooling_config_delete(pool)
    opened = {
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    }
    assert any(path.endswith("/pagemap") for path in opened)


def test_guests_run_in_memory_of_their_own_where_there_are_no_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "can_pool", lambda _: False)
    wasm = WasmHost("fiber")
    program = wasm.load(GUESTS_C / "misbehave.wasm", "misbehave")
    assert Watched(wasm, program, "echo x").value == "x"
    wasm.close()


def test_what_no_slot_has_is_refused_as_it_is_loaded(wasm: WasmHost) -> None:
    tables = "(table 1 funcref)" * (pooling.TABLES_PER_GUEST + 1)
    content = bytes(wasmtime.wat2wasm(f"(component (core module $m {tables}) (core instance (instantiate $m)))"))
    with pytest.raises(InvalidRequest, match="greedy cannot be run here: module table does not fit"):
        wasm.load(content, "greedy")
