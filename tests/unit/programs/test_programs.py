"""From names and files to programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pieray.errors import InvalidRequest, NotFound
from pieray.programs.sources import COMPONENT_MAGIC, embedded_inferlets, inferlets_folder, resolve


def test_an_embedded_inferlet_is_found_by_name() -> None:
    found = resolve("text-completion")
    assert found.name == "text-completion"
    assert "async def main" in found.source
    assert not found.component


def test_every_embedded_inferlet_has_a_manifest_that_resolves() -> None:
    manifests = embedded_inferlets()
    assert "text-completion" in manifests
    for name, manifest in manifests.items():
        assert manifest.name == name
        assert manifest.description
        if manifest.language == "js" and not (inferlets_folder() / name / manifest.main_file).exists():
            with pytest.raises(InvalidRequest, match="not built yet: `pieray build .*completion-js`"):
                resolve(name)
        else:
            assert resolve(name).source or resolve(name).component


def test_files_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    source = tmp_path / "hello.py"
    source.write_text("def main():\n    return 1\n")
    assert resolve(str(source)).filename == "hello.py"
    component = tmp_path / "hello.wasm"
    component.write_bytes(COMPONENT_MAGIC + b"rest")
    assert resolve(str(component)).component.endswith(b"rest")
    core = tmp_path / "core.wasm"
    core.write_bytes(b"\0asm\1\0\0\0")
    with pytest.raises(InvalidRequest, match="neither Python source"):
        resolve(str(core))


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(NotFound, match="'nonsense'.*text-completion"):
        resolve("nonsense")


def test_what_cannot_be_read_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    no_main = tmp_path / "no-main"
    no_main.mkdir()
    (no_main / "inferlet.toml").write_text('name = "x"\nmain = "gone.py"\n')
    for name in (str(tmp_path / "latin.py"), str(no_main), "x" * 5000):
        with pytest.raises(InvalidRequest, match="cannot be read as an inferlet"):
            resolve(name)


def test_a_source_is_read_as_python_reads_it(tmp_path: Path) -> None:
    """Without its byte order mark, and in the encoding that it names."""
    with_bom, latin = tmp_path / "bom.py", tmp_path / "latin.py"
    with_bom.write_bytes(b'\xef\xbb\xbf# /// inferlet\n# version = "1.2.3"\n# ///\ndef main(): ...\n')
    latin.write_bytes(b"# -*- coding: latin-1 -*-\ndef main(): return 'gr\xfc\xdfe'\n")
    found = resolve(str(with_bom))
    assert (found.version, found.source[0]) == ("1.2.3", "#")
    assert "größe".replace("ö", "ü") in resolve(str(latin)).source
    (tmp_path / "toml").mkdir()
    (tmp_path / "toml" / "main.py").write_bytes(b"\xef\xbb\xbfdef main(): ...\n")
    (tmp_path / "toml" / "inferlet.toml").write_bytes(b'\xef\xbb\xbfname = "with-bom"\n')
    assert resolve(str(tmp_path / "toml")).name == "with-bom"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"def main(): return '\xff'", "can't decode|invalid or missing encoding"),
        (b"# coding: no-such\n", "unknown encoding"),
    ],
)
def test_a_source_that_is_no_text_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.py").write_bytes(content)
    with pytest.raises(InvalidRequest, match=reason):
        resolve(str(tmp_path / "x.py"))


def test_a_folder_without_a_manifest_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"the folder .* has no inferlet\.toml"):
        resolve(str(tmp_path))
