"""Running source text: arguments, results, failures."""

from __future__ import annotations

import inspect
import json
import linecache
import random
import sys
from typing import Any

import pytest
from fake_host import FakeHost

from inferlet import _report
from inferlet._program import MODULE, ProgramFailed, _is_plain, _mismatch, _takes, compile_source, prepare, run_source

TWO = "async def main(prompt: str, max_tokens: int = 64):\n    return [prompt, max_tokens]\n"


def run_program(source: str, filename: str, text: str, seed: int = 0) -> str:
    return run_source(source, filename, compile_source(source, filename), seed, text)


def failure(source: str, text: str = "{}") -> ProgramFailed:
    with pytest.raises(ProgramFailed) as caught:
        run_program(source, "main.py", text)
    return caught.value


def test_the_input_becomes_arguments_and_the_return_value_the_result(host: FakeHost) -> None:
    assert json.loads(run_program(TWO, "main.py", '{"prompt": "hé", "max_tokens": 3}')) == ["hé", 3]
    assert json.loads(run_program(TWO, "main.py", '{"prompt": "x"}')) == ["x", 64]
    assert run_program("def main(): pass", "main.py", "") == "null"
    assert run_program("def main(**rest): return rest", "main.py", '{"any": [1]}') == '{"any": [1]}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "missing: prompt"),
        ('{"promt": "x"}', "there is no 'promt', did you mean 'prompt'?"),
        ('{"prompt": "x", "k": 1}', "there is no 'k'"),
        ("[1]", "the input is a JSON object of main()'s arguments; given list"),
        ("{", "the input is no JSON"),
    ],
)
def test_wrong_arguments_are_named_beside_the_right_ones(host: FakeHost, text: str, problem: str) -> None:
    failed = failure(TWO, text)
    assert failed.kind == "InvalidRequest"
    assert problem in failed.message
    if text.startswith('{"') or text == "{}":
        assert "main() takes prompt: str, max_tokens: int = 64; " in failed.message


SIGNATURES = (
    "",
    "a",
    "a, b=1",
    "a=1, *, b",
    "*, a, b=2",
    "*, b=2, a",
    "a, *rest",
    "a, **rest",
    "*args, a=1",
    "a, /",
    "a, /, b",
)


@pytest.mark.parametrize("parameters", SIGNATURES)
@pytest.mark.parametrize("given", [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 2}, {"c": 1}, {"a": 1, "c": 2}])
def test_what_a_functions_code_says_it_takes_inspect_says_too(parameters: str, given: dict[str, int]) -> None:
    names: dict[str, Any] = {}
    exec(f"def main({parameters}): return lambda: (a, b)", names)
    main = names["main"]
    is_right = not _mismatch(inspect.signature(main), given)
    if not _is_plain(main):
        assert "/" in parameters
    elif "**" in parameters:
        assert not _takes(main, given) or is_right
    else:
        assert _takes(main, given) == is_right


def test_a_wrapped_main_takes_what_it_wraps(host: FakeHost) -> None:
    source = """
import functools
def traced(function):
    @functools.wraps(function)
    def call(*args, **kwargs): return ["traced", function(*args, **kwargs)]
    return call
@traced
def main(prompt: str): return prompt
"""
    assert run_program(source, "main.py", '{"prompt": "x"}') == '["traced", "x"]'
    assert "main() takes prompt: str; missing: prompt" in failure(source).message


def test_a_trace_shows_the_users_lines_alone(host: FakeHost) -> None:
    source = (
        "import asyncio\n\nasync def inner():\n    raise ValueError('no')\n\nasync def main():\n    await inner()\n"
    )
    failed = failure(source)
    assert (failed.kind, failed.message) == ("ValueError", "no")
    lines = failed.trace.splitlines()
    assert lines[1:3] == ['  File "main.py", line 7, in main', "    await inner()"]
    assert '  File "main.py", line 4, in inner' in lines
    assert lines[-1] == "ValueError: no"
    assert failed.trace.count("File ") == 2


def test_an_error_of_the_sdk_points_at_the_users_line(host: FakeHost) -> None:
    failed = failure("from inferlet import Context\nasync def main():\n    await Context().generate(3)\n")
    assert failed.kind == "InvalidRequest"
    assert failed.trace.count("File ") == 1
    assert "line 3, in main" in failed.trace


def test_groups_and_causes_keep_the_users_lines(host: FakeHost) -> None:
    source = (
        "import asyncio\n"
        "async def bad(i):\n    raise KeyError(i)\n"
        "async def main():\n"
        "    async with asyncio.TaskGroup() as group:\n        group.create_task(bad(1))\n"
    )
    failed = failure(source)
    assert failed.kind == "ExceptionGroup"
    assert "line 3, in bad" in failed.trace
    assert "taskgroups" not in failed.trace


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("import sys; sys.exit(3)", "SystemExit", "3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("import asyncio; raise asyncio.CancelledError('bye')", "CancelledError", "bye"),
        ("def f(): f()\n    f()", "RecursionError", "recursion"),
        ("return object()", "TypeError", "main() returned what JSON cannot hold"),
        ("return float('nan')", "TypeError", "main() returned what JSON cannot hold"),
        ("import nosuch", "ModuleNotFoundError", "nosuch"),
    ],
)
@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_every_end_is_reported(host: FakeHost, keyword: str, body: str, kind: str, message: str) -> None:
    failed = failure(f"{keyword} main():\n    {body}\n")
    assert failed.kind == kind
    assert message in failed.message


def test_exit_without_a_code_is_an_end_without_a_result(host: FakeHost) -> None:
    assert run_program("def main():\n    raise SystemExit", "main.py", "{}") == "null"


def test_source_that_is_no_program(host: FakeHost) -> None:
    assert "def main" in failure("x = 1").message
    failed = failure("def main(:\n  pass")
    assert failed.kind == "SyntaxError"
    assert "main.py" in failed.trace
    assert "def main(:" in failed.trace


def test_random_is_seeded_by_the_host_alone(host: FakeHost) -> None:
    source = "import random\ndef main():\n    return random.random()"
    first, second, again = (run_program(source, "main.py", "", seed) for seed in (1, 2**64 - 1, 1))
    assert again == first != second


def test_dataclasses_and_type_hints_find_their_module(host: FakeHost) -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass, asdict\nimport typing\n"
        "@dataclass\nclass P:\n    x: int = 1\n"
        "def main():\n    return [asdict(P()), str(typing.get_type_hints(P)['x'])]\n"
    )
    assert json.loads(run_program(source, "main.py", "")) == [{"x": 1}, "<class 'int'>"]


def test_code_that_was_made_once_runs_like_its_source(host: FakeHost) -> None:
    source = "def main(x: int):\n    return [x, 1 / x]\n"
    code = compile_source(source, "main.py")
    assert json.loads(run_source(source, "main.py", code, 0, '{"x": 2}')) == [2, 0.5]
    _report.forget_source("main.py")  # as it is in a guest that has not compiled it
    with pytest.raises(ProgramFailed) as caught:
        run_source(source, "main.py", code, 0, '{"x": 0}')
    assert caught.value.trace.splitlines()[1:3] == ['  File "main.py", line 2, in main', "    return [x, 1 / x]"]


def test_what_is_done_ahead_calls_nobody_and_leaves_nothing_behind(host: FakeHost) -> None:
    sys.modules.pop(MODULE, None)
    state = random.getstate()
    before = set(linecache.cache), set(_report._sources), set(sys.modules), len(host.calls)
    prepare()
    assert (set(linecache.cache), set(_report._sources), set(sys.modules), len(host.calls)) == before
    assert random.getstate() == state
