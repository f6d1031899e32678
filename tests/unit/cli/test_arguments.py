"""Words of the command line become values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pieray.cli.arguments import parse_arguments, parse_input, parse_limits, parse_settings
from pieray.errors import ConfigError
from pieray.programs.signature import MainFunction, main_of
from pieray.programs.sources import ProgramSource


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


def main(parameters: str) -> MainFunction:
    return main_of(ProgramSource("p", "p.py", source=f"async def main({parameters}): ..."))


def test_a_parameter_annotated_str_takes_the_word_as_it_stands() -> None:
    known = main("prompt: str, n: int = 3, *, name: str | None = None, stop: list[str] | str = ''")
    assert [name for name in ("prompt", "n", "name", "stop") if known.is_text(name)] == ["prompt", "name"]
    words = ["--prompt", "[1]", "--name", "12", "--n", "12", "--stop", "5"]
    assert parse_arguments(words, known) == {"prompt": "[1]", "name": "12", "n": 12, "stop": "5"}
    assert parse_arguments(["--stop", '["a"]'], known) == {"stop": ["a"]}


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [1, -1, 0], [1.5, 1.0, "five", True, None, [1]]),
        ("float", [1, 1.5], ["1", True, None]),
        ("bool", [True, False], [1, "yes", None]),
        ("str", ["", "a"], [1, True, None]),
        ("str | None", ["a", None], [1]),
        ("Optional[int]", [1, None], ["a"]),
        ("typing.Union[int, str]", [1, "a"], [1.5, None]),
        ("list[str]", [[], ["a"]], ["a", [1], {}]),
        ("Sequence[int | None]", [[1, None]], [["a"]]),
        ("dict[str, float]", [{}, {"a": 1}], [[], {"a": "b"}]),
        ("tuple[int, str]", [[1, "a"]], ["a", 1]),
        ('Literal["a", 1]', ["a", 1], ["b", True]),
        ("Annotated[int, 'positive']", [1], ["a"]),
        ("'int'", [1], ["a"]),
        ("Any", [1, "a", None], []),
        ("object", [1, "a"], []),
        ("Colour", [1, "red"], []),
        ("np.ndarray[int]", [[1]], []),
        ("Literal[Colour.RED]", ["red"], []),
    ],
)
def test_a_value_that_does_not_fit_the_annotation_is_refused(annotation: str, good: list[Any], bad: list[Any]) -> None:
    known = main(f"a: {annotation}")
    for value in good:
        known.check({"a": value})
    for value in bad:
        with pytest.raises(ConfigError, match=r"argument 'a' of main\(\) is"):
            known.check({"a": value})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--prompt"], "--prompt takes a value: 'prompt' of main() is str"),
        (["--no-prompt"], "takes a value"),
        (["--n"], "--n takes a value: 'n' of main() is int"),
        (["--prompt", "\udcc3("], r"UTF-8 text; given '\xc3('"),
        (["--\udcc3", "a"], "UTF-8 text"),
    ],
)
def test_words_that_the_parameters_do_not_take_are_refused(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        parse_arguments(words, main("prompt: str, n: int = 1, on: bool = False, no_repeat: bool = False"))


def test_flags_go_to_the_parameters_that_take_them() -> None:
    known = main("on: bool = False, no_repeat: bool = False, anything=None, **others")
    words = ["--on", "--no-repeat", "--anything", "--unknown"]
    assert parse_arguments(words, known) == {"on": True, "no_repeat": True, "anything": True, "unknown": True}
    assert parse_arguments(["--no-on"], known) == {"on": False}


def test_what_is_missing_or_not_taken_is_said_with_all_that_is() -> None:
    known = main("prompt: str, n: int = None, *, rest=1")
    known.check({"prompt": "a", "n": None})
    with pytest.raises(ConfigError, match=r"main\(\) takes prompt: str, n: int, rest; missing: prompt"):
        known.check({})
    with pytest.raises(ConfigError, match="did you mean 'prompt'"):
        known.check({"prmpt": "a"})
    main("prompt: str, **rest").check({"prompt": "a", "else": 1})
    with pytest.raises(ConfigError, match="it takes no arguments"):
        main("").check({"a": 1})


@pytest.mark.parametrize(
    "source",
    [
        "def main(",
        "",
        "from x import main",
        "main = 5",
        "@wrapped\ndef main(a: int): ...",
        "def main(a: int, /): ...",
        "def main(*a: int): ...",
        "if True:\n  def main(a: int): ...",
        "def main(a: int): ...\nmain = wrapped(main)",
        "def main(a: int): ...\nfrom x import *",
        "\0",
        "(" * 5000,
    ],
)
def test_of_a_main_that_is_no_plain_function_nothing_is_said(source: str) -> None:
    known = main_of(ProgramSource("p", "p.py", source=source))
    known.check({"a": "five"})
    assert parse_arguments(["--a", "12", "--b"], known) == {"a": 12, "b": True}
    main_of(ProgramSource("p", "p.wasm", component=b"\0asm")).check({"a": 1})


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
        "model": {"num_pages": "512", "path": "a=b"},
        "limits": {"pages": "64"},
        "actor_pool": "2",
    }


def test_limits_are_numbers_with_names_of_the_config() -> None:
    assert parse_limits(["wall_time_s=0.5", "pages=8"]) == {"wall_time_s": 0.5, "pages": 8}
    with pytest.raises(ConfigError, match=r"limits\.pages"):
        parse_limits(["page=8"])
    with pytest.raises(ConfigError, match="int"):
        parse_limits(["pages=many"])
    with pytest.raises(ConfigError, match="name=value"):
        parse_limits(["pages"])
