"""Where a text stands in its grammar, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask_par

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.grammar.source import plain

if TYPE_CHECKING:
    from pieray.grammar.compiler import Grammar


class Matcher:
    """One text under a grammar.

    For one thread at a time; different matchers, also of one grammar, may run on different threads.  Every method
    raises QuotaExceeded once the grammar has passed a limit of llguidance (`parser_limits`), and ever after.
    """

    __slots__ = ("_inner", "_mask", "_num_stops", "consumed", "grammar", "model")

    def __init__(self, grammar: Grammar, inner: LLMatcher) -> None:
        self.grammar = grammar
        self._inner = inner
        self._mask: bytes | None = None
        self._num_stops = 0
        self.consumed: list[int] = []
        """All tokens taken in and not rolled back: `grammar.matcher(consumed)` is in this state."""
        self.model = ""
        """Whose tokens they are, as whoever opened it says: "" is the default one."""

    def accept(self, tokens: Sequence[int]) -> int:
        """Take tokens in; how many of them, from the first, the grammar allows.  The rest changes nothing.

        A stop token is allowed where the text may end, and behind it nothing but stop tokens.
        """
        for index, token in enumerate(tokens):
            if not self._accept_one(int(token)):
                return index
        return len(tokens)

    def _accept_one(self, token: int) -> bool:
        grammar, inner = self.grammar, self._inner
        if token in grammar.eos_ids and (self._num_stops or inner.is_accepting()):
            self._num_stops += 1
        elif self._num_stops or not 0 <= token < grammar.vocab_size or inner.try_consume_tokens([token]) != 1:
            self._check()
            return False
        self._check()
        self.consumed.append(token)
        self._mask = None
        return True

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens taken in.  Raises InvalidRequest if there are fewer."""
        if not 0 <= count <= len(self.consumed):
            raise InvalidRequest(f"rollback: from 0 to {len(self.consumed)} tokens, those taken in; given {count}")
        if count == 0:
            return
        num_stops = min(count, self._num_stops)
        self._num_stops -= num_stops
        if count > num_stops:
            self._inner.rollback(count - num_stops)
            self._check()
        del self.consumed[-count:]
        self._mask = None

    def fork(self) -> Matcher:
        """A second matcher in the same state."""
        self._check()
        other = Matcher(self.grammar, self._inner.deep_copy())
        other.consumed, other.model = list(self.consumed), self.model
        other._num_stops, other._mask = self._num_stops, self._mask
        return other

    def mask_bytes(self) -> bytes:
        """The tokens that may come next: packed bits [vocab_size], least significant first, zero behind the last.

        All zero if the text is over and the model has no stop token.
        """
        mask = self._mask
        if mask is None:
            num_bytes = -(-self.grammar.vocab_size // 8)
            bits = bytearray(num_bytes)
            if not self._num_stops:
                bits[:] = self._inner.compute_bitmask()[:num_bytes].ljust(num_bytes, b"\0")
                self._check()
            mask = self._keep_mask(bits)
        return mask

    def _keep_mask(self, bits: bytearray) -> bytes:
        self._set_stops(bits)
        self._mask = bytes(bits)
        return self._mask

    def _set_stops(self, bits: bytearray) -> None:
        vocab_size = self.grammar.vocab_size
        if vocab_size % 8:
            bits[-1] &= (1 << vocab_size % 8) - 1
        if self.is_complete:
            for token in self.grammar.eos_ids:
                if token < vocab_size:
                    bits[token // 8] |= 1 << token % 8

    def forced(self) -> list[int]:
        """Tokens that must come next, whatever is sampled; perhaps none."""
        if self._num_stops or self._inner.is_stopped():
            self._check()
            return []
        tokens = list(self._inner.compute_ff_tokens())
        self._check()
        return tokens

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is one of the grammar's."""
        return bool(self._num_stops or self._inner.is_accepting())

    def _check(self) -> None:
        if self._inner.is_error():
            self.grammar.is_spent = True
            raise QuotaExceeded(f"the grammar is too complex to go on: {plain(self._inner.get_error())}")


def fill_masks(matchers: Sequence[Matcher], executor: LLExecutor) -> None:
    """Compute what `mask_bytes` of each will give, on all cores at once.

    One that passes a limit is left as it is: its `mask_bytes` raises.
    """
    wanted = [one for one in matchers if one._mask is None and not one._num_stops]
    if len(wanted) < 2:
        return
    num_words = -(-max(one.grammar.vocab_size for one in wanted) // 32)
    masks = np.zeros((len(wanted), num_words), np.int32)
    fill_next_token_bitmask_par(executor, [(one._inner, place) for place, one in enumerate(wanted)], masks)
    for one, mask in zip(wanted, masks, strict=True):
        if not one._inner.is_error():
            one._keep_mask(bytearray(mask.tobytes()[: -(-one.grammar.vocab_size // 8)]))
