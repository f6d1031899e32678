"""Grammars: which tokens may come next."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from . import _convert, _host
from ._waiting import wait_ticket
from .errors import InvalidRequest
from .structured import schema_of

KINDS = {kind.name.lower().replace("_", "-"): kind for kind in _host.GrammarKind}
#: How JSON of a type is written: as json.dumps does it, so that what is not content need not be chosen.
ON_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclasses.dataclass(frozen=True, slots=True)
class Grammar:
    """The text of a grammar.  Give it to `generate(schema=...)`, or `await` it for a matcher of the default model."""

    kind: str
    """"json-schema", "regex" or "lark"."""
    text: str

    def __post_init__(self) -> None:
        if _convert.text("the kind of a grammar", self.kind) not in KINDS:
            raise InvalidRequest(f"a grammar is one of {', '.join(KINDS)}; given {_convert.shown(self.kind)}")
        _convert.text("the text of a grammar", self.text)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """JSON that satisfies a schema (draft 2020-12, what llguidance knows of it), given as a dict or as JSON."""
        return cls("json-schema", schema if isinstance(schema, str) else _convert.to_json("a JSON schema", schema))

    @classmethod
    def regex(cls, expression: str) -> Grammar:
        """Text that a regular expression matches as a whole; without lookaround and back references."""
        return cls("regex", expression)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Text of a grammar in Lark's notation, from its rule `start`."""
        return cls("lark", text)

    @classmethod
    def of(cls, schema: Any) -> Grammar:
        """A grammar as it is; JSON of a schema given as a dict, or, on one line, of a type (see `schema_of`)."""
        if isinstance(schema, Grammar):
            return schema
        if isinstance(schema, Mapping):
            return cls.json_schema(schema)
        return cls.json_schema(schema_of(schema) | {"x-guidance": ON_ONE_LINE})

    async def compile(self, model: str = "") -> Matcher:
        """A matcher at the start.  Raises InvalidRequest with the place of the fault, QuotaExceeded."""
        ticket = _host.grammar.compile(model, KINDS[self.kind], self.text)
        await wait_ticket(ticket)
        return Matcher(_host.tickets.take_tokens(ticket)[0])

    def __await__(self) -> Generator[Any, None, Matcher]:
        return self.compile().__await__()


class Matcher:
    """Where a text stands in its grammar.  Close it, use it as a context manager, or let it go."""

    __slots__ = ("_handle",)

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    @property
    def handle(self) -> int:
        """What the handlers take."""
        if self._handle is None:
            raise InvalidRequest("the matcher is closed")
        return self._handle

    def accept(self, tokens: Sequence[int]) -> int:
        """Take tokens in; how many of them, from the first, the grammar allows.  The rest changes nothing."""
        return int(_host.grammar.accept(self.handle, tokens))

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens taken in."""
        _host.grammar.rollback(self.handle, count)

    def fork(self) -> Matcher:
        """A second matcher in the same state."""
        return Matcher(_host.grammar.fork(self.handle))

    def mask(self) -> list[int]:
        """The tokens that may come next, as `samplers.allow` takes them: packed bits, 32 a word."""
        return list(_host.grammar.mask(self.handle))

    def forced(self) -> list[int]:
        """Tokens that must come next, whatever is sampled; perhaps none."""
        return list(_host.grammar.forced(self.handle))

    @property
    def is_complete(self) -> bool:
        """Whether the text so far is complete."""
        return bool(_host.grammar.is_complete(self.handle))

    def close(self) -> None:
        """Give the handle back; a second time does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            _host.grammar.free(handle)

    def __enter__(self) -> Matcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # nobody is there to be told
            self.close()


__all__ = ["Grammar", "Matcher"]
