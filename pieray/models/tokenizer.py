"""Text to tokens and back, without torch or transformers: this runs in light processes.

`TokenizerSpec` is what travels between processes; `Tokenizer` is built from it where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream as _RustStream

from pieray.errors import InvalidRequest, ModelError
from pieray.models.chat import Message, json_objects, render_chat

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """All that a `Tokenizer` needs, in plain fields that msgpack can carry.

    `eos_ids` end a generation; `special_tokens` are the names a chat template may use, such as `bos_token`.
    """

    json: bytes
    chat_template: str | None = None
    eos_ids: tuple[int, ...] = ()
    special_tokens: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: str | Path) -> TokenizerSpec:
        """Read tokenizer.json and what stands beside it.  ModelError names the file that is missing or malformed."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelError(f"{path}: no such file; only the fast tokenizers' format is supported")
        settings = _read(folder / "tokenizer_config.json")
        special = {name: text for name in SPECIAL_NAMES if (text := _content(settings.get(name)))}
        spec = cls(path.read_bytes(), _template(folder, settings), (), special)
        eos = _read(folder / "generation_config.json").get("eos_token_id")
        eos = _read(folder / "config.json").get("eos_token_id") if eos is None else eos
        if eos is None:
            eos = Tokenizer(spec, name=str(path)).token_id(special.get("eos_token", ""))
        ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),)
        return cls(spec.json, spec.chat_template, ids, special)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _content(token: object) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    given = settings.get("chat_template") or _read(folder / "chat_template.json").get("chat_template")
    if isinstance(given, list):  # several, by name
        by_name = {item.get("name"): item.get("template") for item in given}
        given = by_name.get("default") or next(iter(by_name.values()), None)
    return given if isinstance(given, str) else None


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's printable stand-in for each byte: itself if printable Latin-1, else from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    pairs = [(chr(byte), byte) for byte in printable] + [(chr(0x100 + i), byte) for i, byte in enumerate(hidden)]
    return {char: bytes([byte]) for char, byte in pairs}


_BYTE_OF = _byte_alphabet()


class Tokenizer:
    """Encode, decode and render; cheap to call, about 20 ms and the size of the vocabulary to build."""

    def __init__(self, spec: TokenizerSpec, name: str = "tokenizer.json") -> None:
        self.spec = spec
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(spec.json.decode())
        except Exception as error:
            raise ModelError(f"{name}: not a tokenizer: {error}") from error
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(spec.json).get("decoder"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def vocab_size(self) -> int:
        """Added tokens included; a model's embedding can be larger."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return tuple(self.spec.eos_ids)  # msgpack makes it a list

    def special_ids(self) -> dict[str, int]:
        """Every added special token's text and id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    def token_id(self, text: str) -> int | None:
        """The id of one exact token, None if there is none."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token stands for within a text, pieces of characters included; for grammar masks.

        Empty for an id that is no token.
        """
        text: str | None = self._tokenizer.id_to_token(token_id)
        if text is None:
            return b""
        if self._is_byte_level:
            return b"".join(_BYTE_OF.get(char, char.encode()) for char in text)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):  # SentencePiece's byte fallback
            return bytes.fromhex(text[3:5])
        return text.replace("\u2581", " ").encode()

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids; special tokens spelled out in the text are recognised."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text; bytes that are not UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self, skip_special_tokens: bool = True) -> DecodeStream:
        """An incremental decoder for one sequence."""
        return DecodeStream(self, self._tokenizer, skip_special_tokens)

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a conversation; InvalidRequest if the model has no chat template or it refuses."""
        if self.spec.chat_template is None:
            raise InvalidRequest("this model has no chat template; send plain text")
        return render_chat(
            self.spec.chat_template,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **self.spec.special_tokens,
        )

    def render_json(self, messages: str, tools: str, add_generation_prompt: bool = True) -> str:
        """`render_chat` of JSON: a list of objects each; "" for no tools.  Raises InvalidRequest."""
        return self.render_chat(
            json_objects("messages", messages, "{role, content}"),
            tools=json_objects("tools", tools, "{type, function}") if tools else None,
            add_generation_prompt=add_generation_prompt,
        )


class DecodeStream:
    """Text as tokens come: `push` gives what is complete, `finish` the rest; together they are `decode` of all."""

    def __init__(self, owner: Tokenizer, tokenizer: tokenizers.Tokenizer, skip_special_tokens: bool) -> None:
        self._owner = owner
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stream = _RustStream(skip_special_tokens=skip_special_tokens)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is in pieces."""
        text = self._stream.step(self._tokenizer, token)
        if text is None:
            self._pending.append(token)
            return ""
        self._pending.clear()
        return str(text)

    def finish(self) -> str:
        """What is left at the end: characters that never became whole, as U+FFFD."""
        rest, self._pending = self._pending, []
        return self._owner.decode(rest, self._skip) if rest else ""
