"""What may stand in `model`: a served model, or the name of an inferlet, which is run as if it were one."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pieray.client.engine import Engine
from pieray.concurrency.off_loop import off_loop
from pieray.errors import ConfigError, InvalidRequest, NotFound
from pieray.programs.manifest import is_spec
from pieray.programs.signature import MainFunction, main_of
from pieray.programs.sources import embedded, embedded_inferlets, is_embedded
from pieray.server.openai.fields import Asked, Field
from pieray.server.openai.response_fields import RESPONSES
from pieray.server.openai.tables import CHAT, COMPLETIONS
from pieray.server.problems import BadField, HttpProblem
from pieray.server.values import text

PROMPTS = ("prompt", "question", "text")
"""Parameters of a main that take what a user says."""


async def main_named(engine: Engine, name: str) -> MainFunction:
    """The main of an embedded or installed inferlet.  Raises HttpProblem 404: no file of this machine is ever meant."""
    if is_embedded(name):
        return _embedded_main(name)
    try:
        if is_spec(name):
            return main_of(await off_loop(engine.program, name))
    except NotFound:
        pass
    raise HttpProblem(404, f"there is no model and no inferlet {name[:100]!r}", param="model", code="model_not_found")


@functools.cache
def _embedded_main(name: str) -> MainFunction:
    found = embedded(name)
    assert found is not None
    return main_of(found)


@dataclass(frozen=True, slots=True)
class Route:
    """Of a request that may go to an inferlet: its fields, and that which has what the user says."""

    fields: tuple[Field, ...]
    said: str
    is_chat: bool


ROUTES: Mapping[str, Route] = {
    "chat": Route(CHAT, "messages", is_chat=True),
    "completion": Route(COMPLETIONS, "prompt", is_chat=False),
    "response": Route(RESPONSES, "input", is_chat=True),
}
_AS_MAX_TOKENS = ("max_completion_tokens", "max_output_tokens")


def read_for_program(body: Mapping[str, Any], name: str, main: MainFunction, route: str) -> Asked:
    """A request to an inferlet: the message or prompt, and every field that its main has; others are refused.

    `route`: of ROUTES.  Raises BadField.
    """
    kind = ROUTES[route]
    known = {field.name: field for field in kind.fields}
    asked, told = Asked({}), dict[str, Any]()
    if body.get(kind.said) is None:
        raise BadField(kind.said, "is missing")
    for field_name, value in body.items():
        field = known.get(field_name)
        if value is None or field_name == "instructions":
            continue
        if field_name == kind.said:
            asked.arguments.update(_input(name, main, _said(kind, body)))
        elif field is not None and field.is_doors:
            asked.door.update(field.read(value))
        elif _takes(main, field_name) or (field_name in _AS_MAX_TOKENS and _takes(main, "max_tokens")):
            asked.arguments["max_tokens" if field_name in _AS_MAX_TOKENS else field_name] = value
            told |= field.read(value).get("told", {}) if field is not None and field.works else {}
        elif field is not None and field.works and not set(found := field.read(value)) - {"told"}:
            told |= found.get("told", {})  # it is for the answer alone
        elif field is not None and not field.works and _is_neutral(field.neutral, value):
            continue
        else:
            raise BadField(field_name, f"{name} does not take it; it takes {main}", code="unsupported_field")
    if main.knows("chat") and "messages" not in asked.arguments:
        asked.arguments.setdefault("chat", kind.is_chat)
    try:
        main.check(asked.arguments)
    except ConfigError as error:
        raise BadField("model", f"{name}: {error.message}") from None
    if route == "response":
        asked.door["told"] = told
    return asked


def _said(kind: Route, body: Mapping[str, Any]) -> dict[str, Any]:
    """What is said: {"messages": ...} or {"prompts": ...}."""
    (field,) = (one for one in kind.fields if one.name == kind.said)
    found = field.read(body[kind.said])
    if "input" not in found:
        return found
    instructions = body.get("instructions")
    head = [] if instructions is None else [{"role": "system", "content": text("instructions", instructions)}]
    return {"messages": [*head, *found["input"]]}


def _takes(main: MainFunction, name: str) -> bool:
    return main.knows(name) or main.parameters is None


def _is_neutral(neutral: tuple[Any, ...], value: Any) -> bool:
    return any(type(value) is type(one) and value == one for one in neutral)


def _input(name: str, main: MainFunction, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, as the program takes it."""
    if "messages" in given and main.knows("messages"):
        return dict(given)
    parameter = next((one for one in PROMPTS if main.knows(one)), "" if main.parameters is not None else "prompt")
    if not parameter:
        raise BadField(
            "model", f"{name} takes neither messages nor {', '.join(PROMPTS)}: run it with /v1/inferlets/{name}/runs"
        )
    if "prompts" in given:
        prompts = given["prompts"]
        if len(prompts) != 1 or not isinstance(prompts[0], str):
            raise BadField("prompt", f"is one text: {name} takes no more; given {len(prompts)}")
        return {parameter: prompts[0]}
    messages = list(given["messages"])
    found: dict[str, Any] = {}
    if messages[0]["role"] == "system" and main.knows("system"):
        found["system"] = _text(messages.pop(0))
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise BadField("messages", f"is one message of the user: {name} takes no more; given {len(given['messages'])}")
    return {**found, parameter: _text(messages[0])}


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(text("content", part["text"]) for part in content)


async def models_of(engine: Engine, served: Iterable[str], created: int) -> list[dict[str, Any]]:
    """What `/v1/models` lists: what is served, in the order in which the engine has it, then the inferlets that take
    what a user says."""
    contexts = [one.get("max_context") for one in await off_loop(engine.models)]
    found = []
    for at, name in enumerate(served):
        context = contexts[at] if at < len(contexts) else None
        found.append(_row(name, created, "pieray") | ({"max_model_len": context} if context else {}))
    names = [(name, "pieray") for name in embedded_inferlets() if _is_usable(name)]
    rows = await off_loop(engine.programs)
    names += [(f"{row['name']}@{row['version']}", str(row.get("owner", ""))) for row in rows]
    return found + [_row(name, created, owner) for name, owner in names]


def _is_usable(embedded_name: str) -> bool:
    try:
        main = _embedded_main(embedded_name)
    except InvalidRequest:
        return False  # it is not built
    return any(main.knows(name) for name in ("messages", *PROMPTS))


def _row(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
