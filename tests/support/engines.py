"""What tests on a running engine share."""

from __future__ import annotations

import time
from typing import Any


def assert_pages_return(engine: Any, timeout_s: float = 20.0) -> None:
    """Every page but those of exports comes back once nothing runs; the ledger checks its books as it answers."""
    deadline = time.monotonic() + timeout_s
    while True:
        pools = [a for a in engine.status()["actors"] if a["role"] == "resource-manager"]
        if pools and all(pages["free"] + pages["cached"] == pages["total"] for pages in pools):
            return
        running = [row for row in engine.ps() if row["state"] in ("starting", "running")]
        assert time.monotonic() < deadline, f"pages did not return: {pools}; running: {running}"
        time.sleep(0.05)


def run(engine: Any, program: Any, **arguments: object) -> Any:
    """The result of a program, a source or an installed name, launched with these arguments."""
    return engine.launch(program, arguments).result(timeout=60)
