"""WIT interface `forward`: passes and their outputs."""

from __future__ import annotations

import math

from pieray.errors import BadHandle, InvalidRequest
from pieray.host.handlers.base import U32, HandlerGroup
from pieray.host.outbox import Pass
from pieray.host.tickets import Kind
from pieray.host.visibility import composed
from pieray.messages import DISTRIBUTION, LOGITS, LOGPROBS, SAMPLE


class ForwardHandlers(HandlerGroup):
    """Forward passes.  What can be checked here is, so that a bad call fails at once, not in the batch."""

    def forward_forward(self, queue: int, pages: U32, kv_len: int, tokens: U32, positions: U32, mask: U32) -> int:
        state = self._state
        found = state.queue(queue)
        info = state.models.get("").info
        num_tokens = len(tokens)
        if num_tokens == 0:
            raise InvalidRequest("a pass runs at least 1 token; given 0")
        if int(tokens.max()) >= info.vocab_size:
            raise InvalidRequest(f"token ids are below {info.vocab_size}; given {int(tokens.max())}")
        last = int(positions.max()) if len(positions) else kv_len + num_tokens - 1
        if last >= info.max_context:
            raise InvalidRequest(f"positions are below {info.max_context}, the model's context; given {last}")
        if len(positions) not in (0, num_tokens):
            raise InvalidRequest(f"positions: none or one per token ({num_tokens}); given {len(positions)}")
        bits = composed(state.pages.visible(pages, kv_len), num_tokens, _mask_bytes(mask, num_tokens, kv_len))
        with state.lock:
            state.outbox.check_room()
            ticket = state.tickets.issue(Kind.NONE)
            try:
                prepared = state.pages.stage_forward(pages, kv_len, num_tokens, is_masked=True)
            except BaseException:
                state.tickets.drop((ticket,))
                raise
            state.lineage.record_forward(prepared, kv_len, tokens, positions, bits)
            state.outbox.stage(Pass(ticket, found, prepared, kv_len, tokens.tobytes(), positions.tobytes(), bits))
        return ticket

    def forward_sample(
        self, pass_: int, row: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
    ) -> int:
        found = self._open_pass(pass_, row)
        _check_finite("temperature", temperature, 0.0, math.inf)
        _check_finite("top-p", top_p, 0.0, 1.0)
        _check_finite("min-p", min_p, 0.0, 1.0)
        return self._ask(found, Kind.TOKENS, [SAMPLE, row, temperature, top_k, top_p, min_p, seed])

    def forward_distribution(self, pass_: int, row: int, k: int) -> int:
        found = self._open_pass(pass_, row)
        vocab = self._state.models.get("").info.vocab_size
        if not 1 <= k <= vocab:
            raise InvalidRequest(f"k is from 1 to {vocab}, the vocabulary; given {k}")
        return self._ask(found, Kind.DISTRIBUTION, [DISTRIBUTION, row, k])

    def forward_logprobs(self, pass_: int, row: int, tokens: U32) -> int:
        found = self._open_pass(pass_, row)
        vocab = self._state.models.get("").info.vocab_size
        if len(tokens) == 0 or int(tokens.max()) >= vocab:
            given = "none" if len(tokens) == 0 else str(int(tokens.max()))
            raise InvalidRequest(f"token ids, at least one, are below {vocab}; given {given}")
        return self._ask(found, Kind.FLOATS, [LOGPROBS, row, tokens.tobytes()])

    def forward_logits(self, pass_: int, row: int) -> int:
        return self._ask(self._open_pass(pass_, row), Kind.FLOATS, [LOGITS, row])

    def _open_pass(self, handle: int, row: int) -> Pass:
        """A pass that can still be asked for outputs of `row`: its guest alone sends it, so it stays so."""
        state = self._state
        found = state.outbox.passes.get(handle)
        if found is None and not state.tickets.is_open(handle):
            raise BadHandle(f"pass {handle} is not open")
        if found is None or found.is_sent:
            raise InvalidRequest(f"pass {handle} is sent already: ask for its outputs before waiting or flushing")
        if row >= found.num_tokens:
            raise InvalidRequest(f"rows of this pass are below {found.num_tokens}; given {row}")
        return found

    def _ask(self, found: Pass, kind: Kind, request: list[object]) -> int:
        state = self._state
        with state.lock:
            ticket = state.tickets.issue(kind)
            state.outbox.add_output(found, [ticket, *request])
        return ticket


def _check_finite(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or math.isinf(value):
        raise InvalidRequest(f"{name} is a finite number from {low} to {high}; given {value}")


def _mask_bytes(mask: U32, num_tokens: int, kv_len: int) -> bytes:
    """The bytes of a packed mask, cut to its bits; raises InvalidRequest naming the words it must have."""
    if len(mask) == 0:
        return b""
    num_bits = num_tokens * (kv_len + num_tokens)
    if len(mask) != -(-num_bits // 32):
        raise InvalidRequest(f"a mask of {num_tokens} x {kv_len + num_tokens} bits takes {-(-num_bits // 32)} words; "
                             f"given {len(mask)}")  # fmt: skip
    return mask.astype("<u4", copy=False).tobytes()[: -(-num_bits // 8)]
