"""The registry of programs: versions, owners, bounds, what a launch by name becomes, what lies on disk."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rounds import examples

from pieray.config import Limits
from pieray.errors import ConfigError, Denied, EngineError, InvalidRequest, NotFound, PierayError, QuotaExceeded
from pieray.messages import Install, Launch
from pieray.programs.capabilities import ALL
from pieray.programs.manifest import version_key
from pieray.programs.registry import Bounds, Registry
from pieray.programs.sources import COMPONENT_MAGIC

SOURCE = "def main(): return 1\n"


def program(name: str = "notes", version: str = "1.0.0", source: str = SOURCE, **fields: Any) -> Install:
    values: dict[str, Any] = {
        "component": b"",
        "capabilities": {},
        "limits": {},
        "description": "",
        "user": "ann",
        "tenant": "t",
    }
    return Install(name, version, "main.py", source, **{**values, **fields})


def launch(name: str, **fields: Any) -> Launch:
    everything = dataclasses.asdict(ALL)
    return Launch(
        **{
            "instance_id": "i",
            "name": name,
            "filename": "",
            "source": "",
            "component": b"",
            "input": "{}",
            "limits": {},
            "capabilities": everything,
            **fields,
        }
    )


def test_the_latest_version_is_what_a_name_means() -> None:
    registry = Registry()
    for version in ("1.2.0", "1.10.0", "2.0.0-rc.1", "1.9.0"):
        registry.install(program(version=version, source=f"# {version}\n"))
    assert registry.find("notes").version == "1.10.0"
    assert registry.find("notes@1.2.0").source == "# 1.2.0\n"
    assert registry.find("notes@2.0.0-rc.1").version == "2.0.0-rc.1"
    registry.install(program("early", "0.1.0-a"))
    assert registry.find("early").version == "0.1.0-a"
    assert [p["version"] for p in registry.programs() if p["name"] == "notes"] == [
        "1.2.0",
        "1.9.0",
        "1.10.0",
        "2.0.0-rc.1",
    ]
    with pytest.raises(NotFound, match=r"'notes@3.0.0'.*1.2.0, 1.9.0, 1.10.0"):
        registry.find("notes@3.0.0")
    with pytest.raises(NotFound, match="installed: early, notes"):
        registry.find("other")


def test_a_version_never_changes() -> None:
    registry = Registry()
    first = registry.install(program())
    assert first["sha256"] == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert registry.install(program()) == first
    for other in (program(source="other"), program(capabilities={"store": True}), program(limits={"pages": 3})):
        with pytest.raises(InvalidRequest, match="a version never changes"):
            registry.install(other)
    assert registry.programs() == [first]


def test_a_name_has_one_owner_until_all_its_versions_are_gone() -> None:
    registry = Registry()
    registry.install(program())
    for stranger in ({"user": "bob"}, {"tenant": "u"}):
        with pytest.raises(Denied, match="belongs to t/ann"):
            registry.install(program(version="2.0.0", **stranger))
    with pytest.raises(Denied, match="belongs to t/ann, not to t/bob"):
        registry.uninstall("notes", "t", "bob")
    registry.install(program(version="1.1.0"))
    assert registry.uninstall("notes@1.0.0", "t", "ann") == ["notes@1.0.0"]
    assert registry.uninstall("notes", "t", "ann") == ["notes@1.1.0"]
    with pytest.raises(NotFound):
        registry.uninstall("notes", "t", "ann")
    assert registry.install(program(user="bob"))["owner"] == "t/bob"


def test_an_embedded_name_cannot_be_taken() -> None:
    with pytest.raises(Denied, match="embedded"):
        Registry().install(program("text-completion"))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (program(""), InvalidRequest, "under a name"),
        (program("a/b"), ConfigError, "letters, digits"),
        (program(version="1"), ConfigError, "1.2.3"),
        (program(source=""), InvalidRequest, "one of them"),
        (program(component=COMPONENT_MAGIC), InvalidRequest, "one of them"),
        (program(source="", component=b"\x7fELF"), InvalidRequest, "no WebAssembly component"),
        (program(capabilities={"stoer": True}), ConfigError, "did you mean capabilities.store"),
        (program(limits={"pages": -1}), ConfigError, "at least 0"),
        (program(source="#" * 101), QuotaExceeded, "source_bytes: the limit is 100; notes has 101"),
    ],
)
def test_what_is_no_program_is_refused(given: Install, error: type[PierayError], message: str) -> None:
    registry = Registry(bounds=Bounds(program_bytes=100))
    with pytest.raises(error, match=message):
        registry.install(given)
    assert registry.programs() == []


def test_it_is_bounded_in_number_and_bytes() -> None:
    registry = Registry(bounds=Bounds(programs=2, total_bytes=50))
    registry.install(program(source="a" * 20))
    with pytest.raises(QuotaExceeded, match="registry_bytes: the limit is 50; with this program it would be 60"):
        registry.install(program(version="1.1.0", source="b" * 40))
    registry.install(program(version="1.1.0", source="b" * 20))
    with pytest.raises(QuotaExceeded, match="registry_programs: the limit is 2"):
        registry.install(program(version="1.2.0", source="c"))
    registry.uninstall("notes@1.0.0", "t", "ann")
    registry.install(program(version="1.2.0", source="c"))


def test_a_launch_by_name_gets_the_program_with_what_its_manifest_allows() -> None:
    registry = Registry()
    declared = {"store": True, "http": ["a.org", "b.org"]}
    registry.install(program(capabilities=declared, limits={"pages": 9, "tickets": 9}))
    filled = registry.filled(launch("notes", limits={"tickets": 5}), Limits(pages=100))
    assert (filled.name, filled.version, filled.source) == ("notes", "1.0.0", SOURCE)
    assert filled.limits == {"pages": 9, "tickets": 5}
    assert filled.capabilities == {
        "http": ("a.org", "b.org"),
        "mcp": (),
        "messaging": False,
        "store": True,
        "children": False,
    }


def test_a_launch_by_name_may_narrow_and_not_widen() -> None:
    registry = Registry()
    registry.install(program(capabilities={"store": True, "http": ["a.org"]}))
    asked = {"http": ["a.org", "evil.org"], "children": True}
    granted = registry.filled(launch("notes", capabilities=asked), Limits()).capabilities
    assert granted == {"http": ("a.org",), "mcp": (), "messaging": False, "store": False, "children": False}
    assert not any(registry.filled(launch("notes", capabilities={}), Limits()).capabilities.values())


def test_a_limit_above_the_engines_is_the_engines() -> None:
    registry = Registry()
    registry.install(program(limits={"pages": 10**6}))
    assert registry.filled(launch("notes"), Limits()).limits == {}


def test_embedded_inferlets_are_found_by_name_and_other_files_never_are(tmp_path: Path) -> None:
    (tmp_path / "inferlet.toml").write_text("")
    (tmp_path / "main.py").write_text(SOURCE)
    registry = Registry()
    assert "async def main" in registry.filled(launch("text-completion"), Limits()).source
    for name in (
        str(tmp_path),
        f"../{tmp_path.name}",
        "..",
        ".",
        "",
        "text-completion/../chat",
        "text-completion@9.9.9",
        "/etc/passwd",
        "a\0b",
        "x" * 10_000,
        str(tmp_path / "main.py"),
    ):
        with pytest.raises(NotFound):
            registry.filled(launch(name), Limits())


def test_a_folder_keeps_programs_past_the_registrys_life(tmp_path: Path) -> None:
    component = program("wasm", source="", component=COMPONENT_MAGIC + b"\0\xff" * 1000)
    facts = [Registry(tmp_path / "p").install(p) for p in (program(limits={"wall_time_s": 1.5}), component)]
    again = Registry(tmp_path / "p")
    assert again.programs() == facts
    assert again.find("wasm").component == component.component
    assert again.install(component) == facts[1]
    with pytest.raises(Denied):
        again.install(program(version="3.0.0", user="bob"))
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == ["notes@1.0.0.program", "wasm@1.0.0.program"]


def test_engines_that_share_a_folder_see_each_others_programs(tmp_path: Path) -> None:
    one, other = Registry(tmp_path), Registry(tmp_path)
    one.install(program())
    with pytest.raises(InvalidRequest, match="never changes"):
        other.install(program(source="other"))
    assert other.find("notes").source == SOURCE
    other.uninstall("notes", "t", "ann")
    with pytest.raises(NotFound):
        one.find("notes")


def test_a_damaged_file_costs_only_its_program(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for name in ("a", "b", "c"):
        registry.install(program(name))
    path = tmp_path / "b@1.0.0.program"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (tmp_path / "c@1.0.0.program").write_bytes(b"")
    (tmp_path / "d@1.0.0.program").write_bytes(hashlib.sha256(b"junk").digest() + b"junk")
    assert [p["name"] for p in Registry(tmp_path).programs()] == ["a"]


def test_a_folder_that_cannot_be_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="registry_path"):
        Registry(tmp_path / "file" / "below")


class Model(RuleBasedStateMachine):
    """Against a dictionary: installs, uninstalls, lookups by two users."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(bounds=Bounds(programs=4))
        self.held: dict[tuple[str, str], tuple[str, str]] = {}

    def owner(self, name: str) -> str | None:
        return next((user for (n, _), (_, user) in self.held.items() if n == name), None)

    @rule(
        name=st.sampled_from("ab"),
        version=st.sampled_from(["1.0.0", "1.1.0", "1.0.0-rc.1"]),
        source=st.sampled_from("xy"),
        user=st.sampled_from(["ann", "bob"]),
    )
    def install(self, name: str, version: str, source: str, user: str) -> None:
        there = self.held.get((name, version))
        is_new = there is None and len(self.held) < 4
        may = self.owner(name) in (None, user) and (is_new or (there is not None and there[0] == source))
        try:
            self.registry.install(program(name, version, source, user=user))
        except PierayError:
            assert not may
        else:
            assert may
            self.held[name, version] = (source, user)

    @rule(
        name=st.sampled_from("ab"),
        version=st.sampled_from(["", "@1.0.0", "@1.1.0"]),
        user=st.sampled_from(["ann", "bob"]),
    )
    def uninstall(self, name: str, version: str, user: str) -> None:
        wanted = {key for key in self.held if key[0] == name and version[1:] in ("", key[1])}
        try:
            dropped = self.registry.uninstall(name + version, "t", user)
        except PierayError:
            assert not wanted or self.owner(name) != user
        else:
            assert {tuple(spec.split("@")) for spec in dropped} == wanted
            for key in wanted:
                del self.held[key]

    @invariant()
    def they_agree(self) -> None:
        assert {(p["name"], p["version"]) for p in self.registry.programs()} == set(self.held)
        for name in "ab":
            versions = [v for n, v in self.held if n == name]
            if releases := [v for v in versions if "-" not in v]:
                assert self.registry.find(name).version == max(releases, key=version_key)


