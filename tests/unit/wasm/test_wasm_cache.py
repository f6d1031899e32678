"""What is dropped from the folder of compiled code, and what is kept."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pieray.wasm import cache
from pieray.wasm.cache import KEEP_RECENT_S, KEEP_UNUSED_S, scratch, tidy

WORK = """
import sys, time
from pathlib import Path
from pieray.wasm.cache import scratch
with scratch(Path(sys.argv[1]), "compile-") as folder:
    (folder / "half").write_bytes(b"x")
    print("at work", flush=True)
    time.sleep(600)
"""
HOUR_S = 3600.0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_nobody_uses_is_dropped_and_what_is_no_code_is_kept(tmp_path: Path) -> None:
    for name in ("old.cwasm", "used.cwasm", "notes.txt", "node"):
        (tmp_path / name).write_bytes(b"x")
    now = (tmp_path / "old.cwasm").stat().st_mtime
    os.utime(tmp_path / "used.cwasm", (now + KEEP_UNUSED_S, now + KEEP_UNUSED_S))
    tidy(tmp_path, now + KEEP_UNUSED_S + 1)
    assert names(tmp_path) == ["node", "notes.txt", "used.cwasm"]


def test_beyond_the_limit_the_least_recently_used_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 250)
    now = time.time()
    for age_h, name in enumerate(("new.wasm", "newer-than-most.cwasm", "old.wasm", "older.cwasm", "oldest.wasm"), 1):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (now - age_h * HOUR_S, now - age_h * HOUR_S))
    (tmp_path / "oldest.lock").touch()
    tidy(tmp_path, now)
    assert names(tmp_path) == ["new.wasm", "newer-than-most.cwasm", "oldest.lock"]


def test_what_was_just_asked_for_is_kept_whatever_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 250)
    for number in range(5):
        (tmp_path / f"{number}.wasm").write_bytes(bytes(100))
    tidy(tmp_path, time.time() + KEEP_RECENT_S / 2)
    assert len(names(tmp_path)) == 5


def test_the_scratch_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORK, tmp_path], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "at work\n"
    later = time.time() + 2 * HOUR_S
    tidy(tmp_path, later)
    assert len(names(tmp_path)) == 1
    worker.kill()
    worker.communicate()
    tidy(tmp_path)  # it might be one that is just being made
    assert len(names(tmp_path)) == 1
    tidy(tmp_path, time.time() + 61)
    assert names(tmp_path) == []


def test_scratch_folders_without_a_lock_go_after_an_hour(tmp_path: Path) -> None:
    (tmp_path / "build-x").mkdir()
    tidy(tmp_path, time.time() + HOUR_S - 5)
    assert names(tmp_path) == ["build-x"]
    tidy(tmp_path, time.time() + HOUR_S + 5)
    assert names(tmp_path) == []


def test_a_scratch_folder_is_gone_after_the_block(tmp_path: Path) -> None:
    with scratch(tmp_path, "build-") as folder:
        assert list(folder.iterdir()) == []
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []
