"""Text to tokens and back, without torch or transformers: this runs in light processes.

`TokenizerSpec` is what travels between processes; `Tokenizer` is built from it where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers

from pieray.errors import InvalidRequest, ModelError
from pieray.models.chat import Message, json_object, json_objects
from pieray.models.chat_parse import parse_reply, thought_tags
from pieray.models.chat_tools import render_with_tools
from pieray.models.config import readable, token_ids
from pieray.models.detokenizer import ByteStream, DecodeStream, Pieces, WindowStream
from pieray.models.reply import Reply

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """All that a `Tokenizer` needs, in plain fields that msgpack can carry.

    `eos_ids` end a generation: those of generation_config, config and tokenizer_config, and the chat template's end of
    a turn.  `special_tokens` are the names that a chat template may use, such as `bos_token`.
    """

    json: bytes
    chat_template: str | None = None
    eos_ids: tuple[int, ...] = ()
    special_tokens: dict[str, str] = field(default_factory=dict)
    tool_template: str | None = None
    """The chat template for conversations with tools, of a model that has several."""

    @classmethod
    def from_folder(cls, folder: str | Path) -> TokenizerSpec:
        """Read tokenizer.json and what stands beside it.  ModelError names the file that is missing or malformed."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelError(f"{path}: no such file; only the fast tokenizers' format is supported")
        settings = _read(folder / "tokenizer_config.json")
        special = {name: text for name in SPECIAL_NAMES if (text := _content(settings.get(name)))}
        chat_template, tool_template = _templates(folder, settings)
        spec = cls(path.read_bytes(), chat_template, (), special, tool_template)
        tokenizer = Tokenizer(spec, name=str(path))
        ids: list[int | None] = [*_ends(folder / "generation_config.json"), *_ends(folder / "config.json")]
        ids += [tokenizer.token_id(special.get("eos_token", "")), _end_of_turn(tokenizer)]
        return replace(spec, eos_ids=tuple(dict.fromkeys(eos for eos in ids if eos is not None)))


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _ends(path: Path) -> tuple[int, ...]:
    """The eos_token_id of a config."""
    with readable(str(path)):
        return token_ids(_read(path).get("eos_token_id"))


def _content(token: object) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _templates(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The chat template, and the one for conversations with tools."""
    path = folder / "chat_template.jinja"
    given = settings.get("chat_template") or _read(folder / "chat_template.json").get("chat_template")
    by_name: dict[Any, Any] = {"default": given}
    if isinstance(given, list):
        by_name = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
    for one in sorted(folder.glob("additional_chat_templates/*.jinja")):
        by_name[one.stem] = one.read_text(encoding="utf-8")
    if path.exists():
        by_name["default"] = path.read_text(encoding="utf-8")
    found = {name: text for name, text in by_name.items() if isinstance(text, str)}
    return found.get("default") or next(iter(found.values()), None), found.get("tool_use")


def _end_of_turn(tokenizer: Tokenizer) -> int | None:
    """The special token that the chat template puts behind what the assistant has said."""
    said = "It is said."
    turns = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": said}]
    try:
        _, found, rest = tokenizer.render_chat(turns, add_generation_prompt=False).rpartition(said)
    except InvalidRequest:
        return None
    first = next(iter(tokenizer.encode(rest.lstrip())), None) if found else None
    bos = tokenizer.token_id(tokenizer.spec.special_tokens.get("bos_token", ""))
    return first if first in tokenizer.special_ids().values() and first != bos else None


class Tokenizer:
    """Encode, decode and render; cheap to call, about 20 ms and the size of the vocabulary to build."""

    def __init__(self, spec: TokenizerSpec, name: str = "tokenizer.json") -> None:
        self.spec = spec
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(spec.json.decode())
        except Exception as error:
            raise ModelError(f"{name}: not a tokenizer: {error}") from error
        self._pieces = Pieces(self._tokenizer, json.loads(spec.json).get("decoder"))
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
        return self._pieces.special_ids

    def token_id(self, text: str) -> int | None:
        """The id of one exact token, None if there is none."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token stands for within a text, pieces of characters included; for grammar masks.

        Empty for an id that is no token.
        """
        return self._pieces.of(token_id)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids; special tokens spelled out in the text are recognised."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    @property
    def bos_ids(self) -> list[int]:
        """What the tokenizer's post-processor puts before a text."""
        return self._around()[0]

    @property
    def end_ids(self) -> list[int]:
        """What the tokenizer's post-processor puts behind a text, as those of embedding models do."""
        return self._around()[1]

    def _around(self) -> tuple[list[int], list[int]]:
        plain, marked = self.encode("a"), self.encode("a", add_special_tokens=True)
        for at in range(len(marked)):
            if marked[at : at + len(plain)] == plain:
                return marked[:at], marked[at + len(plain) :]
        return [], []

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text; bytes that are not UTF-8 become U+FFFD."""
        if self._pieces.is_sum:
            return self._pieces.text(ids, skip_special=skip_special_tokens)
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self, skip_special_tokens: bool = True) -> DecodeStream:
        """An incremental decoder for one sequence."""
        if self._pieces.is_sum:
            return ByteStream(self._pieces, skip_special=skip_special_tokens)
        return WindowStream(self._tokenizer, skip_special=skip_special_tokens)

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        arguments: Mapping[str, Any] | None = None,
        now: int = 0,
    ) -> str:
        """The prompt of a conversation; InvalidRequest if the model has no chat template or it refuses.

        `arguments`: further names that the template knows.  `now`: as `render_chat` has it.
        """
        template = (self.spec.tool_template if tools else None) or self.spec.chat_template
        if template is None:
            raise InvalidRequest("this model has no chat template; send plain text")
        names = {**self.spec.special_tokens, **(arguments or {})}
        return render_with_tools(
            template, messages, tools, add_generation_prompt=add_generation_prompt, names=names, now=now
        )

    def render_json(
        self, messages: str, tools: str, add_generation_prompt: bool = True, arguments: str = "", now: int = 0
    ) -> str:
        """`render_chat` of JSON: a list of objects each; "" for no tools, no arguments.  Raises InvalidRequest."""
        return self.render_chat(
            json_objects("messages", messages, "{role, content}"),
            tools=json_objects("tools", tools, "{type, function}") if tools else None,
            add_generation_prompt=add_generation_prompt,
            arguments=json_object("arguments", arguments) if arguments else None,
            now=now,
        )

    @property
    def thought_tags(self) -> tuple[str, str] | None:
        """What begins and ends a thought, if the chat template tells of any."""
        return thought_tags(self.spec.tool_template or self.spec.chat_template)

    def parse_reply(self, text: str, *, is_over: bool = False) -> Reply:
        """The parts of a reply, in the format that the chat template tells of."""
        return parse_reply(self.spec.tool_template or self.spec.chat_template, text, is_over=is_over)
