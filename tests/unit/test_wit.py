"""The handler API is read whole, and nothing that it declares is missing."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import pytest

from pieray.errors import WIT_CODES
from pieray.host.handlers import GuestHandlers
from pieray.wit import WIT_FILE, Function, api, parse

FUNCTIONS = [(i.name, f) for i in api().interfaces for f in i.functions]
NOT_HANDLERS = {("tickets", "wait")}  # the wasm host's own


def test_all_that_the_file_declares_is_read() -> None:
    text = WIT_FILE.read_text()
    lines = [line.strip() for line in text.splitlines()]
    declared = [line for line in lines if ": func(" in line and not line.startswith(("//", "export "))]
    assert len(declared) == len(FUNCTIONS)
    assert text.count("\ninterface ") - 1 == len(api().interfaces)  # types has no functions


def test_types_and_docs_of_a_function() -> None:
    found = parse(
        "/// The package.\npackage a:b@1.2.3;\n\ninterface types {\n"
        "  /// Colours.\n  enum hue {\n    red,\n    /// Like the sky.\n"
        "    blue,\n  }\n}\n"
        "/// Things {with: {braces}}.\ninterface things {\n  use types.{hue};\n\n  /// One.\n  /// Two.\n"
        "  make: func(a: u32, b: list<u32>,\n             c: hue) -> result<list<u32>, error>;\n  end: func();\n}\n"
    )
    assert (found.package, found.version, found.doc) == ("a:b", "1.2.3", "The package.")
    assert found.enums == {"hue": ("red", "blue")}
    (things,) = found.interfaces
    assert things.doc == "Things {with: {braces}}."
    assert things.functions == (
        Function("make", (("a", "u32"), ("b", "list<u32>"), ("c", "hue")), "list<u32>", True, "One.\nTwo."),
        Function("end", (), None, False, ""),
    )


def test_a_text_without_a_package_is_refused() -> None:
    with pytest.raises(ValueError, match="package"):
        parse("interface kv {}")


def test_error_codes_are_those_of_the_wit() -> None:
    assert api().enums["error-code"] == WIT_CODES


def handler(interface: str, function: str) -> Any:
    """The method behind a function of the WIT, on its class; None: there is none."""
    group = typing.get_type_hints(GuestHandlers).get(interface)
    return getattr(group, function.replace("-", "_"), None)


@pytest.mark.parametrize(("interface", "function"), FUNCTIONS, ids=lambda v: getattr(v, "name", v))
def test_every_handler_is_there(interface: str, function: Function) -> None:
    if (interface, function.name) in NOT_HANDLERS:
        return
    method = handler(interface, function.name)
    assert method is not None
    assert len(inspect.signature(method).parameters) == len(function.params) + 1
