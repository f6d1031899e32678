"""/v1/responses: its fields, the items of its input as messages, and its answer, whole and as typed events.

Nothing is stored: what a conversation was before comes with its input.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from pieray.server.answers import encoded
from pieray.server.fields import (
    DOORS,
    MOST_LOGPROBS,
    SAMPLING,
    Asked,
    Field,
    forced_name,
    json_grammar,
    read_fields,
    refused,
)
from pieray.server.large_json import loaded
from pieray.server.problems import BadField, HttpProblem
from pieray.server.values import boolean, integer, listed, mapping, number, one_of, shown, text

LOGPROBS = "message.output_text.logprobs"
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_TEXTS = ("input_text", "output_text", "text")


# --- fields


def _max_tokens(name: str, value: Any) -> dict[str, Any]:
    return {"max_tokens": integer(name, value, 1, (1 << 32) - 1), "told": {name: value}}


def _include(name: str, value: Any) -> dict[str, Any]:
    for one in listed(name, value, 16):
        if one != LOGPROBS:
            raise BadField(name, f"is not served here but for {LOGPROBS}; given {shown(one)}", code="unsupported_field")
    return {"has_logprobs": bool(value)}


def _text_format(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    for key, one in given.items():
        if key != "format" and not (key == "verbosity" and one in (None, "medium")):
            raise BadField(f"{name}.{key}", "is not served here: only format is", code="unsupported_field")
    form = mapping(f"{name}.format", given.get("format") or {"type": "text"})
    kind = one_of(f"{name}.format.type", form.get("type"), ("text", "json_object", "json_schema"))
    told = {"told": {"text": {"format": form}}}
    if kind == "text":
        return told
    schema = {"type": "object"} if kind == "json_object" else form.get("schema")
    return {**json_grammar(f"{name}.format.schema", schema), **told}


def _reasoning(name: str, value: Any) -> dict[str, Any]:
    given = {key: one for key, one in mapping(name, value).items() if one is not None}
    for key in given:
        if key != "effort":
            raise BadField(f"{name}.{key}", "is not served here: only effort is", code="unsupported_field")
    if "effort" not in given:
        return {}
    effort = one_of(f"{name}.effort", given["effort"], EFFORTS)
    template = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return {"template": template, "told": {"reasoning": {"effort": effort, "summary": None}}}


def _tools(name: str, value: Any) -> dict[str, Any]:
    tools = [_tool(f"{name}[{at}]", one) for at, one in enumerate(listed(name, value, 1024))]
    return {"tools": tools or None, "told": {"tools": value}}


def _tool(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    if given.get("type") != "function":
        raise BadField(f"{name}.type", f"is function; given {shown(given.get('type'))}", code="unsupported_field")
    function: dict[str, Any] = {"name": text(f"{name}.name", given.get("name"), 256)}
    if given.get("description") is not None:
        function["description"] = text(f"{name}.description", given["description"])
    if given.get("parameters") is not None:
        function["parameters"] = mapping(f"{name}.parameters", given["parameters"])
    return {"type": "function", "function": function}


def _tool_choice(name: str, value: Any) -> dict[str, Any]:
    told = {"told": {name: value}}
    if isinstance(value, str):
        return {"tool_choice": one_of(name, value, ("none", "auto", "required")), **told}
    given = mapping(name, value)
    if given.get("type") != "function":
        raise BadField(f"{name}.type", f"is function; given {shown(given.get('type'))}", code="unsupported_field")
    return {"tool_choice": forced_name(f"{name}.name", given.get("name")), **told}


def _told(name: str, value: Any) -> dict[str, Any]:
    """A number of the sampler, which the answer repeats."""
    return {name: number(name, value, 0, 2 if name == "temperature" else 1), "told": {name: value}}


def _parallel(name: str, value: Any) -> dict[str, Any]:
    return {name: boolean(name, value), "told": {name: value}}


def _metadata(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    if len(given) > 16:
        raise BadField(name, f"has at most 16 entries; given {len(given)}")
    return {"told": {name: {text(name, key, 64): text(f"{name}.{key}", one, 512) for key, one in given.items()}}}


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    for key, one in mapping(name, value).items():
        if one not in (None, False) or key != "include_obfuscation":
            raise BadField(f"{name}.{key}", "is not served here", code="unsupported_field")
    return {}


_SHARED = tuple(
    one
    for one in SAMPLING
    if one.name not in ("n", "temperature", "top_p", "prompt_logprobs", "return_token_ids", "response_format")
    and one.name != "return_tokens_as_token_ids"
)
RESPONSES = (
    Field(
        "input",
        "OpenAI",
        "a text, or items: messages, function calls and their outputs, reasoning",
        lambda n, v: {n: _items(n, v)},
    ),
    Field("instructions", "OpenAI", "a system message before all else", lambda n, v: {n: text(n, v), "told": {n: v}}),
    *(one for one in DOORS if one.name != "stream_options"),
    Field("stream_options", "OpenAI", "`include_obfuscation`: false", _stream_options),
    Field(
        "safety_identifier",
        "OpenAI",
        "written in the log with the run",
        lambda n, v: {n: text(n, v, 512)},
        is_doors=True,
    ),
    Field(
        "prompt_cache_key",
        "OpenAI",
        "written in the log: pages are found by content",
        lambda n, v: {n: text(n, v, 512)},
        is_doors=True,
    ),
    Field("metadata", "OpenAI", "in the answer as it came", _metadata),
    Field("max_output_tokens", "OpenAI", "as much as the model's context has, if not given", _max_tokens),
    Field("temperature", "OpenAI", "0 to 2; 1 if not given", _told),
    Field("top_p", "OpenAI", "0 to 1", _told),
    Field("include", "OpenAI", f"`{LOGPROBS}`", _include),
    Field("top_logprobs", "OpenAI", f"0 to {MOST_LOGPROBS}", lambda n, v: {n: integer(n, v, 0, MOST_LOGPROBS)}),
    Field("text", "OpenAI", "`format`: text, json_object, json_schema", _text_format),
    Field("tools", "OpenAI", "functions, in the model's own format", _tools),
    Field("tool_choice", "OpenAI", "none, auto, required, or a function: the last two by grammar", _tool_choice),
    Field("parallel_tool_calls", "OpenAI", "false: the first call alone", _parallel),
    Field("reasoning", "OpenAI", "`effort`, told to the chat template; none: `enable_thinking` is false", _reasoning),
    *_SHARED,
    Field("include_reasoning", "vLLM", "false: thoughts are left out", lambda n, v: {n: boolean(n, v)}),
    refused("prompt_logprobs", "vLLM", "of chats and completions"),
    refused("return_token_ids", "vLLM", "of chats and completions", False),
    refused("return_tokens_as_token_ids", "vLLM", "of chats and completions", False),
    refused("response_format", "vLLM", "text.format"),
    refused("n", "vLLM", "of chats and completions", 1),
    refused("previous_response_id", "OpenAI", "nothing is stored: send the items before it as input"),
    refused("conversation", "OpenAI", "nothing is stored: send its items as input"),
    refused("prompt", "OpenAI", "nothing is stored"),
    refused("store", "OpenAI", "nothing is stored", False),
    refused("background", "OpenAI", "run an inferlet with wait: false", False),
    refused("background_options", "OpenAI", "run an inferlet with wait: false"),
    refused("truncation", "OpenAI", "truncate_prompt_tokens works", "disabled"),
    refused("max_tool_calls", "OpenAI", "tools are the client's: it calls them"),
    refused("context_management", "OpenAI", "the client has the conversation"),
    refused("service_tier", "OpenAI", "priority works", "auto", "default"),
    refused("moderation", "OpenAI", "there is none"),
    refused("image", "OpenAI", "the model writes texts"),
    refused("access_programs", "OpenAI", "there are none"),
    refused("prompt_cache_options", "OpenAI", "pages are found by content, and kept as long as there is room"),
    refused("prompt_cache_retention", "OpenAI", "pages are kept as long as there is room", "in_memory", "in-memory"),
)


def read_response(body: Mapping[str, Any]) -> Asked:
    """Raises BadField."""
    asked = read_fields("/v1/responses", body, RESPONSES)
    arguments = asked.arguments
    if "input" not in arguments:
        raise BadField("input", "is missing")
    told = arguments.pop("told", {})
    messages = arguments.pop("input")
    if (instructions := arguments.pop("instructions", None)) is not None:
        messages = [{"role": "system", "content": instructions}, *messages]
    arguments["messages"] = messages
    has_logprobs, top = arguments.pop("has_logprobs", False), arguments.pop("top_logprobs", None)
    if top and not has_logprobs:
        raise BadField("top_logprobs", f"needs include: [{LOGPROBS}]")
    if has_logprobs:
        arguments["logprobs"] = top or 0
    choice = arguments.get("tool_choice", "none")
    if choice not in ("none", "auto") and not arguments.get("tools"):
        raise BadField("tool_choice", "needs tools")
    if choice not in ("none", "auto") and "grammar" in arguments:
        raise BadField("tool_choice", "a forced call is a grammar already: give no other")
    if asked.is_stream:
        arguments["stream"] = True
    asked.door["told"] = told
    return asked


# --- input


def _items(name: str, value: Any) -> list[dict[str, Any]]:
    """The items of an input as messages: calls, and a thought before them, are of one message of the assistant."""
    if isinstance(value, str):
        return [{"role": "user", "content": text(name, value, 1 << 24)}]
    messages: list[dict[str, Any]] = []
    for at, one in enumerate(listed(name, value, 1 << 14)):
        _take(messages, f"{name}[{at}]", mapping(f"{name}[{at}]", one))
    if not messages:
        raise BadField(name, "is empty")
    return messages


def _take(messages: list[dict[str, Any]], name: str, item: Mapping[str, Any]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = one_of(f"{name}.role", item.get("role"), ("developer", "system", "user", "assistant"))
        content = _content(f"{name}.content", item.get("content"))
        if role == "assistant":
            _assistant(messages)["content"] = content
        else:
            messages.append({"role": "system" if role == "developer" else role, "content": content})
    elif kind == "function_call":
        arguments = text(f"{name}.arguments", item.get("arguments"), 1 << 24)
        try:
            parsed = mapping(f"{name}.arguments", loaded(arguments))
        except (ValueError, RecursionError) as error:
            raise BadField(f"{name}.arguments", f"is JSON: {error}") from None
        function = {"name": text(f"{name}.name", item.get("name"), 256), "arguments": parsed}
        call = {"id": text(f"{name}.call_id", item.get("call_id"), 512), "type": "function", "function": function}
        _assistant(messages, has_more=True).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(f"{name}.output", item.get("output"))
        call_id = text(f"{name}.call_id", item.get("call_id"), 512)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    elif kind == "reasoning":
        given = [(part, item.get(part) or []) for part in ("content", "summary")]
        parts = [one for part, value in given for one in listed(f"{name}.{part}", value, 1 << 14)]
        thought = "".join(text(name, mapping(name, part).get("text"), 1 << 24) for part in parts)
        messages.append({"role": "assistant", "reasoning_content": thought})
    else:
        raise BadField(
            f"{name}.type",
            f"is message, function_call, function_call_output or reasoning; given {shown(kind)}",
            code="unsupported_field",
        )


def _assistant(messages: list[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """The assistant's message that goes on: behind a thought, or, for a call (`has_more`), behind what it said."""
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and (has_more or "content" not in last):
        return last
    messages.append({"role": "assistant"})
    return messages[-1]


