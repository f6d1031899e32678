"""The adapters of an engine: those of its settings, and those that clients have loaded, kept for a new batcher."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pieray.actors.members import TELL_S, Member
from pieray.errors import EngineError, InvalidRequest, ModelError, NotFound, PierayError, QuotaExceeded

log = logging.getLogger(__name__)

FIRST_NUMBER = 1 << 16
"""Below are those of the settings, which the batcher numbers."""
MAX_LOADED = 1024
LOAD_S = 120.0


@dataclass(slots=True)
class _Loaded:
    number: int
    file: dict[str, Any]  # fields of AdapterFile, without `data`
    data: Any  # as Fleet.keep gives it
    owner: str
    facts: dict[str, Any]


class KeptAdapters:
    """Its methods are called with `lock` held.  `ask(member, method, *args, timeout_s=)` calls an actor, `keep` is that
    of a Fleet."""

    def __init__(self, ask: Callable[..., Any], keep: Callable[[bytes], Any]) -> None:
        self._ask = ask
        self._keep = keep
        self._settings: list[dict[str, Any]] = []
        self._loaded: list[_Loaded] = []
        self._next = FIRST_NUMBER
        self.lock = threading.RLock()

    def facts(self) -> list[dict[str, Any]]:
        """Of all, as `AdapterFacts.from_wire` takes them."""
        return [*self._settings, *(one.facts for one in self._loaded)]

    def give_to(self, batcher: Member, settings: list[dict[str, Any]], others: Sequence[Member] = ()) -> None:
        """A new batcher has those of the settings; it gets the others.  One that it does not take is forgotten, by the
        `others` too."""
        kept = []
        for one in self._loaded:
            try:
                one.facts = self._load(batcher, one.number, one.file, one.data, one.owner)
                kept.append(one)
            except (ModelError, QuotaExceeded) as error:
                log.warning("adapter %r was not loaded again: %s", one.file["name"], error)
                self.tell_removed(others, one.number)
        self._settings, self._loaded = settings, kept

    def add(self, batchers: Sequence[Member], file: dict[str, Any], data: bytes, owner: str) -> dict[str, Any]:
        """Load one into all of them; its facts.  Raises InvalidRequest (the name is taken), ModelError, QuotaExceeded:
        then none has it."""
        name = file["name"]
        if any((one["name"], one["owner"]) == (name, owner) for one in self.facts()):
            raise InvalidRequest(f"{owner or 'the engine'} has an adapter {name!r} already; unload it first")
        if len(self._loaded) >= MAX_LOADED:
            raise EngineError(f"an engine keeps at most {MAX_LOADED} loaded adapters; {name!r} would be one more")
        number, self._next = self._next, self._next + 1
        kept = self._keep(data)
        having: list[Member] = []
        try:
            for batcher in batchers:
                facts = self._load(batcher, number, file, kept, owner)
                having.append(batcher)
        except BaseException:
            self.tell_removed(having, number)
            raise
        self._loaded.append(_Loaded(number, file, kept, owner, facts))
        return facts

    def remove(self, name: str, owner: str) -> int:
        """Forget one; its number.  Raises NotFound."""
        for one in self._loaded:
            if (one.file["name"], one.owner) == (name, owner):
                self._loaded.remove(one)
                return one.number
        raise NotFound(f"{owner or 'the engine'} has loaded no adapter {name!r}")

    def tell_removed(self, batchers: Sequence[Member], number: int) -> None:
        """Each is to let it go; one that does not answer is replaced in time, and never gets it again."""
        for batcher in batchers:
            try:
                self._ask(batcher, "remove_adapter", number, timeout_s=TELL_S)
            except PierayError as error:
                log.warning("%s was not told to unload adapter %d: %s", batcher.describe(), number, error)

    def _load(self, batcher: Member, number: int, file: dict[str, Any], data: Any, owner: str) -> dict[str, Any]:
        facts: dict[str, Any] = self._ask(batcher, "add_adapter", number, file, data, owner, timeout_s=LOAD_S)
        return facts