Model.TestCase.settings = settings(max_examples=examples(30), stateful_step_count=25)
TestRegistryModel = Model.TestCase


def test_a_child_has_the_lower_of_its_manifests_and_its_parents_limits() -> None:
    registry = Registry()
    registry.install(program(limits={"pages": 9, "tickets": 9}))
    given = launch("notes", limits={"tickets": 5, "pages": 50, "queues": 2}, parent="someone-1")
    assert registry.filled(given, Limits(pages=100)).limits == {"pages": 9, "tickets": 5, "queues": 2}


def test_the_revision_rises_with_each_change_and_with_nothing_else(tmp_path: Path) -> None:
    registry, other = Registry(tmp_path), Registry(tmp_path)
    seen = [registry.revision]
    registry.install(program())
    seen.append(registry.revision)
    registry.install(program())
    assert registry.resolve("notes") == (registry.revision, registry.find("notes"))
    assert registry.revision == seen[-1]
    other.install(program(version="1.1.0"))  # of another engine, in the same folder
    seen.append(registry.revision)
    assert registry.resolve("notes")[1].version == "1.1.0"
    registry.uninstall("notes", "t", "ann")
    seen.append(registry.revision)
    assert seen == sorted(set(seen))
    assert Registry(tmp_path).revision > seen[0]
