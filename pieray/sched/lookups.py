"""Embeddings that were asked for: looked up before a step, a bounded number of tokens at a time."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Protocol

import numpy as np

from pieray.arrays import F32, U32
from pieray.errors import DeviceLost, InvalidRequest, PierayError
from pieray.messages import Completed, EmbedTokens, Message
from pieray.sched.failures import failed, known

TOKENS_PER_STEP = 1024
"""So many tokens are looked up in one step, or one request of more: a copy of their rows, no computation."""


class Lookup(Protocol):
    """What embeds tokens: `pieray.models.runner.ModelRunner`.  Raises DeviceLost on a dead device."""

    def embed(self, tokens: U32) -> F32: ...


class EmbedLookups:
    """Requests until a step answers them or their inferlet ends: of each inferlet in order, and these in turn."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[tuple[str, int], deque[EmbedTokens]] = OrderedDict()  # none is empty

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, peer_id: str, message: EmbedTokens) -> None:
        self._waiting.setdefault((peer_id, message.inferlet), deque()).append(message)

    def cancel(self, peer_id: str, inferlet: int | None = None) -> None:
        """Drop those of an inferlet, or of all of a peer's."""
        for key in [key for key in self._waiting if key[0] == peer_id and inferlet in (None, key[1])]:
            del self._waiting[key]

    def answer(self, runner: Lookup, answers: list[tuple[str, Message]]) -> None:
        """Append answers to the first of them, by peer.  Raises DeviceLost: those not answered wait still then."""
        num_left = TOKENS_PER_STEP
        while self._waiting and num_left > 0:
            key, messages = next(iter(self._waiting.items()))
            answers.append((key[0], _answer(runner, messages[0])))
            message = messages.popleft()
            self._waiting.move_to_end(key)
            if not messages:
                del self._waiting[key]
            num_left -= len(message.tokens) // 4 if isinstance(message.tokens, bytes) else 0

    def fail_all(self, error: PierayError) -> list[tuple[str, Message]]:
        """Answer all of them with an error."""
        answers: list[tuple[str, Message]] = [
            (key[0], failed(message.ticket, error)) for key, messages in self._waiting.items() for message in messages
        ]
        self._waiting.clear()
        return answers


def _answer(runner: Lookup, message: EmbedTokens) -> Message:
    try:
        values = runner.embed(np.frombuffer(message.tokens, "<u4"))
    except DeviceLost:
        raise
    except PierayError as error:
        return failed(message.ticket, error)
    except (ValueError, TypeError) as error:
        return failed(message.ticket, InvalidRequest(f"malformed request: {error}"))
    except BaseException as error:  # noqa: BLE001 - whatever is thrown, the loop goes on
        return failed(message.ticket, known(error))
    return Completed(message.ticket, values.astype("<f4", copy=False).tobytes())
