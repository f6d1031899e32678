"""Children launched by name: installed programs, with what their manifest and their parent allow."""

from __future__ import annotations

from typing import Any

import pytest
from programs import program

from pieray import ProgramSource
from pieray.errors import PierayError

CHILD = """
import json
from inferlet import _host

def main():
    capabilities = json.loads(_host.runtime.capabilities())
    return [_host.runtime.program(), sorted(k for k, v in capabilities.items() if v)]
"""
PARENT = program(
    """
import json
from inferlet import _host

def main(name):
    child = _host.children.launch(name, "", "{}", "", _host.LinkKind.NONE)
    ticket = _host.children.wait(child)
    _host.tickets.wait([ticket], -1)
    return json.loads(_host.tickets.take_text(ticket))
""",
    "parent",
)


def test_a_child_by_name_has_what_both_its_manifest_and_its_parent_have(engine: Any) -> None:
    declared = {"store": True, "messaging": True}
    engine.install(ProgramSource("kid", "kid.py", source=CHILD, version="1.2.0", capabilities=declared))
    try:
        allowed = {"children": True, "store": True}
        assert engine.launch(PARENT, name="kid", capabilities=allowed).result(timeout=60) == ["kid@1.2.0", ["store"]]
        assert engine.launch(PARENT, name="kid@1.2.0", capabilities={"children": True}).result(timeout=60)[1] == []
        for name in ("/etc/passwd", "no-such-program"):
            with pytest.raises(PierayError, match=f"given '{name}'|no program '{name}' is installed"):
                engine.launch(PARENT, name=name, capabilities=allowed).result(timeout=60)
    finally:
        engine.uninstall("kid")


def test_a_child_by_name_has_the_lower_limits_of_its_manifest_and_its_parent(engine: Any) -> None:
    source = "from inferlet import runtime\ndef main(): return runtime.limits()['limits']\n"
    declared = {"pages": 9, "tickets": 90}
    engine.install(ProgramSource("small", "small.py", source=source, version="1.0.0", limits=declared))
    try:
        limits = {"pages": 50, "tickets": 40}
        found = engine.launch(PARENT, name="small", capabilities={"children": True}, limits=limits).result(timeout=60)
        assert (found["pages"], found["tickets"]) == (9, 40)
    finally:
        engine.uninstall("small")
