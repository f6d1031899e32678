"""A door hosted in this process, over an engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pieray.server.app import Door
from pieray.server.guard import Guard
from pieray.server.hosting import listening, serve


@contextmanager
def hosted(engine: Any, gate: Guard) -> Iterator[str]:
    """The URL of a door over the engine, behind `gate`."""
    ready, leave = threading.Event(), threading.Event()
    bound = listening("127.0.0.1", 0)
    app = Door(engine, model="pie-tiny").app(gate)

    def wants_end() -> float | None:
        return 0.0 if leave.is_set() else None

    hosting = threading.Thread(
        target=serve, args=(app, gate, bound), kwargs={"wants_end": wants_end, "on_ready": ready.set}, daemon=True
    )
    port = bound.getsockname()[1]
    hosting.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{port}"
    leave.set()
    hosting.join(10)
    assert not hosting.is_alive()
