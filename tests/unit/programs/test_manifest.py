"""Manifests: what they may say, what is refused, how versions are ordered."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.config import Limits
from pieray.errors import ConfigError
from pieray.programs import manifest
from pieray.programs.capabilities import Capabilities
from pieray.programs.manifest import Manifest, limits_below, version_key
from pieray.programs.sources import resolve

FULL = """
name = "notes"
version = "1.2.3"
description = "Keeps notes"
[capabilities]
store = true
http = ["api.example.org"]
[limits]
pages = 64
wall-time-s = 2.5
"""
BLOCK = '''#!/usr/bin/env python3
# Copyright.

# /// inferlet
# version = "0.2.0"
#
# [capabilities]
# messaging = true
# [limits]
# pages = 7
# ///
"""Doc."""
def main(): ...
'''


def write(folder: Path, text: str, main: str = "def main(): ...\n") -> Path:
    (folder / "inferlet.toml").write_text(text, encoding="utf-8")
    (folder / "main.py").write_text(main, encoding="utf-8")
    return folder


def test_a_folder_declares_all(tmp_path: Path) -> None:
    found = resolve(str(write(tmp_path, FULL)))
    assert (found.name, found.version, found.description) == ("notes", "1.2.3", "Keeps notes")
    declared = Capabilities(http=("api.example.org",), store=True)
    assert Capabilities(**found.capabilities) == declared
    assert limits_below(found.limits, Limits()) == {"pages": 64, "wall_time_s": 2.5}


def test_a_file_declares_in_its_leading_comments(tmp_path: Path) -> None:
    path = tmp_path / "talk.py"
    path.write_text(BLOCK, encoding="utf-8")
    found = resolve(str(path))
    assert (found.name, found.version, found.limits) == ("talk", "0.2.0", {"pages": 7})
    assert Capabilities(**found.capabilities) == Capabilities(messaging=True)
    assert found.source == BLOCK


def test_nothing_declared_is_nothing_allowed() -> None:
    for source in ("def main(): ...\n", "", f'x = """\n{BLOCK}"""\n'):  # the last is another program's, in a string
        found = manifest.of_source(source, "plain.py")
        assert (found.capabilities, found.limits, found.version, found.name) == (Capabilities(), {}, "", "plain")


def test_windows_line_ends_are_no_matter() -> None:
    assert manifest.of_source(BLOCK.replace("\n", "\r\n"), "x.py").version == "0.2.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('nam = "x"', "did you mean name"),
        ("[capabilities]\nstor = true", "did you mean capabilities.store"),
        ("[limits]\npage = 3", "did you mean limits.pages"),
        ("[limits]\npages = -1", "limits.pages is at least 0; given -1"),
        ("[limits]\npages = nan", "limits.pages is int"),
        ("[capabilities]\nstore = 3", "capabilities.store is bool; given 3"),
        ("[capabilities]\nhttp = [1]", "capabilities.http"),
        ("version = 1.0", "version is str; given 1.0"),
        ('version = "1.0"', 'like "1.2.3"'),
        ('name = "../up"', "letters, digits"),
        ('name = ""\nmain = "/etc/passwd"', "below the manifest's folder"),
        ('entry = "../x.c"', "below the manifest's folder"),
        ('lang = "cobol"', "lang is one of py, js, c, rust"),
        ("name = ", "cannot be read as an inferlet's manifest"),
    ],
)
def test_faults_are_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        resolve(str(write(tmp_path, text)))
    assert str(tmp_path / "inferlet.toml") in raised.value.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# /// inferlet\n# version = '1.0.0'\n", "no end"),
        ("# /// inferlet\n# ///\n# /// inferlet\n# ///\n", "two"),
        ("# /// inferlet\n#x = 1\n# ///\n", 'begins with "# "'),
        ("# /// inferlet\n# main = 'x.py'\n# ///\n", "main has no place"),
        ("# /// inferlet\n# version = \n# ///\n", "Invalid value"),
    ],
)
def test_faults_of_a_block_are_named_with_the_file(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        manifest.of_source(source, "odd.py")
    assert raised.value.message.startswith("odd.py")


def test_a_block_that_never_ends_is_read_once() -> None:
    with pytest.raises(ConfigError):
        manifest.of_source("# /// inferlet\n" * 200_000, "long.py")


def test_what_is_launched_and_what_it_is_built_from() -> None:
    def files(**values: str) -> tuple[str, str, str]:
        found = Manifest(name="n", **values)
        return found.language, found.entry_file, found.main_file

    assert files() == ("py", "main.py", "main.py")
    assert files(main="app.py") == ("py", "app.py", "app.py")
    assert files(lang="c") == ("c", "main.c", "n.wasm")
    assert files(entry="src/lib.rs", main="out/x.wasm") == ("rust", "src/lib.rs", "out/x.wasm")
    assert files(main="x.wasm") == ("", "", "x.wasm")


def test_limits_are_lowered_and_never_raised() -> None:
    assert limits_below({"pages": 10, "tickets": 10**9, "cpu-time-s": 1}, Limits()) == {"pages": 10, "cpu_time_s": 1.0}


def test_versions_are_ordered_as_the_standard_has_it() -> None:
    ordered = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.0.2",
        "1.0.10",
        "1.2.0",
        "2.0.0",
    ]  # semver.org 2.0.0, section 11
    keys = [version_key(version) for version in ordered]
    assert all(one < other for one, other in itertools.pairwise(keys))


TRIPLES = st.tuples(*[st.integers(0, 20)] * 3)


@settings(max_examples=examples(50))
@given(TRIPLES, TRIPLES)
def test_versions_compare_by_number(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    keys = [version_key(".".join(map(str, numbers))) for numbers in (one, other)]
    assert (keys[0] < keys[1]) == (one < other)


@pytest.mark.parametrize("text", ["", "1", "1.2", "01.2.3", "1.2.3-", "1.2.3-a..b", "v1.2.3", "1.2.3+b", "\u0661.0.0"])
def test_any_other_version_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="1.2.3-rc.1"):
        version_key(text)
