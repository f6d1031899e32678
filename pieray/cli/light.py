"""Commands whose words need no pydantic: to import it takes longer than all else that a command begins with.

Typer 0.29 converts every value with pydantic, also those that are strings or absent; versions before do not.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class LightCommand(TyperCommand):
    """A command whose strings are taken as they come; values of other types, if given, are converted by typer."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _lightened(super().get_params(ctx))


class LightGroup(TyperGroup):
    """Likewise for the options of `pieray` itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _lightened(super().get_params(ctx))


def _lightened(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "_runtime_param", parameter) is None:  # typer makes it when it is first needed
            parameter._runtime_param = _Texts(parameter)
    return parameters


class _Texts:
    """In place of typer's converter of one parameter."""

    def __init__(self, parameter: Any) -> None:
        self._parameter = parameter

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        annotation = self._parameter.type_descriptor.annotation
        if value is None or (annotation in (str, list[str]) and _is_text(value)):
            return value
        self._parameter._runtime_param = None
        return self._parameter.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value))
