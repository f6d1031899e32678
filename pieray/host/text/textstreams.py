"""Text of tokens as they come, up to a stop text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pieray.errors import InvalidRequest, PierayError
from pieray.models.detokenizer import DecodeStream
from pieray.models.tokenizer import Tokenizer
from pieray.stops import StopMatcher

MAX_STREAMS = 1024
"""Open at one time, of one inferlet."""


class TextStream:
    """One incremental detokenizer of an inferlet: whole characters come out as soon as their last byte is in."""

    def __init__(self, decoder: DecodeStream, special: Mapping[str, int] | None = None) -> None:
        """`special`: tokens that a stop text may spell."""
        self._decoder = decoder
        self._special = special or {}
        self._stop_tokens: dict[int, str] = {}
        self._matcher: StopMatcher | None = None
        self.num_stops = self.num_stop_characters = 0
        self.stopped_by = ""
        """The stop text that was met: no text comes any more."""

    def stop_at(self, texts: Sequence[str]) -> None:
        """End the text before the first of `texts`.  Raises InvalidRequest."""
        if "" in texts:
            raise InvalidRequest("stop texts have at least 1 character each, none of them is empty; one was")
        self._stop_tokens = {self._special[text]: text for text in texts if text in self._special}
        self._matcher = StopMatcher(texts) if texts else None
        self.num_stops, self.num_stop_characters = len(texts), sum(map(len, texts))

    def push(self, token: int) -> str:
        """The text that may go out with the token.  Raises an `internal` error for one that the tokenizer fails at."""
        if self.stopped_by:
            return ""
        if token in self._stop_tokens:
            self.stopped_by = self._stop_tokens[token]
            return self.rest()
        try:
            text = self._decoder.push(token)
        except BaseException as error:  # noqa: BLE001 - a panic of native code too
            raise PierayError(f"the tokenizer makes no text of token {token}: {error!r}") from None
        if self._matcher is None:
            return text
        text, met = self._matcher.push(text)
        self.stopped_by = met or ""
        return text

    def rest(self) -> str:
        """What is held back, once no more tokens come."""
        return self._matcher.flush() if self._matcher is not None else ""


def open_stream(tokenizer: Tokenizer, skip_special: bool, after: Sequence[int]) -> TextStream:
    """One whose text goes on behind the tokens `after`."""
    decoder = tokenizer.stream(skip_special_tokens=skip_special)
    decoder.prime(after)
    return TextStream(decoder, tokenizer.special_ids())
