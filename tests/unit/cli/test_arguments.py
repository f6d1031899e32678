"""Words of the command line become values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pieray.cli.arguments import parse_arguments, parse_input, parse_limits, parse_settings, text_parameters
from pieray.errors import ConfigError
from pieray.programs import ProgramSource


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--max-tokens", "64"], {"max_tokens": 64}),
        (["--max-tokens=64"], {"max_tokens": 64}),
        (["--prompt", "12+7="], {"prompt": "12+7="}),
        (["--prompt", "two words"], {"prompt": "two words"}),
        (["--prompt", ""], {"prompt": ""}),
        (["--prompt="], {"prompt": ""}),
        (["--prompt=a=b"], {"prompt": "a=b"}),
        (["--prompt", "$HOME 'quoted' \"twice\""], {"prompt": "$HOME 'quoted' \"twice\""}),
        (["--prompt", "größe 世界"], {"prompt": "größe 世界"}),
        (["--offset", "-5"], {"offset": -5}),
        (["--rate", "1e-3"], {"rate": 0.001}),
        (["--stop", '["a", "b"]'], {"stop": ["a", "b"]}),
        (["--seed", "null"], {"seed": None}),
        (["--on", "true"], {"on": True}),
        (["--limit", "NaN"], {"limit": "NaN"}),
        (["--limit", "Infinity"], {"limit": "Infinity"}),
        (["--chat"], {"chat": True}),
        (["--no-chat"], {"chat": False}),
        (["--chat", "--max-tokens", "3"], {"chat": True, "max_tokens": 3}),
        (["--no-repeat-ngram", "3"], {"no_repeat_ngram": 3}),
        (["--no"], {"no": True}),
        (["--text=--dashes"], {"text": "--dashes"}),
    ],
)
def test_words_after_the_dashes_are_arguments_of_main(words: list[str], expected: dict[str, Any]) -> None:
    assert parse_arguments(words) == expected


@pytest.mark.parametrize(
    "words", [["stray"], ["--a", "1", "2"], ["-x", "1"], ["--"], ["--=1"], ["--1a", "2"], ["--a", "1", "--a", "2"]]
)
def test_words_that_belong_to_nothing_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_arguments(words)


def test_a_parameter_annotated_str_takes_the_word_as_it_stands() -> None:
    program = ProgramSource("p", "p.py", source=(
        "async def main(prompt: str, n: int = 3, *, name: str | None = None, stop: list[str] | str = ''): ..."
    ))  # fmt: skip
    texts = text_parameters(program)
    assert texts == {"prompt", "name"}
    assert parse_arguments(["--name", "12", "--n", "12"], texts) == {"name": "12", "n": 12}


def test_a_program_that_does_not_parse_or_is_no_python_has_no_text_parameters() -> None:
    assert text_parameters(ProgramSource("p", "p.py", source="def main(")) == frozenset()
    assert text_parameters(ProgramSource("p", "p.wasm", component=b"\0asm")) == frozenset()


def test_input_is_a_json_object_given_literally_or_as_a_file(tmp_path: Path) -> None:
    assert parse_input(None) == {}
    assert parse_input('{"prompt": "a", "n": [1]}') == {"prompt": "a", "n": [1]}
    (tmp_path / "input.json").write_text('{"prompt": "b"}', encoding="utf-8")
    assert parse_input(f"@{tmp_path / 'input.json'}") == {"prompt": "b"}


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", '"x"', '{"a": NaN}', "@/no/such/file"])
def test_input_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--input"):
        parse_input(text)


def test_settings_are_paths_into_the_config() -> None:
    given = ["model.num_pages=512", "limits.pages=64", "actor_pool=2", "model.path=a=b"]
    assert parse_settings(given) == {
        "model": {"num_pages": "512", "path": "a=b"}, "limits": {"pages": "64"}, "actor_pool": "2",
    }  # fmt: skip


def test_limits_are_numbers_with_names_of_the_config() -> None:
    assert parse_limits(["wall_time_s=0.5", "pages=8"]) == {"wall_time_s": 0.5, "pages": 8}
    with pytest.raises(ConfigError, match=r"limits\.pages"):
        parse_limits(["page=8"])
    with pytest.raises(ConfigError, match="int"):
        parse_limits(["pages=many"])
    with pytest.raises(ConfigError, match="name=value"):
        parse_limits(["pages"])
