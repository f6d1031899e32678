"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampler chain: temperature, then top-k, top-p and min-p.  Temperature 0 takes the most probable token."""

    temperature: float = 1.0
    top_k: int = 0
    """Only the k most probable tokens; 0 is off."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach p; 1 is off."""
    min_p: float = 0.0
    """Only tokens at least p times as probable as the best; 0 is off."""
    seed: int | None = None
    """The draws depend on the seed and the position alone; None draws a fresh seed."""

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, float("inf"))
        _check("top_k", self.top_k, 0, 2**31)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _check("seed", self.seed, 0, 2**64 - 1)


def greedy() -> Sampler:
    """Always the most probable token."""
    return Sampler(temperature=0.0)


def sampler_of(
    sampler: Sampler | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
) -> Sampler:
    """One sampler from what `generate` was given: greedy if nothing was."""
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    if sampler is None:
        return Sampler(**given) if given.keys() - {"seed"} else greedy()  # type: ignore[arg-type]
    if given:
        raise InvalidRequest(f"give either sampler or {', '.join(given)}")
    return sampler


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidRequest(f"{name} is from {low} to {high}; given {value!r}")
