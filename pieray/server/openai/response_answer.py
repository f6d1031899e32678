"""The answer of /v1/responses, whole and as typed events."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from pieray.server.json_texts import encoded
from pieray.server.problems import HttpProblem


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
