"""What a process pays for what it does not use: imports stay light, for they are most of a cold start."""

from __future__ import annotations

import subprocess
import sys

import pytest

WORLD = {"httpx", "httpcore", "anyio", "mcp", "llguidance"}
FOREIGN = {f"pieray.messages.{name}" for name in ("batcher", "broker", "leases", "plans", "adapters")}
"""Messages that no client sends or gets."""
HEAVY = {"torch", "transformers", "triton", "safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pieray", HEAVY | WORLD | {"ray", "wasmtime", "numpy"}),
        ("pieray.cli.app", HEAVY | WORLD | FOREIGN | {"ray", "wasmtime", "numpy", "asyncio", "pydantic"}),
        ("pieray.actors.controller", HEAVY | WORLD | {"wasmtime", "numpy"}),
        ("pieray.actors.supervisor", HEAVY | WORLD | {"ray", "wasmtime", "numpy"}),
        ("pieray.actors.resource_manager", HEAVY | WORLD | {"wasmtime", "numpy"}),
        ("pieray.broker.service", HEAVY | WORLD | {"ray", "wasmtime", "numpy"}),
        ("pieray.host.core", HEAVY | WORLD | {"ray"}),  # all that an InferletActor begins with
    ],
)
def test_a_module_does_not_load_what_it_may_never_need(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & absent == set()


def test_services_of_an_engine_load_no_library_of_the_world() -> None:
    code = (
        "import sys; from pieray.config import load; from pieray.host.services import Services; "
        "services = Services.of(load({'http_hosts': ['example.org:*']})); services.close(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & (HEAVY | WORLD) == set()
