"""Values of any kind, given to any function of the SDK: a typed error or a result, never the end of the guest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sdk_fuzz

from inferlet import _host, _running, testing
from inferlet._testing_plans import HandlerError
from pieray.wit import Function, api

FLOAT32_MAX = 3.5e38


class Aborted(BaseException):
    """What componentize-py's bindings do to a guest for a value that does not fit its WIT type: nothing catches it."""


def fits(kind: str, value: Any) -> bool:
    ranges = {"u32": (0, 2**32), "s32": (-(2**31), 2**31), "u64": (0, 2**64)}
    if kind in ranges:
        low, end = ranges[kind]
        return type(value) is int and low <= value < end
    if kind.startswith("list<"):
        return type(value) is list and all(fits(kind[5:-1], item) for item in value)
    if kind == "string":
        return isinstance(value, str) and value.encode(errors="replace") == value.encode(errors="surrogatepass")
    if kind == "f32":
        return type(value) in (int, float) and (type(value) is float or abs(value) < FLOAT32_MAX)
    if kind == "bool":
        return isinstance(value, bool)
    return type(value).__name__ == "".join(part.capitalize() for part in kind.split("-"))


class Host(testing.Host):
    """Has a limit of pages, as a real one has."""

    def kv_alloc(self, count: int) -> list[int]:
        if count > 4096:
            raise HandlerError("quota", f"pages: the limit is 4096; {count} asked for")
        return super().kv_alloc(count)


def strict(host: testing.Host) -> SimpleNamespace:
    """The host's handlers behind bindings that abort, as those of the component do."""
    found = testing._interfaces(host)
    for interface in api().interfaces:
        namespace = vars(found)[interface.name]
        for function in interface.functions:
            name = function.name.replace("-", "_")
            setattr(namespace, name, bound(function, getattr(namespace, name)))
    return found


def bound(function: Function, handler: Any) -> Any:
    def call(*args: Any) -> Any:
        if len(args) != len(function.params):
            raise Aborted(f"{function.name}{args!r:.200}")
        for (name, kind), value in zip(function.params, args, strict=True):
            if not fits(kind, value):
                raise Aborted(f"{function.name}: {name}: {value!r:.200} is no {kind}")
        return handler(*args)

    return call


@pytest.mark.slow
def test_hostile_values_are_typed_errors_in_every_public_function() -> None:
    _host.install(strict(Host("abc")))
    found = _running.run(sdk_fuzz.main())
    assert not found["wrong"], f"{len(found['wrong'])}:\n" + "\n".join(found["wrong"][:80])
    assert found["num_functions"] > 200
    assert found["outcomes"]["InvalidRequest"] > 2000, found["outcomes"]
