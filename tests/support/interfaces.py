"""Fakes with a method per function of the WIT, named interface_function, as the wasm host calls them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class ByInterface:
    """`by.kv.alloc` is `fake.kv_alloc`; what a guest prints goes to `fake.stdout`."""

    def __init__(self, fake: Any) -> None:
        self._fake = fake
        self.printed = SimpleNamespace(write=fake.stdout)

    def __getattr__(self, interface: str) -> _Interface:
        return _Interface(self._fake, interface)


class _Interface:
    def __init__(self, fake: Any, name: str) -> None:
        self._fake = fake
        self._prefix = f"{name}_"

    def __getattr__(self, function: str) -> Any:
        return getattr(self._fake, self._prefix + function)
