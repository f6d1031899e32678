"""Compiled grammars of one tokenizer, kept per tenant."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from llguidance import LLMatcher, LLTokenizer

from pieray.errors import InvalidRequest, Unsupported
from pieray.grammar.matcher import Matcher
from pieray.grammar.source import KINDS, new_matcher, new_tokenizer, plain
from pieray.grammar.trial import Trial, TrialPool
from pieray.models.tokenizer import TokenizerSpec

CACHE_ENTRIES = 32
CACHE_BYTES = 2 << 20
"""Of grammars' source texts, per tenant."""
CACHE_TENANTS = 64


class Grammar:
    """A compiled grammar.  Its matchers share llguidance's lexer, which it guards with a lock of its own."""

    __slots__ = ("_base", "eos_ids", "is_slow", "is_spent", "kind", "text", "vocab_size")

    def __init__(self, kind: str, text: str, base: LLMatcher, vocab_size: int, eos_ids: tuple[int, ...]) -> None:
        self.kind, self.text, self._base = kind, text, base
        self.vocab_size, self.eos_ids = vocab_size, eos_ids
        self.is_slow = False
        """A step of a matcher has taken long: who runs matchers for many does the next ones apart."""
        self.is_spent = False
        """A matcher passed a limit of llguidance.  The lexer may be full: the cache compiles the grammar anew."""

    def matcher(self, consumed: Sequence[int] = ()) -> Matcher:
        """A matcher that has taken `consumed` in.  Raises InvalidRequest if the grammar does not allow them."""
        matcher = Matcher(self, self._base.deep_copy())
        if (count := matcher.accept(consumed)) < len(consumed):
            raise InvalidRequest(f"the grammar does not allow token {consumed[count]}, number {count} of those given")
        return matcher


class GrammarCompiler:
    """Compiles for one tokenizer.  `vocab_size` is the model's: masks have that many bits.  Thread-safe.

    With a `trial` every grammar is tried there first.  Without one, compile only what a trial elsewhere has passed.
    """

    def __init__(self, spec: TokenizerSpec, vocab_size: int, *, trial: Trial | TrialPool | None = None) -> None:
        self._spec = spec
        self._vocab_size = vocab_size
        self._trial = trial
        self._tokenizer: LLTokenizer | None = None
        self._tenants: OrderedDict[str, OrderedDict[tuple[str, str], Grammar]] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, kind: str, text: str, tenant: str = "", *, time_s: float = 10.0) -> Grammar:
        """The grammar, from the tenant's cache or compiled now: that blocks, for up to twice `time_s`.

        Raises InvalidRequest with the place of the fault; QuotaExceeded past `time_s` or a limit of the compiler;
        Unsupported if llguidance does not read the tokenizer.
        """
        if kind not in KINDS:
            raise InvalidRequest(f"the kinds of grammars are {', '.join(KINDS)}; given {kind!r}")
        if (found := self.find(kind, text, tenant)) is not None:
            return found
        if self._trial is not None:
            self._trial.check(kind, text, time_s)
        try:
            base = new_matcher(self._ready_tokenizer(), kind, text)
        except ValueError as error:  # found by the trial, where there is one
            raise InvalidRequest(f"{kind} grammar: {error}") from None
        if base.is_error():
            raise InvalidRequest(f"{kind} grammar: {plain(base.get_error())}")
        grammar = Grammar(kind, text, base, self._vocab_size, tuple(self._spec.eos_ids))
        self._keep(grammar, tenant)
        return grammar

    def find(self, kind: str, text: str, tenant: str = "") -> Grammar | None:
        """The grammar if the tenant has it in its cache; does not block."""
        with self._lock:
            kept = self._tenants.get(tenant)
            found = None if kept is None else kept.get((kind, text))
            if found is None or kept is None:
                return None
            if found.is_spent:
                del kept[kind, text]
                return None
            kept.move_to_end((kind, text))
            self._tenants.move_to_end(tenant)
            return found

    def _keep(self, grammar: Grammar, tenant: str) -> None:
        with self._lock:
            kept = self._tenants.setdefault(tenant, OrderedDict())
            kept[grammar.kind, grammar.text] = grammar
            kept.move_to_end((grammar.kind, grammar.text))
            self._tenants.move_to_end(tenant)
            while len(kept) > CACHE_ENTRIES or (len(kept) > 1 and _num_bytes(kept) > CACHE_BYTES):
                kept.popitem(last=False)
            while len(self._tenants) > CACHE_TENANTS:
                self._tenants.popitem(last=False)

    def _ready_tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = new_tokenizer(self._spec.json.decode(), self._vocab_size, self._spec.eos_ids)
                except ValueError as error:
                    raise Unsupported(f"llguidance does not read this model's tokenizer: {error}") from None
            return self._tokenizer

    def close(self) -> None:
        """End the trial's process; idempotent."""
        if self._trial is not None:
            self._trial.close()


def _num_bytes(kept: OrderedDict[tuple[str, str], Grammar]) -> int:
    return sum(len(text) for _, text in kept)
