"""Every example of docs/api.md runs on the embedded model, and the page is what the WIT and the notes say."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Iterator

import pytest
from loras import as_bytes, random_lora

from pieray.assets import model_folder
from pieray.client.engine import Engine
from pieray.programs.sources import ProgramSource
from pieray.wit import Interface, api
from tools import apidoc

CALCULATOR = {"command": [sys.executable, str(apidoc.ROOT / "tests" / "support" / "mcp_calculator.py")]}
CAPABILITIES = {"messaging": True, "store": True, "children": True, "mcp": ["*"]}


def test_the_page_is_up_to_date() -> None:
    assert apidoc.fresh_page(), "python -m tools.apidoc"


def program(interface: Interface) -> str:
    """An inferlet that runs all examples of an interface, each by itself, and returns how they went."""
    parts = ["import traceback", "from inferlet import *", "RUN = {}"]
    for name, note in apidoc.notes_of(interface).items():
        lines = [*apidoc.PRELUDE, *apidoc.SETUP.get(interface.name, ()), note.example]
        body = textwrap.indent("\n".join(lines), "    ")
        parts.append(f"async def example():\n{body}\n\nRUN[{name!r}] = example")
    parts.append(
        "async def main():\n    found = {}\n    for name, run in RUN.items():\n        try:\n            await run()\n"
        "            found[name] = 'ok'\n        except Exception:\n            found[name] = traceback.format_exc()\n"
        "    for export in await kv.list_exports(''):\n"
        "        if export.owner == runtime.user():\n            await kv.unexport(export.name)\n    return found"
    )
    return "\n\n".join(parts)


@contextlib.contextmanager
def style(engine: Engine) -> Iterator[bytes]:
    """While the engine has an adapter by that name; its file."""
    adapter = as_bytes(random_lora(model_folder("pie-tiny"), 4, ("q_proj",)))
    engine.load_adapter("style", adapter)
    try:
        yield adapter
    finally:
        engine.unload_adapter("style")


@pytest.mark.parametrize("interface", api().interfaces, ids=lambda i: i.name)
def test_examples_run(engine: Engine, interface: Interface) -> None:
    source = ProgramSource("examples", f"{interface.name}.py", program(interface))
    with style(engine) as adapter:
        process = engine.launch(source, capabilities=CAPABILITIES, mcp={"calculator": CALCULATOR})
        if interface.name == "adapters":
            process.send_file("style.safetensors", adapter)
        found = process.result(timeout=120)
    failed = {name: text for name, text in found.items() if text != "ok"}
    assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
