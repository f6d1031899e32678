"""Grammars, structured output and tools end to end: real guests, the real compiler, pie-tiny."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from engines import run
from programs import program

from pieray.errors import InvalidRequest, QuotaExceeded

SENTENCES = {
    "In Vari lives Mavi, aged 89.": {"name": "Mavi", "age": 89, "city": "Vari"},
    "My friend Kemi from Bane is 31.": {"name": "Kemi", "age": 31, "city": "Bane"},
}


def test_json_output_finds_the_person(engine: Any) -> None:
    for text, person in SENTENCES.items():
        assert run(engine, "json-output", text=text) == person


def test_json_output_parses_whatever_the_model_would_say(engine: Any) -> None:
    seen = [run(engine, "json-output", text="!?", temperature=5.0, seed=seed) for seed in range(6)]
    for person in seen:
        assert re.fullmatch("[A-Z][a-z]{1,15}", person["name"])
        assert 0 <= person["age"] <= 150
    assert len({json.dumps(person) for person in seen}) > 1


@pytest.mark.parametrize(
    ("question", "call", "result"),
    [
        ("Set a timer for 6 minutes.", {"name": "timer", "arguments": {"minutes": 6}}, "done"),
        ("Send 12 coins to Mavi.", {"name": "send", "arguments": {"to": "Mavi", "amount": 12}}, "done"),
        ("What is the weather in Bane?", {"name": "weather", "arguments": {"city": "Bane"}}, "31 degrees"),
    ],
)
def test_tool_agent_calls_what_the_model_asks_for(
    engine: Any, question: str, call: dict[str, Any], result: str
) -> None:
    found = run(engine, "tool-agent", question=question, reports={"Bane": "31 degrees"})
    assert found == {"answer": f"The result: {result}.", "steps": [{"calls": [call], "results": [result]}]}


UNDER = program(
    """
from inferlet import Context, Grammar

async def main(kind, text, prompt="12+7=", max_tokens=200, temperature=0.0, seed=0, logprobs=False):
    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, schema=Grammar(kind, text), temperature=temperature, seed=seed,
                                  logprobs=logprobs)
        text = await generation
        return text, generation.finish_reason, len(generation.logprobs)
""",
    "under",
)

SCHEMAS = [
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 1, "maxItems": 4},
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "why": {"type": "string", "maxLength": 8}},
        "required": ["ok", "why"],
        "additionalProperties": False,
    },
    {"enum": ["red", "green", {"blue": 1}]},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_what_is_generated_satisfies_its_schema(engine: Any, schema: dict[str, Any]) -> None:
    for seed, temperature in ((0, 0.0), (1, 3.0), (2, 3.0)):
        options = {"seed": seed, "temperature": temperature}
        text, reason, _ = run(engine, UNDER, kind="json-schema", text=json.dumps(schema), **options)
        jsonschema.validate(json.loads(text), schema)
        assert reason == "stop"


def test_what_is_generated_matches_its_expression(engine: Any) -> None:
    for expression in ("(red|blue)( (red|blue)){2}", "[A-F]{3}-[0-9]{2}", "19"):
        text, reason, scored = run(engine, UNDER, kind="regex", text=expression, temperature=2.0, logprobs=True)
        assert re.fullmatch(expression, text), text
        assert reason == "stop"
        assert scored > 0


def test_a_grammar_that_allows_what_the_model_says_changes_nothing(engine: Any) -> None:
    free = run(engine, "text-completion", prompt="12+7=", max_tokens=20)["text"]
    assert run(engine, UNDER, kind="lark", text="start: /(.|\\n)*/")[0] == free == "19"


def test_a_faulty_grammar_is_the_guests_error(engine: Any) -> None:
    with pytest.raises(InvalidRequest, match="at character 1: unclosed group"):
        run(engine, UNDER, kind="regex", text="(a")
    with pytest.raises(QuotaExceeded, match="grammar_bytes"):
        engine.launch(UNDER, {"kind": "regex", "text": "a" * 2000}, limits={"grammar_bytes": 1000}).result(timeout=60)


MATCHERS = program(
    """
from inferlet import BadHandle, Grammar, InvalidRequest, model

async def main():
    matcher = await Grammar.regex("[0-9]{2}x?")
    one, two = model.tokenize("1"), model.tokenize("2")
    start = matcher.mask()
    assert matcher.accept(one + model.tokenize("y") + two) == 1
    with matcher.fork() as fork:
        assert fork.accept(two) == 1 and fork.is_complete and not matcher.is_complete
        stop = next(iter(model.stop_tokens()))
        assert fork.mask()[stop // 32] >> stop % 32 & 1
        assert not matcher.mask()[stop // 32] >> stop % 32 & 1
    matcher.rollback(1)
    assert matcher.mask() == start
    try:
        matcher.rollback(1)
    except InvalidRequest as error:
        assert "from 0 to 0" in str(error)
    else:
        raise AssertionError
    assert (await Grammar.lark('start: "hello"')).forced() == model.tokenize("hello")
    handle = matcher.handle
    matcher.close()
    matcher.close()
    from inferlet import BadHandle, _host
    try:
        _host.grammar.mask(handle)
    except BadHandle as error:
        return error.message
""",
    "matchers",
)


def test_matchers_in_a_guest(engine: Any) -> None:
    assert run(engine, MATCHERS) == "matcher 1 is not open"


PARSES = program(
    """
from inferlet import chat

def main(text):
    reply = chat.parse(text)
    return [reply.content, reply.tool_calls, reply.is_complete]
""",
    "parses",
)


def test_replies_are_parsed_in_the_models_format(engine: Any) -> None:
    call = '{"name": "f", "arguments": {"x": [1, "é"]}}'
    assert run(engine, PARSES, text=call) == ["", [{"name": "f", "arguments": {"x": [1, "é"]}}], True]
    assert run(engine, PARSES, text=call[:-3]) == ["", [], False]


def test_a_hostile_grammar_ends_no_actor(engine: Any) -> None:
    """One overflows the compiler's stack, one would take minutes; a neighbour and the next grammar go on."""
    links = {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}, {"properties": {str(i): {}}}]} for i in range(3000)}
    chain = json.dumps({"$defs": links | {"3000": {}}, "$ref": "#/$defs/0"})
    slow = "start: T\nT: " + " & ".join(f"/.*{i}.*/" for i in range(300))
    neighbour = engine.launch(UNDER, {"kind": "regex", "text": "[a-z]{40}"})
    with pytest.raises(QuotaExceeded, match="more stack or memory"):
        run(engine, UNDER, kind="json-schema", text=chain)
    with pytest.raises(QuotaExceeded, match=r"grammar_time_s: .* took more than 0\.5 s"):
        engine.launch(UNDER, {"kind": "lark", "text": slow}, limits={"grammar_time_s": 0.5}).result(timeout=60)
    assert len(neighbour.result(timeout=60)[0]) == 40
    assert run(engine, UNDER, kind="regex", text="after")[0] == "after"


def test_the_documented_example_runs(engine: Any) -> None:
    text = (Path(__file__).parents[2] / "docs/inferlets.md").read_text(encoding="utf-8")
    (source,) = [block for block in re.findall("```python\n(.*?)```", text, re.DOTALL) if "run_tools" in block]
    age, code, answer = run(engine, program(source, "documented"), text="In Vari lives Mavi, aged 89.")
    assert age == 89
    assert re.fullmatch("[A-Z]{2}-[0-9]{4}", code)
    assert answer == "The result: 20 degrees."
