"""How an MCP server is named in settings: a command to be run, or a URL."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pieray.errors import ConfigError

KNOWN = {"command", "env", "cwd", "url", "headers"}
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+: [\t\x20-\x7e\x80-\xff]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Exactly one of `command` (stdio) and `url` (streamable HTTP) is given."""

    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Beyond PATH, HOME and the like: a server inherits nothing else."""
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with each request to the URL, a bearer token for instance; never logged."""


def check_name(name: str) -> str:
    """Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"an MCP server is named with up to 64 letters, digits and . _ -; given {name[:100]!r}")
    return name


def parse_spec(name: str, given: object) -> ServerSpec:
    """From `{"command": [...], "env": {...}, "cwd": ...}` or `{"url": ..., "headers": {...}}`.

    Raises ConfigError, which tells no value of env or headers.
    """
    check_name(name)
    if not isinstance(given, Mapping):
        raise ConfigError(f"mcp.{name} is a mapping with command or url; given {given!r}")
    if unknown := set(given) - KNOWN:
        raise ConfigError(
            f"mcp.{name}: unknown {', '.join(sorted(map(str, unknown)))}; known: {', '.join(sorted(KNOWN))}"
        )
    command, env, cwd, url, headers = (given.get(key) for key in ("command", "env", "cwd", "url", "headers"))
    if isinstance(command, str):
        command = shlex.split(command)
    if (not command) == (not url):
        raise ConfigError(f"mcp.{name} has either a command or a url; given {sorted(map(str, given))}")
    if url and (not isinstance(url, str) or not url.startswith(("http://", "https://"))):
        raise ConfigError(f"mcp.{name}.url begins with http:// or https://; given {url!r}")
    if command and not (isinstance(command, (list, tuple)) and all(isinstance(word, str) for word in command)):
        raise ConfigError(f"mcp.{name}.command is a list of words; given {command!r}")
    for key, values in (("env", env), ("headers", headers)):
        if values is not None and not _are_texts(values):
            raise ConfigError(f"mcp.{name}.{key} maps names to texts; given {type(values).__name__}")
    if headers and not url:
        raise ConfigError(f"mcp.{name}.headers go with a url; this server has a command")
    if headers and (bad := [key for key, value in headers.items() if not _HEADER.fullmatch(f"{key}: {value}")]):
        raise ConfigError(f"mcp.{name}.headers: no line of a header: {bad[0]!r}")
    return ServerSpec(
        tuple(command or ()), dict(env or {}), None if cwd is None else str(cwd), str(url or ""), dict(headers or {})
    )


def _are_texts(values: object) -> bool:
    return isinstance(values, Mapping) and all(isinstance(word, str) for pair in values.items() for word in pair)


def parse_option(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=COMMAND` or `NAME=URL` of a command line; raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise ConfigError(f"--mcp takes NAME=COMMAND or NAME=URL; given {text!r}")
    try:
        given: dict[str, Any] = (
            {"url": value} if value.startswith(("http://", "https://")) else {"command": shlex.split(value)}
        )
    except ValueError as error:
        raise ConfigError(f"--mcp {name}: {error}") from None
    parse_spec(name, given)
    return name, given
