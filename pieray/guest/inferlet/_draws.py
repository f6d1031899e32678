"""How a generation draws its tokens, and what a source of them is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from .adapters import Adapter
from .runtime import random_u64
from .sampler import Sampler, open_chain

if TYPE_CHECKING:
    from .context import Context

Choose: TypeAlias = Callable[..., int | Awaitable[int | None] | None]
"""Takes all logits of the next token, of the context and of each beside it; the token's id, or None to end."""
Drafter: TypeAlias = Callable[[list[int]], Sequence[int] | Awaitable[Sequence[int]]]


@dataclass(slots=True)
class Drawn:
    """Tokens as a source gives them."""

    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    """One per token, or none."""
    texts: list[str] | None = None
    """What goes out with each; None: nobody has made text of them yet."""
    sent: str = ""
    """Text of them that has gone to the client."""
    is_kept: bool = False
    """They are in the context already."""


@dataclass(slots=True)
class Draws:
    """How tokens are drawn."""

    sampler: Sampler
    logprobs: bool
    stop_tokens: frozenset[int]
    stop_strings: tuple[str, ...]
    has_grammar: bool = False
    matcher: int = 0  # its matcher at the beginning of the generation, once it is compiled
    drafter: Drafter | str | None = None
    adapter: Adapter | None = None  # that its passes run through
    seed: int | None = None
    model: str = ""
    choose: Choose | None = None
    beside: Sequence[Context] = ()  # contexts that take every token too
    began: int = 0  # tokens of the context before those drawn

    def chain(self) -> tuple[float, int, float, float, int]:
        """The sampler as `forward.sample` takes it; the seed is drawn once."""
        sampler = self.sampler
        if self.seed is None:
            self.seed = sampler.seed
        if self.seed is None:
            self.seed = random_u64() if sampler.temperature else 0
        return float(sampler.temperature), sampler.top_k, float(sampler.top_p), float(sampler.min_p), self.seed

    def open_sampler(self) -> int:
        """A sampler chain's handle, to be freed; 0: greedy."""
        is_greedy = self.sampler.is_plain and not self.sampler.temperature
        return 0 if is_greedy else self.open_chain()

    def open_chain(self) -> int:
        """As `open_sampler`, never 0."""
        return open_chain(self.sampler, self.chain()[-1], self.model)


class NoPlan(Exception):
    """No plan can be opened: the limit of plans is reached, this engine has none, or tokens are masked."""


class Source(Protocol):
    """Draws tokens behind a context, whose KV holds all but the last of those drawn so far."""

    is_busy: bool
    """Whether its generation waits for a token."""
    is_stale: bool
    """The context has changed: what was drawn and not taken is void."""
    finish_reason: str
    way: str
    """How it draws, for the log, where a plan was to be expected; else ""."""

    async def next(self, num_left: int, most: int = 0) -> Drawn:
        """One or more tokens, at most `num_left` (and `most`, unless that is 0); none when `finish_reason` says why."""

    async def stream(self, num_left: int) -> Drawn:
        """The same, where their text may go to the client at once: that which has is `sent`."""

    def release(self) -> None:
        """The context is about to change."""

    def redraw(self) -> None:
        """The sampler has changed."""

    def close(self) -> None:
        """No more is wanted; a second time does nothing."""
