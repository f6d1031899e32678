"""What a client knows of installed programs, and the two forms of a launch."""

from __future__ import annotations

from typing import Any

import pytest

from pieray.config import Limits
from pieray.errors import ConfigError, NotFound
from pieray.mapping import from_mapping
from pieray.messages import Install, encode
from pieray.programs import launches
from pieray.programs.capabilities import Capabilities
from pieray.programs.launches import InstalledPrograms, LaunchRequest, prepared
from pieray.programs.sources import ProgramSource


class Registry:
    def __init__(self) -> None:
        self.revision = 1
        self.programs: dict[str, Install] = {}
        self.asked: list[str] = []

    def add(self, name: str, source: str, version: str = "1.0.0", **fields: Any) -> None:
        self.revision += 1
        values = {"capabilities": {"store": True}, "limits": {"pages": 9}, "description": "", "user": "", "tenant": "t"}
        self.programs[name] = Install(name, version, "main.py", source, b"", **{**values, **fields})

    def __call__(self, spec: str) -> tuple[int, bytes]:
        self.asked.append(spec)
        if spec not in self.programs:
            raise NotFound(spec)
        return self.revision, encode([self.programs[spec]])


def test_each_name_is_asked_for_once_until_programs_change() -> None:
    registry = Registry()
    installed = InstalledPrograms(registry)
    registry.add("a", "1")
    registry.add("b", "2")
    for _ in range(3):
        assert [installed.find(name)[1].source for name in "ab"] == ["1", "2"]
    assert registry.asked == ["a", "b"]
    registry.add("a", "3")
    assert installed.find("a")[1].source == "1"  # as of the revision that it is sent with
    assert installed.find("a")[0] < registry.revision
    installed.forget()
    assert installed.find("a")[1].source == "3"
    with pytest.raises(NotFound):
        installed.find("c")
    with pytest.raises(NotFound):
        installed.find("c")
    assert registry.asked == ["a", "b", "a", "c", "c"]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "KNOWN_BYTES", 10_000)
    registry = Registry()
    installed = InstalledPrograms(registry)
    for name in "abc":
        registry.add(name, "x" * 3000)
        installed.find(name)
    registry.add("huge", "x" * 20_000)
    assert len(installed.find("huge")[1].source) == 20_000
    assert installed._num_bytes == 0
    registry.asked.clear()
    for name in "ab":
        installed.find(name)
    installed.find("a")
    registry.add("d", "x" * 3000)
    installed.find("d")
    installed.find("a")
    assert registry.asked == ["a", "b", "d"]  # b was used least recently
    installed.find("b")
    assert registry.asked == ["a", "b", "d", "b"]


def test_an_installed_one_goes_whole_to_an_actor_and_by_name_to_the_controller() -> None:
    registry = Registry()
    registry.add("notes", "def main(): ...")
    program = registry.programs["notes"]
    request = LaunchRequest("notes", {"n": 1}, capabilities={"store": True, "messaging": True}, attached=True)
    found = prepared(request, ("notes@1.0.0", 7, program), Limits(), user="ann", tenant="t")
    assert found.revision == 7
    assert (found.by_name.name, found.by_name.source, found.by_name.limits) == ("notes@1.0.0", "", {})
    whole = found.whole
    assert (whole.name, whole.version, whole.source, whole.limits) == ("notes", "1.0.0", program.source, {"pages": 9})
    granted = from_mapping(Capabilities, whole.capabilities)
    assert (granted.store, granted.messaging) == (True, False)  # no more than its manifest has
    assert whole.instance_id == found.by_name.instance_id
    renamed = found.renamed()
    assert renamed.whole.instance_id == renamed.by_name.instance_id != whole.instance_id
    with pytest.raises(ConfigError, match="limits.pages"):
        prepared(LaunchRequest("notes", limits={"pages": 10**9}), ("notes", 7, program), Limits(), user="", tenant="")


def test_the_clients_own_has_one_form() -> None:
    program = ProgramSource("own", "own.py", source="def main(): ...", limits={"pages": 5})
    found = prepared(LaunchRequest(program, limits={"tickets": 3}), program, Limits(), user="ann", tenant="t")
    assert found.by_name is found.whole
    assert (found.revision, found.whole.limits) == (0, {"pages": 5, "tickets": 3})


def test_a_name_alone_is_for_the_controller() -> None:
    program = ProgramSource("notes", "", version="1.0.0")
    found = prepared(LaunchRequest(program), program, Limits(), user="ann", tenant="t")
    assert (found.has_content, found.may_compile) == (False, True)
    assert (found.by_name.name, found.name) == ("notes@1.0.0", "notes")
    assert from_mapping(Capabilities, found.by_name.capabilities).store  # of those that its manifest declares
