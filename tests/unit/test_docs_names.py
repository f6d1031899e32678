"""The documentation names tests, inferlets, handlers and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pieray.wit import api

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(p for p in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "inferlets" / "README.md"])
INFERLETS = sorted(p.parent.name for p in ROOT.glob("inferlets/*/inferlet.toml"))


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """Names of all test functions."""
    sources = (path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    return {name for source in sources for name in re.findall(r"^ *(?:async )?def (test_\w+)\(", source, re.MULTILINE)}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_a_page_names_tests_and_files_that_exist(path: Path, tests: set[str]) -> None:
    text = path.read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= tests, f"no such tests: {sorted(named - tests)}"
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing
    files = re.findall(r"`((?:pieray|actors|kernels|tests|tools|bench|inferlets)/[\w./-]+)`", text)
    assert not [name for name in files if not (ROOT / name).exists()]


def test_each_promise_and_each_row_has_what_shows_it(tests: set[str]) -> None:
    """The last column names an inferlet or a test, or the row says that there is none."""
    for name in ("promises.md", "coming-from.md"):
        for row in table_rows((ROOT / "docs" / name).read_text()):
            shown = re.findall(r"`([\w-]+)`", row[-1])
            assert all(one in tests or one in INFERLETS for one in shown), row
            assert shown or re.search(r"\bnone\b", " ".join(row)), f"{name}: nothing shows {row}"


def test_every_inferlet_is_in_the_table() -> None:
    text = (ROOT / "inferlets" / "README.md").read_text()
    assert sorted(re.findall(r"\]\(([\w-]+)\)", text)) == INFERLETS


def test_handlers_that_are_named_exist() -> None:
    """In the handler columns, `group.function` is in the WIT, and every group has an inferlet."""
    known = {(interface.name, function.name) for interface in api().interfaces for function in interface.functions}
    groups, seen = {group for group, _ in known}, set()
    for row in table_rows((ROOT / "inferlets" / "README.md").read_text()):
        group = ""
        for word in re.findall(r"`([\w.-]+)`", row[-1]):
            group, name = word.split(".") if "." in word else (word, "") if word in groups else (group, word)
            assert group in groups, row
            assert not name or (group, name) in known, (group, name)
            seen.add(group)
    assert groups - seen <= {"tickets", "model"}, "these are in every inferlet"


def table_rows(text: str) -> list[list[str]]:
    """Cells of all table rows but headings."""
    lines = text.splitlines()
    rows = []
    for i, line in enumerate(lines):
        is_heading = i + 1 < len(lines) and lines[i + 1].startswith("| ---")
        if line.startswith("| ") and not line.startswith("| ---") and not is_heading:
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows
