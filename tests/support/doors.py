"""A door hosted in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pieray.server.app import Door
from pieray.server.guard import Guard
from pieray.server.hosting import listening, serve


@contextmanager
def hosted(engine: Any, gate: Guard, telemetry: Any = None, others: Sequence[str] = ()) -> Iterator[str]:
    """The URL of a door over the engine, behind `gate`; `telemetry` is closed with it.  `others`: what the engine
    serves beside pie-tiny."""
    ready, leave = threading.Event(), threading.Event()
    bound = listening("127.0.0.1", 0)
    door = Door(engine, model="pie-tiny", others=others, telemetry=telemetry)
    app = door.app(gate)

    def wants_end() -> float | None:
        return 0.0 if leave.is_set() else None

    options = {"wants_end": wants_end, "on_ready": ready.set, "on_end": door.close}
    hosting = threading.Thread(target=serve, args=(app, gate, bound), kwargs=options, daemon=True)
    port = bound.getsockname()[1]
    hosting.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{port}"
    leave.set()
    hosting.join(10)
    assert not hosting.is_alive()
