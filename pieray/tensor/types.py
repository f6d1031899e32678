"""What the values of a tensor program are: types, named sizes, what each stage gives a program and takes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pieray.errors import InvalidRequest

FLOAT, INT, BOOL = "float", "int", "bool"
"""float32, int64, truth values."""
DTYPES = (FLOAT, INT, BOOL)
PAGES = "P"
"""The one size that is known only when a program runs: pages of the row."""
MAX_RANK = 3
MOST_SIZE = (1 << 31) - 1
Dim: TypeAlias = int | str
Shape: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Type:
    """Of a value of one row: there is a value for each row of a step, side by side."""

    dtype: str
    shape: Shape = ()

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The named sizes of a model: what V, H, A, D, L and P stand for."""

    vocab: int
    hidden: int
    num_heads: int
    head_dim: int
    num_layers: int
    max_pages: int
    """Pages of a sequence as long as the model's context: what P counts as in bounds."""

    @property
    def named(self) -> Mapping[str, Dim]:
        return {"V": self.vocab, "H": self.hidden, "A": self.num_heads, "D": self.head_dim, PAGES: PAGES}

    def count(self, shape: Sequence[Dim]) -> int:
        """Most elements of such a value."""
        total = 1
        for dim in shape:
            total *= self.max_pages if isinstance(dim, str) else dim
        return total


@dataclass(frozen=True, slots=True)
class Stage:
    """Where in a pass a program runs."""

    inputs: Mapping[str, Type]
    """Shapes in named sizes."""
    result: Type | None
    late: frozenset[str] = frozenset()
    """Inputs that are there once the result has been used: for updates of states alone."""
    has_states: bool = False
    has_layers: bool = False

    @property
    def has_pages(self) -> bool:
        """Whether P is known there."""
        return any(PAGES in one.shape for one in self.inputs.values())


_DRAW = {"logits": Type(FLOAT, ("V",)), "position": Type(INT), "uniform": Type(FLOAT), "token": Type(INT)}
_LOGITS = Type(FLOAT, ("V",))
STAGES: Mapping[str, Stage] = {
    "logits": Stage(_DRAW, _LOGITS, frozenset({"token"}), has_states=True),
    "draw": Stage(_DRAW, _LOGITS, frozenset({"token"}), has_states=True),
    "hidden": Stage(
        {"hidden": Type(FLOAT, ("H",)), "position": Type(INT), "layer": Type(INT)},
        Type(FLOAT, ("H",)),
        has_states=True,
        has_layers=True,
    ),
    "pages": Stage(
        {
            "bound": Type(FLOAT, (PAGES, "A")),
            "query": Type(FLOAT, ("A", "D")),
            "key_min": Type(FLOAT, (PAGES, "A", "D")),
            "key_max": Type(FLOAT, (PAGES, "A", "D")),
            "position": Type(INT),
            "layer": Type(INT),
        },
        Type(BOOL, (PAGES,)),
        has_layers=True,
    ),
    "attention": Stage({"mass": Type(FLOAT, (PAGES,)), "position": Type(INT)}, None, has_states=True),
}
"""logits: before bias, mask, temperature and filters.  draw: behind bias and mask, in place of temperature and filters:
the token is drawn from the softmax of its result.  hidden: the residual stream in front of a layer.  pages: which pages
the attention of a layer reads, of passes of one token.  attention: behind a pass, what its tokens attended to."""


def resolved(shape: Sequence[Dim], sizes: Sizes) -> Shape:
    """A shape with names replaced by the model's numbers, but for P."""
    if len(shape) > MAX_RANK:
        raise InvalidRequest(f"values have at most {MAX_RANK} axes; given {len(shape)}")
    found: list[Dim] = []
    for dim in shape:
        if isinstance(dim, str):
            if dim not in sizes.named:
                raise InvalidRequest(f"sizes are numbers or one of {', '.join(sizes.named)}; given {dim[:20]!r}")
            found.append(sizes.named[dim])
        elif isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= MOST_SIZE:
            raise InvalidRequest(f"sizes are numbers above 0, up to {MOST_SIZE}; given {str(dim)[:20]}")
        else:
            found.append(dim)
    return tuple(found)


def broadcast(left: Shape, right: Shape) -> Shape:
    """As numpy does it; raises InvalidRequest."""
    rank = max(len(left), len(right))
    both = zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True)
    found: list[Dim] = []
    for a, b in both:
        if a != b and 1 not in (a, b):
            raise InvalidRequest(f"shapes {list(left)} and {list(right)} do not go together")
        found.append(b if a == 1 else a)
    return tuple(found)
