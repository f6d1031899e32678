"""The text of a generation's tokens: a text stream of the host's, which plans push what they draw through."""

from __future__ import annotations

from collections.abc import Sequence

from . import _host
from . import model as models


class Texts:
    """Stands behind `tokens`, the generation's own list, whose text goes on behind the tokens `before`.

    What was pushed beyond them, since it was drawn ahead and is void now, is taken back: the stream is begun anew.
    """

    def __init__(self, model: str, stops: Sequence[str], tokens: list[int], before: Sequence[int]) -> None:
        self._model = model
        self._before = before[-models.PRIME_TOKENS :]
        self._stops = stops
        self._tokens = tokens
        self._num_pushed = 0
        self._stream = self._opened()

    def _opened(self) -> models.TextStream:
        stream = models.TextStream(model=self._model, after=self._before)
        if self._stops:
            _host.model.stream_stop(stream.handle, self._stops)
        return stream

    @property
    def handle(self) -> int:
        """The stream, for a handler that pushes the next tokens; tell of them with `pushed`."""
        if self._num_pushed != len(self._tokens):
            self._stream.close()
            self._stream = self._opened()
            self._stream.push(self._tokens)
            self._num_pushed = len(self._tokens)
        return self._stream.handle

    def pushed(self, num_tokens: int) -> None:
        """So many were pushed through `handle`."""
        self._num_pushed += num_tokens

    def push(self, token: int) -> str:
        """The text that goes out with the next token; push it before it joins `tokens`."""
        text: str = _host.model.stream_push(self.handle, [token])
        self._num_pushed += 1
        return text

    def stopped_by(self) -> str | None:
        """The stop text that was met."""
        return _host.model.stream_stopped(self._stream.handle) or None if self._stops else None

    def rest(self) -> str:
        """What was held back in case a stop text came."""
        return _host.model.stream_rest(self._stream.handle) if self._stops else ""

    def close(self) -> None:
        """Give the stream back; a second time does nothing."""
        self._stream.close()
