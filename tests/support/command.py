"""The installed `pieray` as a process, and everything that descends from it, wherever it is adopted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from signals import heeding_signals

BIN = Path(sys.executable).parent
MARK = "PIERAY_TEST_MARK"
TIMEOUT_S = 120.0

HOLD = """
import asyncio
from inferlet import session

async def main():
    session.send("running\\n")
    await asyncio.sleep(600)
"""
SPIN = """
from inferlet import session

async def main():
    session.send("running\\n")
    while True: pass
"""


@dataclass
class CommandLine:
    """Runs commands in a folder, with an environment whose mark their processes inherit."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PIERAY_"))}
        kept |= {name: os.environ[name] for name in ("PIERAY_CACHE",) if name in os.environ}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return {
            **kept,
            "PATH": path,
            "PIERAY_HOME": str(self.folder / "home"),
            MARK: self.mark,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end; its output is captured."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            **options,
        )

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start in a session of its own, as a terminal would have it."""
        with heeding_signals():
            return subprocess.Popen(
                words,
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def hold(self, program: str = "hold.py") -> subprocess.Popen[str]:
        """`pieray run` of one that never ends, once it runs."""
        process = self.begin("pieray", "run", program)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "running\n", process.communicate(timeout=TIMEOUT_S)
        return process

    def until_no_inferlet_runs(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while "running" in [row["state"] for row in json.loads(self.run("pieray", "ps", "--json").stdout)]:
            assert time.monotonic() < deadline

    def alive(self) -> list[str]:
        """Processes with the mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
            except psutil.Error:
                continue
        return found

    def assert_nothing_is_left(self, timeout_s: float = 5.0) -> None:
        """Moments later at most, for a process that a kill -9 orphaned has to notice."""
        deadline = time.monotonic() + timeout_s
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = self.alive()
        assert left == [], f"still alive after {timeout_s} s: {left}"