def _content(name: str, value: Any) -> str:
    if isinstance(value, str):
        return text(name, value, 1 << 24)
    parts = []
    for at, one in enumerate(listed(name, value, 1 << 14)):
        part = mapping(f"{name}[{at}]", one)
        if part.get("type") not in _TEXTS:
            raise BadField(
                f"{name}[{at}].type",
                f"is input_text: the model reads no other; given {shown(part.get('type'))}",
                code="unsupported_field",
            )
        parts.append(text(f"{name}[{at}].text", part.get("text"), 1 << 24))
    return "".join(parts)


# --- answers


class ResponseAnswer:
    """Of /v1/responses.  Its items come one after the other: a thought, a text, calls."""

    def __init__(self, answer_id: str, model: str, created: int, *, told: Mapping[str, Any]) -> None:
        self._number = 0
        self._has_begun = False
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._response = {
            "id": answer_id,
            "object": "response",
            "created_at": created,
            "model": model,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            **told,
        }

    def text(self, text: str) -> bytes:
        """Events for more text."""
        return self.delta({"content": text})

    def delta(self, value: Mapping[str, Any]) -> bytes:
        """Events for a `delta` of the inferlet."""
        parts = [self._begin()]
        if "reasoning" in value:
            parts += self._more("reasoning", value["reasoning"], [])
        if "content" in value or "logprobs" in value:
            parts += self._more("message", value.get("content", ""), list(map(_entry, value.get("logprobs", ()))))
        for call in value.get("tool_calls", ()):
            parts += self._call(call)
        return b"".join(parts)

    def end(self, result: Mapping[str, Any]) -> Iterator[bytes]:
        """The last events."""
        yield self._begin()
        yield b"".join(self._close())
        response = self._ended(self._output, result)
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, problem: HttpProblem) -> bytes:
        error = problem.body["error"]
        return self._event("error", code=error["code"], message=error["message"], param=error["param"])

    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of a request that is not streamed."""
        (choice,) = result["choices"]
        output = []
        if choice.get("reasoning"):
            output.append(_reasoning_item(choice["reasoning"], "completed"))
        if choice["content"] or not choice.get("tool_calls"):
            entries = list(map(_entry, choice.get("logprobs") or ()))
            output.append(_message_item(choice["content"], entries, _status(choice)))
        output += [_call_item(call, "completed") for call in choice.get("tool_calls") or ()]
        return self._ended(output, result)

    def _ended(self, output: list[dict[str, Any]], result: Mapping[str, Any]) -> dict[str, Any]:
        (choice,), usage = result["choices"], result["usage"]
        status = _status(choice)
        return {
            **self._response,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": output,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0), "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": usage.get("reasoning_tokens", 0)},
                "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
            },
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), encoded(data))

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        response = {**self._response, "status": "in_progress", "output": [], "usage": None}
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    @property
    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._output)}

    def _more(self, kind: str, text: str, entries: list[dict[str, Any]]) -> Iterator[bytes]:
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            make = _message_item("", [], "in_progress") if kind == "message" else _reasoning_item("", "in_progress")
            part, self._open = make["content"][0], {**make, "content": []}
            yield self._event("response.output_item.added", output_index=len(self._output), item=self._open)
            yield self._event("response.content_part.added", **self._place, content_index=0, part=part)
        self._text.append(text)
        self._logprobs += entries
        place = {**self._place, "content_index": 0, "delta": text}
        if kind == "message":
            yield self._event("response.output_text.delta", **place, logprobs=entries)
        else:
            yield self._event("response.reasoning_text.delta", **place)

    def _close(self) -> Iterator[bytes]:
        """The item that is open is whole."""
        if self._open is None:
            return
        place, text, entries = {**self._place, "content_index": 0}, "".join(self._text), self._logprobs
        if self._open["type"] == "message":
            item = {**_message_item(text, entries, "completed"), "id": self._open["id"]}
            yield self._event("response.output_text.done", **place, text=text, logprobs=entries)
        else:
            item = {**_reasoning_item(text, "completed"), "id": self._open["id"]}
            yield self._event("response.reasoning_text.done", **place, text=text)
        yield self._event("response.content_part.done", **place, part=item["content"][0])
        yield from self._done(item)
        self._open, self._text, self._logprobs = None, [], []

    def _done(self, item: dict[str, Any]) -> Iterator[bytes]:
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)

    def _call(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        item = _call_item(call, "completed")
        place = {"item_id": item["id"], "output_index": len(self._output)}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=len(self._output), item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=item["arguments"])
        whole = {"arguments": item["arguments"], "name": item["name"]}
        yield self._event("response.function_call_arguments.done", **place, **whole)
        yield from self._done(item)


def _status(choice: Mapping[str, Any]) -> str:
    return "incomplete" if choice["finish_reason"] == "length" else "completed"


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def _message_item(text: str, entries: list[dict[str, Any]], status: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}
    return {"type": "message", "id": _new_id("msg"), "role": "assistant", "status": status, "content": [part]}


def _reasoning_item(text: str, status: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": _new_id("rs"), "summary": [], "content": content, "status": status}


def _call_item(call: Mapping[str, Any], status: str) -> dict[str, Any]:
    function = {"call_id": call["id"], **call["function"]}
    return {"type": "function_call", "id": _new_id("fc"), **function, "status": status}


def _entry(one: Mapping[str, Any]) -> dict[str, Any]:
    return {**_scored(one), "top_logprobs": list(map(_scored, one["top"]))}


def _scored(one: Mapping[str, Any]) -> dict[str, Any]:
    token = one["token"]
    return {"token": token, "logprob": one["logprob"], "bytes": [] if "�" in token else list(token.encode())}
