"""What the fake host answers itself: the model's facts and texts, the session, the runtime."""

from __future__ import annotations

import codecs
import json
from typing import Any

import fake_model as lm

from pieray.host.text.textstreams import TextStream
from pieray.models.chat_parse import parse_reply


class Decoder:
    """An incremental detokenizer of `fake_model`."""

    def __init__(self, skip_special: bool) -> None:
        self._decoder, self._skip_special = codecs.getincrementaldecoder("utf-8")("replace"), skip_special

    def push(self, token: int) -> str:
        return self._decoder.decode(lm.to_bytes([token], skip_special=self._skip_special))


class FakeServices:
    """Mixed into FakeHost, which has tickets, pages and a clock."""

    # -- model

    def model_names(self) -> list[str]:
        return ["fake"]

    def model_info(self, model: str) -> str:
        return json.dumps(
            {
                "name": "fake",
                "vocab_size": lm.VOCABULARY,
                "max_context": self.max_context,
                "page_size": self.kv_page_size(),
            }
        )

    def model_tokenize(self, model: str, text: str) -> list[int]:
        return lm.tokenize(text)

    def model_detokenize(self, model: str, tokens: Any, skip_special: bool) -> str:
        return lm.detokenize([int(t) for t in tokens], skip_special=skip_special)

    def model_stop_tokens(self, model: str) -> list[int]:
        return [lm.END]

    def chat_render(
        self, model: str, messages: str, tools: str, add_generation_prompt: bool, arguments: str, now: int
    ) -> str:
        return lm.render_chat(messages, add_generation_prompt)

    def chat_parse(self, model: str, text: str, is_over: bool) -> str:
        return parse_reply(None, text, is_over=is_over).to_json()

    def model_stream_open(self, model: str, skip_special: bool, after: Any) -> int:
        self.streams[handle := next(self.ids)] = TextStream(Decoder(skip_special))
        return handle

    def model_stream_push(self, stream: int, tokens: Any) -> str:
        return "".join([self.stream(stream).push(int(token)) for token in tokens])

    def stream(self, handle: int) -> TextStream:
        self._check(handle in self.streams, f"stream {handle}")
        return self.streams[handle]

    def model_stream_stop(self, stream: int, texts: Any) -> None:
        self.stream(stream).stop_at(texts)

    def model_stream_stopped(self, stream: int) -> str:
        return self.stream(stream).stopped_by

    def model_stream_rest(self, stream: int) -> str:
        return self.stream(stream).rest()

    def model_stream_close(self, stream: int) -> None:
        del self.streams[stream]

    # -- session and runtime

    def session_send(self, text: str) -> None:
        self.sent.append(text)

    def session_receive(self) -> int:
        self.receivers.append(ticket := self._new_ticket())
        return ticket

    def runtime_version(self) -> str:
        return "0.2.0"

    def runtime_instance_id(self) -> str:
        return "fake-1"

    def runtime_limits(self) -> str:
        return json.dumps({"pages": {"limit": self.num_pages, "used": len(self.pages)}})

    def runtime_monotonic_now(self) -> int:
        return int(self.clock * 1e9)

    def runtime_wall_now(self) -> int:
        return int((1_700_000_000 + self.clock) * 1e9)

    def runtime_random_u64(self) -> int:
        return next(self.ids) * 0x9E3779B97F4A7C15 % 2**64

    def runtime_log(self, level: Any, message: str) -> None:
        self.logs.append((getattr(level, "name", level).lower(), message))

    def stdout(self, fd: int, text: bytes) -> None:
        self.logs.append((f"fd{fd}", text.decode()))
