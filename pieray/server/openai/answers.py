"""From what an inferlet does to the JSON of OpenAI's API: whole answers, and chunks of a stream.

The contract with the inferlet: its texts are the text of choice 0; its `delta` events are {index, content, reasoning,
tool_calls, logprobs, token_ids}, each as far as there is any; its result is {choices, usage, prompt_logprobs,
prompt_token_ids}, each choice with all of that, `finish_reason` and `stop_reason`.
"""

from __future__ import annotations

import base64
import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pieray.server.json_texts import encoded
from pieray.server.problems import HttpProblem

DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(value) + b"\n\n"


def usage_of(result: Mapping[str, Any]) -> dict[str, Any]:
    given = result["usage"]
    found = {
        "prompt_tokens": given["prompt_tokens"],
        "completion_tokens": given["completion_tokens"],
        "total_tokens": given["prompt_tokens"] + given["completion_tokens"],
    }
    if "cached_tokens" in given:
        found["prompt_tokens_details"] = {"cached_tokens": given["cached_tokens"]}
    if given.get("reasoning_tokens"):
        found["completion_tokens_details"] = {"reasoning_tokens": given["reasoning_tokens"]}
    return found


class Answer(ABC):
    """What chats and completions share.  `created`: Unix time; `as_ids`: tokens are told as `token_id:ID`."""

    whole_kind = ""
    chunk_kind = ""

    def __init__(
        self, answer_id: str, model: str, created: int, *, as_ids: bool = False, include_usage: bool = False
    ) -> None:
        self._head = {"id": answer_id, "created": created, "model": model}
        self._as_ids = as_ids
        self._include_usage = include_usage
        self._begun: set[int] = set()
        before, after = encoded(self._chunk([self._text_choice("\0")])).split(b'"\\u0000"')
        self._before, self._after = b"data: " + before, after + b"\n\n"

    def text(self, text: str) -> bytes:
        """The chunk for more text of choice 0: what a token costs here is this."""
        begin = self._begin(0)
        return begin + self._before + encoded(text) + self._after

    def delta(self, value: Mapping[str, Any]) -> bytes:
        """The chunk for a `delta` event."""
        index = value["index"]
        return self._begin(index) + event(self._chunk([self._delta_choice(index, value)]))

    def end(self, result: Mapping[str, Any]) -> Iterator[bytes]:
        """The last chunks: how each choice ended, then the usage if it is wanted."""
        for choice in result["choices"]:
            head = self._begin(choice["index"])
            yield head + event(self._chunk([self._end_choice(choice)]))
        if self._include_usage:
            yield event({**self._chunk([]), "usage": usage_of(result)})
        yield DONE

    def failed(self, problem: HttpProblem) -> bytes:
        """The last event of a stream that breaks off."""
        return event(problem.body) + DONE

    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of a request that is not streamed."""
        return {
            **self._head,
            "object": self.whole_kind,
            "choices": [self._whole_choice(choice) for choice in result["choices"]],
            "usage": usage_of(result),
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_kind, "choices": choices}
        return chunk | {"usage": None} if self._include_usage else chunk

    def _token(self, entry: Mapping[str, Any]) -> str:
        return f"token_id:{entry['id']}" if self._as_ids else str(entry["token"])

    def _begin(self, index: int) -> bytes:
        """What goes ahead of the first chunk of a choice."""
        if index in self._begun:
            return b""
        self._begun.add(index)
        found = self._first_choice(index)
        return event(self._chunk([found])) if found is not None else b""

    @abstractmethod
    def _first_choice(self, index: int) -> dict[str, Any] | None: ...

    @abstractmethod
    def _text_choice(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _delta_choice(self, index: int, value: Mapping[str, Any]) -> dict[str, Any]: ...

    @abstractmethod
    def _end_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]: ...

    @abstractmethod
    def _whole_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]: ...


class ChatAnswer(Answer):
    """Of /v1/chat/completions."""

    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _first_choice(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _text_choice(self, text: str) -> dict[str, Any]:
        return {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}

    def _delta_choice(self, index: int, value: Mapping[str, Any]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if "content" in value:
            delta["content"] = value["content"]
        if "reasoning" in value:
            delta["reasoning_content"] = delta["reasoning"] = value["reasoning"]
        if "tool_calls" in value:
            delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(value["tool_calls"])]
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(value), "finish_reason": None}
        return choice | ({"token_ids": value["token_ids"]} if "token_ids" in value else {})

    def _end_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "index": choice["index"],
            "delta": {},
            "logprobs": None,
            "finish_reason": choice["finish_reason"],
            "stop_reason": choice.get("stop_reason"),
        }

    def _whole_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        content = choice["content"]
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if choice.get("tool_calls"):
            message |= {"content": content or None, "tool_calls": choice["tool_calls"]}
        if choice.get("reasoning"):
            message["reasoning_content"] = message["reasoning"] = choice["reasoning"]
        found = {
            "index": choice["index"],
            "message": message,
            "logprobs": self._logprobs(choice),
            "finish_reason": choice["finish_reason"],
            "stop_reason": choice.get("stop_reason"),
        }
        return found | ({"token_ids": choice["token_ids"]} if choice.get("token_ids") is not None else {})

    def _logprobs(self, value: Mapping[str, Any]) -> dict[str, Any] | None:
        if value.get("logprobs") is None:
            return None
        told = [{**self._entry(one), "top_logprobs": list(map(self._entry, one["top"]))} for one in value["logprobs"]]
        return {"content": told, "refusal": None}

    def _entry(self, one: Mapping[str, Any]) -> dict[str, Any]:
        token = one["token"]
        raw = None if "�" in token else list(token.encode())
        return {"token": self._token(one), "logprob": one["logprob"], "bytes": raw}

    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        found = super().whole(result)
        for name in ("prompt_logprobs", "prompt_token_ids"):
            if result.get(name) is not None:
                found[name] = result[name][0]
        return found


class CompletionAnswer(Answer):
    """Of /v1/completions.  Prompt i has the choices from i * n on."""

    whole_kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, *args: Any, **options: Any) -> None:
        self._offsets: dict[int, int] = {}
        super().__init__(*args, **options)

    def _first_choice(self, index: int) -> dict[str, Any] | None:  # noqa: ARG002 - of a completion there is none
        return None

    def _text_choice(self, text: str) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": None}

    def _delta_choice(self, index: int, value: Mapping[str, Any]) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": value.get("content", ""),
            "logprobs": self._logprobs(value, index),
            "finish_reason": None,
        }
        return choice | ({"token_ids": value["token_ids"]} if "token_ids" in value else {})

    def _end_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "index": choice["index"],
            "text": "",
            "logprobs": None,
            "finish_reason": choice["finish_reason"],
            "stop_reason": choice.get("stop_reason"),
        }

    def _whole_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        found = {
            "index": choice["index"],
            "text": choice["content"],
            "logprobs": self._logprobs(choice, choice["index"]),
            "finish_reason": choice["finish_reason"],
            "stop_reason": choice.get("stop_reason"),
        }
        return found | ({"token_ids": choice["token_ids"]} if choice.get("token_ids") is not None else {})

    def _logprobs(self, value: Mapping[str, Any], index: int) -> dict[str, Any] | None:
        entries: Sequence[Mapping[str, Any]] | None = value.get("logprobs")
        if entries is None:
            return None
        offset, offsets = self._offsets.get(index, 0), []
        for one in entries:
            offsets.append(offset)
            offset += len(one["token"])
        self._offsets[index] = offset
        return {
            "tokens": [self._token(one) for one in entries],
            "token_logprobs": [one["logprob"] for one in entries],
            "top_logprobs": [self._top(one) for one in entries],
            "text_offset": offsets,
        }

    def _top(self, one: Mapping[str, Any]) -> dict[str, float] | None:
        """The most probable and the token itself; nothing is known in place of a prompt's first."""
        if one["logprob"] is None:
            return None
        return {**{self._token(other): other["logprob"] for other in one["top"]}, self._token(one): one["logprob"]}

    def whole(self, result: Mapping[str, Any]) -> dict[str, Any]:
        found = super().whole(result)
        scores, ids = result.get("prompt_logprobs"), result.get("prompt_token_ids")
        for at, choice in enumerate(found["choices"]):
            for name, values in (("prompt_logprobs", scores), ("prompt_token_ids", ids)):
                if values is not None:
                    choice[name] = values[at * len(values) // len(found["choices"])]
        return found


def embeddings(result: Mapping[str, Any], model: str, encoding: str) -> dict[str, Any]:
    """Of /v1/embeddings; base64: little-endian float32."""
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": at, "embedding": _packed(vector) if encoding == "base64" else vector}
            for at, vector in enumerate(result["vectors"])
        ],
        "usage": {"prompt_tokens": result["num_tokens"], "total_tokens": result["num_tokens"]},
    }


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


def of_program(texts: Sequence[str], value: Any, total_tokens: int) -> dict[str, Any]:
    """The result of a program that is no OpenAI inferlet, as one: what it said, else what it returned.

    How many of its tokens were prompts is not known.
    """
    content = "".join(texts) or _said(value)
    choice = {"index": 0, "content": content, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 0, "completion_tokens": total_tokens}, "result": value}


def _said(value: Any) -> str:
    told = value
    if isinstance(value, dict):
        told = next((value[key] for key in ("text", "answer") if isinstance(value.get(key), str)), value)
    return told if isinstance(told, str) else json.dumps(value, ensure_ascii=False)
