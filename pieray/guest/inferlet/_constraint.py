"""Generation under a grammar, a mask for each token: what a decode plan does in the batcher, done from here."""

from __future__ import annotations

from . import _host
from .grammar import Grammar, Matcher


class Constraint:
    """A sampler chain that draws only what a matcher allows; `sample` stands in for `forward.sample`."""

    def __init__(self, matcher: Matcher, chain: tuple[float, int, float, float, int]) -> None:
        self._matcher = matcher
        temperature, top_k, top_p, min_p, seed = chain
        self._sampler: int = _host.samplers.create(temperature, top_k, top_p, min_p, 1.0, seed)

    @classmethod
    async def open(cls, grammar: Grammar, chain: tuple[float, int, float, float, int], model: str) -> Constraint:
        return cls(await grammar.compile(model), chain)

    def sample(self, pass_: int, row: int, *_chain: object) -> int:
        """The ticket of a token that the grammar allows."""
        _host.samplers.allow(self._sampler, _host.grammar.mask(self._matcher.handle))
        return int(_host.forward.sample_with(pass_, row, self._sampler))

    def take(self, token: int) -> bool:
        """Take a drawn token in; False: nothing may follow, not even a stop token, for the model has none."""
        return self._matcher.accept([token]) == 1 and any(self._matcher.mask())

    def close(self) -> None:
        self._matcher.close()
        _host.samplers.free(self._sampler)
