"""Each field that OpenAI and vLLM know works, or is refused by name: a test for each row of the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pieray.programs.signature import main_of
from pieray.programs.sources import embedded
from pieray.server.openai.fields import Asked, Field
from pieray.server.openai.requests import ROUTES, read_chat, read_completion, read_embeddings
from pieray.server.openai.response_fields import RESPONSES, read_response
from pieray.server.openai.tables import CHAT, COMPLETIONS, EMBEDDINGS
from pieray.server.problems import BadField
from pieray.server.runs.wanted import read_run

READ: Mapping[str, Callable[[Mapping[str, Any]], Asked]] = {
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completion,
    "/v1/responses": read_response,
    "/v1/embeddings": read_embeddings,
}
LEAST: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/embeddings": {"input": "hello"},
}
PROGRAM = {"/v1/embeddings": "openai-embeddings"}
TOOL = {"type": "function", "function": {"name": "timer", "parameters": {"type": "object"}}}
FLAT_TOOL = {"type": "function", "name": "timer", "parameters": {"type": "object"}}
JSON_GRAMMAR = '{"x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}, '


def json_grammar(rest: str) -> dict[str, Any]:
    return {"grammar": {"kind": "json-schema", "text": JSON_GRAMMAR + rest}}


WORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "messages": (
        [{"role": "developer", "content": [{"type": "text", "text": "a"}]}],
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}]},
    ),
    "prompt": (["a", [1, 2]], {"prompts": ["a", [1, 2]]}),
    "input": ([1, 2], {"inputs": [[1, 2]]}),
    "model": ("mine", {"model": "mine"}),
    "stream": (True, {"stream": True}),
    "user": ("ada", {"user": "ada"}),
    "priority": (-5, {"priority": 5}),
    "request_id": ("r1", {"request_id": "r1"}),
    "session_id": ("s1", {"session_id": "s1"}),
    "safety_identifier": ("h", {"safety_identifier": "h"}),
    "prompt_cache_key": ("k", {"prompt_cache_key": "k"}),
    "max_tokens": (7, {"max_tokens": 7}),
    "max_output_tokens": (7, {"max_tokens": 7}),
    "max_completion_tokens": (7, {"max_tokens": 7}),
    "parallel_tool_calls": (False, {"parallel_tool_calls": False}),
    "tools": ([TOOL], {"tools": [TOOL]}),
    "reasoning_effort": ("none", {"template": {"reasoning_effort": "none", "enable_thinking": False}}),
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5}),
    "presence_penalty": (-1, {"presence_penalty": -1.0}),
    "logit_bias": ({"5": -100}, {"logit_bias": {"5": -100.0}}),
    "n": (3, {"n": 3}),
    "seed": (-1, {"seed": 2**64 - 1}),
    "stop": ("x", {"stop": ["x"]}),
    "temperature": (0, {"temperature": 0.0}),
    "top_p": (0.5, {"top_p": 0.5}),
    "top_k": (-1, {"top_k": 0}),
    "min_p": (0.1, {"min_p": 0.1}),
    "stop_token_ids": ([3], {"stop_token_ids": [3]}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "min_tokens": (4, {"min_tokens": 4}),
    "allowed_token_ids": ([3, 4], {"allowed_token_ids": [3, 4]}),
    "truncate_prompt_tokens": (-1, {"truncate_prompt_tokens": -1}),
    "truncation_side": ("right", {"truncation_side": "right"}),
    "prompt_logprobs": (2, {"prompt_logprobs": 2}),
    "add_special_tokens": (False, {"add_special_tokens": False}),
    "return_token_ids": (True, {"return_token_ids": True}),
    "return_tokens_as_token_ids": (True, {"return_tokens_as_token_ids": True}),
    "response_format": (
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "integer"}}},
        json_grammar('"type": "integer"}'),
    ),
    "structured_outputs": ({"regex": "a+", "json": None}, {"grammar": {"kind": "regex", "text": "a+"}}),
    "guided_json": ({"type": "integer"}, json_grammar('"type": "integer"}')),
    "guided_regex": ("a+", {"grammar": {"kind": "regex", "text": "a+"}}),
    "guided_choice": (["a.b", "c"], {"grammar": {"kind": "regex", "text": r"a\.b|c"}}),
    "guided_grammar": ('start: "a"', {"grammar": {"kind": "lark", "text": 'start: "a"'}}),
    "include_reasoning": (False, {"include_reasoning": False}),
    "add_generation_prompt": (False, {"add_generation_prompt": False}),
    "continue_final_message": (True, {"continue_final_message": True}),
    "chat_template_kwargs": ({"enable_thinking": False}, {"template": {"enable_thinking": False}}),
    "echo": (True, {"echo": True}),
    "encoding_format": ("base64", {"encoding_format": "base64"}),
}
"""A value that asks for something, and the arguments that it becomes."""
TOGETHER: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("/v1/chat/completions", "logprobs"): ({"logprobs": True}, {"logprobs": 0}),
    ("/v1/completions", "logprobs"): ({"logprobs": 3}, {"logprobs": 3}),
    ("/v1/chat/completions", "top_logprobs"): ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
    ("/v1/chat/completions", "tool_choice"): (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "timer"}}},
        {"tools": [TOOL], "tool_choice": "timer"},
    ),
    ("/v1/responses", "input"): (
        {"input": [{"role": "developer", "content": [{"type": "input_text", "text": "a"}]}]},
        {"messages": [{"role": "system", "content": "a"}]},
    ),
    ("/v1/responses", "instructions"): (
        {"instructions": "be kind"},
        {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]},
    ),
    ("/v1/responses", "include"): ({"include": ["message.output_text.logprobs"]}, {"logprobs": 0}),
    ("/v1/responses", "top_logprobs"): (
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"logprobs": 2},
    ),
    ("/v1/responses", "tools"): ({"tools": [FLAT_TOOL]}, {"tools": [TOOL]}),
    ("/v1/responses", "tool_choice"): (
        {"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "timer"}},
        {"tools": [TOOL], "tool_choice": "timer"},
    ),
    ("/v1/responses", "text"): (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "integer"}}}},
        json_grammar('"type": "integer"}'),
    ),
    ("/v1/responses", "reasoning"): (
        {"reasoning": {"effort": "none"}},
        {"template": {"reasoning_effort": "none", "enable_thinking": False}},
    ),
    ("/v1/responses", "metadata"): ({"metadata": {"a": "b"}}, {"told": {"metadata": {"a": "b"}}}),
    ("/v1/responses", "stream_options"): (
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"stream": True},
    ),
    ("", "stream_options"): (
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "include_usage": True},
    ),
}
"""Of fields that mean something beside others, or not the same on each route."""

ROWS = [pytest.param(route, field, id=f"{route}-{field.name}") for route, rows in ROUTES.items() for field in rows]


@pytest.mark.parametrize(("route", "field"), ROWS)
def test_a_field_works_or_is_refused_by_name(route: str, field: Field) -> None:
    read, least = READ[route], LEAST[route]
    before = read(least)
    if field.works:
        given, expected = TOGETHER.get((route, field.name)) or TOGETHER.get(("", field.name)) or (None, None)
        if given is None or expected is None:
            value, expected = WORKS[field.name]
            given = {field.name: value}
        asked = read({**least, **given})
        told = {**asked.arguments, **asked.door}
        if "told" in told and "told" not in expected:  # the answer repeats them
            assert told.pop("told").keys() <= set(given)
            before.door.pop("told")
        assert told == {**before.arguments, **before.door, **expected}
        program = embedded(PROGRAM.get(route, "openai-generate"))
        assert program is not None
        main_of(program).check(asked.arguments)
        with pytest.raises(BadField) as refused:
            read({**least, **given, field.name: [[[]]]})
        assert str(refused.value.param).startswith(field.name)
    else:
        with pytest.raises(BadField) as refused:
            read({**least, field.name: {"any": "thing"}})
        assert (refused.value.status, refused.value.param) == (400, field.name)
        assert field.note in refused.value.message
        for value in field.neutral:
            assert read({**least, field.name: value}) == before
    assert read({field.name: None, **least}) == read(least)


@pytest.mark.parametrize("route", ROUTES)
def test_a_field_that_nobody_knows_is_refused(route: str) -> None:
    with pytest.raises(BadField, match="did you mean user") as refused:
        READ[route]({**LEAST[route], "usr": "x"})
    assert refused.value.body["error"] == {
        "message": f"usr: is not a field of {route}; did you mean user?",
        "type": "invalid_request_error",
        "param": "usr",
        "code": "unknown_field",
    }


def test_the_tables_have_every_field_of_openai_python() -> None:
    from openai.types import completion_create_params, embedding_create_params
    from openai.types.chat import completion_create_params as chat_params
    from openai.types.responses import response_create_params

    kinds = (
        (CHAT, chat_params.CompletionCreateParamsStreaming),
        (COMPLETIONS, completion_create_params.CompletionCreateParamsStreaming),
        (RESPONSES, response_create_params.ResponseCreateParamsStreaming),
        (EMBEDDINGS, embedding_create_params.EmbeddingCreateParams),
    )
    for fields, kind in kinds:
        assert set(kind.__annotations__) <= {field.name for field in fields}


WRONG = [
    ({"temperature": 3}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "boss", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "messages[0].weight"),
    *(
        ({"messages": [{"role": role, "content": [part]}]}, f"messages[0].content[0].{name}")
        for role, part, name in (
            ("user", {"type": "input_audio", "input_audio": {}}, "type"),
            ("system", {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}, "type"),
            ("user", {"type": "image_url", "image_url": "data:image/png;base64,aa"}, "image_url"),
            ("user", {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "image_url.url"),
            ("user", {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "image_url.url"),
            ("user", {"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "image_url.url"),
            ("user", {"type": "image_url", "image_url": {"url": "data:;base64,aa", "detail": 7}}, "image_url.detail"),
            ("user", {"type": "image_url", "image_url": {"url": "data:;base64,aa", "size": 7}}, "image_url.size"),
        )
    ),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"priority": 101}, "priority"),
]


@pytest.mark.parametrize(("given", "param"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_field_may_not_be_is_refused_with_its_name(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadField) as refused:
        read_chat({**LEAST["/v1/chat/completions"], **given})
    assert refused.value.param == param


def test_the_page_of_fields_is_made_from_the_tables() -> None:
    from tools.fields import PAGE, page

    assert PAGE.read_text() == page(), "python -m tools.fields"


def test_items_of_a_response_are_messages() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "timer", "arguments": '{"minutes": 6}'}
    items = [
        {"role": "user", "content": "Set a timer."},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
        call,
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "done"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "done"}]},
        {"role": "assistant", "content": "Both."},
        {"role": "assistant", "content": "Really."},
    ]
    function = {"name": "timer", "arguments": {"minutes": 6}}
    calls = [{"id": number, "type": "function", "function": function} for number in ("c1", "c2")]
    assert read_response({"input": items}).arguments["messages"] == [
        {"role": "user", "content": "Set a timer."},
        {"role": "assistant", "reasoning_content": "hm", "content": "Yes.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
        {"role": "tool", "tool_call_id": "c2", "content": "done"},
        {"role": "assistant", "content": "Both."},
        {"role": "assistant", "content": "Really."},
    ]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "store": True}, "store"),
        ({"input": "a", "include": ["reasoning.encrypted_content"]}, "include"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "a", "text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": "a", "reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"input": "a", "top_logprobs": 2}, "top_logprobs"),
        ({"input": "a", "tool_choice": "required"}, "tool_choice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_response_may_not_ask_for_is_refused(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadField) as refused:
        read_response(given)
    assert refused.value.param == param


CHAT_ROUTE, RESPONSES_ROUTE = "/v1/chat/completions", "/v1/responses"


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT_ROUTE, {"logit_bias": {"9" * 5000: 1}}),
        (CHAT_ROUTE, {"temperature": 10**400}),
        (CHAT_ROUTE, {"structured_outputs": {"json": '{"maximum": 1e999}'}}),
        (
            CHAT_ROUTE,
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": '{"x": 1e999}'}}]}
                ]
            },
        ),
        (CHAT_ROUTE, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "auto"}}}),
        (RESPONSES_ROUTE, {"input": [{"type": "reasoning", "content": 5}]}),
        (RESPONSES_ROUTE, {"input": [{"type": "function_call", "name": "a", "call_id": "c", "arguments": "[1e999]"}]}),
        (RESPONSES_ROUTE, {"tools": [FLAT_TOOL], "tool_choice": {"type": "function", "name": "required"}}),
    ],
)
def test_what_no_field_can_be_is_refused_by_name(route: str, body: dict[str, Any]) -> None:
    with pytest.raises(BadField):
        READ[route]({**LEAST[route], **body})


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(BadField, match="limits.pages"):
        read_run({"limits": {"pages": 10**400}})


def test_null_is_what_is_not_given() -> None:
    asked = read_chat({**LEAST[CHAT_ROUTE], "stream": True, "stream_options": {"include_usage": None}})
    assert "include_usage" not in asked.door
    call = {"id": None, "type": "function", "function": {"name": "a", "arguments": "{}"}}
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    assert read_chat({"messages": said}).arguments["messages"][1]["tool_calls"][0]["id"] == ""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": None}}
    assert "grammar" in read_chat({**LEAST[CHAT_ROUTE], "response_format": form}).arguments


def test_a_refusal_is_what_the_assistant_said() -> None:
    part = {"type": "refusal", "refusal": "no"}
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [part]}]
    assert read_chat({"messages": said}).arguments["messages"][1]["content"] == [{"type": "text", "text": "no"}]
    with pytest.raises(BadField, match="is text"):
        read_chat({"messages": [{"role": "user", "content": [part]}]})
