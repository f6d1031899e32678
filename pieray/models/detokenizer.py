"""Tokens to text as they come, over the bytes that each token stands for.

A token's bytes are a fixed function of the token in every vocabulary that is made of bytes, or of pieces of text with
bytes to fall back on: byte-level BPE, SentencePiece.  The text is then the UTF-8 of their sum, so that it can be taken
up in the middle, and cannot fail.  Other tokenizers (WordPiece, CTC) are asked for the text of a window of tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

import tokenizers

PRIME_TOKENS = 16
"""So many of the last tokens say all about the text before: whether there is any, and what of a character is begun."""
WINDOW = 8
"""Tokens before the next one that a tokenizer without bytes is shown."""
_UTF8 = codecs.getincrementaldecoder("utf-8")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself if printable Latin-1, else from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


class Pieces:
    """The bytes of a tokenizer's tokens.  `decoder` is that of tokenizer.json."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, decoder: Any) -> None:
        self._tokenizer = tokenizer
        self._steps = _flat(decoder)
        self._found: dict[int, bytes] = {}
        added = tokenizer.get_added_tokens_decoder()
        self.special = {number: token.content for number, token in added.items() if token.special}
        self.special_ids = {text: number for number, text in self.special.items()}
        self.is_sum = _is_sum(self._steps)
        """Whether a text is the sum of its tokens' bytes."""
        self.num_leading, self.is_first_alone = _leading(self._steps)
        """Blanks that a text as a whole does not begin with; whether only its first token is looked at."""

    def of(self, token: int) -> bytes:
        """Empty for a number that is no token."""
        found = self._found.get(token)
        if found is None:
            found = self._found[token] = self._made(token)
        return found

    def _made(self, token: int) -> bytes:
        text: str | None = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if not self.is_sum:
            return text.replace("\u2581", " ").encode()
        for step in self._steps:
            kind = step["type"]
            if kind == "ByteLevel":
                places = [_BYTE_OF.get(char) for char in text]
                return text.encode() if None in places else bytes(places)  # type: ignore[arg-type]
            if kind == "ByteFallback":
                if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                    try:
                        return bytes.fromhex(text[3:5])
                    except ValueError:
                        continue
            elif kind == "Replace":
                text = text.replace(step["pattern"]["String"], step["content"])
            elif kind == "Metaspace":
                text = text.replace(step.get("replacement", "\u2581"), " ")
        return text.encode()

    def text(self, tokens: Sequence[int], *, skip_special: bool) -> str:
        """Of all of them; bytes that are not UTF-8 become U+FFFD."""
        stream = ByteStream(self, skip_special=skip_special)
        return "".join([stream.push(token) for token in tokens]) + stream.finish()


def _flat(decoder: Any) -> list[dict[str, Any]]:
    """The steps of a decoder; none if there is no decoder, or one whose form is not known."""
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for one in decoder.get("decoders", ()) for step in _flat(one)]
    return [decoder]


def _is_sum(steps: list[dict[str, Any]]) -> bool:
    """Whether the steps make of each token what they make of it anywhere, and put nothing between two."""
    is_fused = False
    for step in steps:
        kind = step.get("type")
        if kind == "Strip":
            if not is_fused or step.get("stop") or step.get("content") != " ":
                return False
        elif kind == "Replace":
            if is_fused or "String" not in step.get("pattern", {}):
                return False
        elif kind in ("ByteLevel", "Fuse"):
            is_fused = True
        elif kind not in ("ByteFallback", "Metaspace") or is_fused:
            return False
    return bool(steps) and (is_fused or steps[-1]["type"] in ("Metaspace", "ByteFallback"))


def _leading(steps: list[dict[str, Any]]) -> tuple[int, bool]:
    for step in steps:
        if step.get("type") == "Strip":
            return int(step.get("start", 0)), False
        if step.get("type") == "Metaspace":
            is_prepended = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
            return (1 << 30, True) if is_prepended else (0, False)
    return 0, False


class DecodeStream(Protocol):
    """Text as tokens come."""

    def prime(self, tokens: Sequence[int]) -> None:
        """These stand before what is pushed: its text goes on behind theirs."""

    def push(self, token: int) -> str:
        """The text that the token completes; empty while a character is in pieces."""

    def finish(self) -> str:
        """What is left at the end: a character that never became whole, as U+FFFD."""


class ByteStream:
    """A DecodeStream over the bytes of tokens: it takes any token, in any order."""

    __slots__ = ("_leading", "_pieces", "_skipped", "_utf8")

    def __init__(self, pieces: Pieces, *, skip_special: bool) -> None:
        self._pieces = pieces
        self._skipped = frozenset(pieces.special if skip_special else ())
        self._leading = pieces.num_leading
        self._utf8 = _UTF8("replace")

    def prime(self, tokens: Sequence[int]) -> None:
        for token in tokens[-PRIME_TOKENS:]:
            self.push(token)

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        piece = self._pieces.of(token)
        if self._leading and piece:
            num_blank = min(len(piece) - len(piece.lstrip(b" ")), self._leading)
            is_over = num_blank < len(piece) or self._pieces.is_first_alone
            self._leading = 0 if is_over else self._leading - num_blank
            piece = piece[num_blank:]
        return self._utf8.decode(piece)

    def finish(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class WindowStream:
    """A DecodeStream that asks the tokenizer for the text of the last tokens, without and with the next one."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._tokens: list[int] = []
        self._num_told = 0  # of the tokens whose text is out

    def prime(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens[-PRIME_TOKENS:])
        self._num_told = len(self._tokens)

    def push(self, token: int) -> str:
        self._tokens.append(token)
        whole = self._text(self._tokens)
        if whole.endswith("\ufffd") and len(self._tokens) - self._num_told < WINDOW:  # perhaps a character begun
            return ""
        text = self._new(whole)
        self._tokens = self._tokens[-WINDOW:]
        self._num_told = len(self._tokens)
        return text

    def finish(self) -> str:
        text = self._new(self._text(self._tokens))
        self._num_told = len(self._tokens)
        return text

    def _new(self, whole: str) -> str:
        told = self._text(self._tokens[: self._num_told])
        return whole[len(told) :] if whole.startswith(told) else whole

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skip))
