"""From words of the command line to values: an inferlet's arguments, settings, limits, JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pieray.config import Limits
from pieray.errors import ConfigError
from pieray.mapping import from_mapping
from pieray.programs.signature import MainFunction
from pieray.texts import parse_json


def parse_arguments(words: Sequence[str], main: MainFunction | None = None) -> dict[str, Any]:
    """The words after `--` as keyword arguments of the inferlet's `main`.

    `--max-tokens 64` and `--max-tokens=64` give max_tokens=64, `--flag` alone gives True, `--no-flag` alone
    gives flag=False.  A value is JSON where it parses as such, otherwise a string, and for a parameter that is a
    string always one.  A value that begins with `--` needs the form with `=`.  Raises ConfigError for a word that
    belongs to no key, a repeated key, a key without a value whose parameter is no bool, and text that is not UTF-8.
    """
    main = main or MainFunction()
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        key, given = _split_key(_checked_text(rest.pop(0)))
        if given is None and rest and not rest[0].startswith("--"):
            given = _checked_text(rest.pop(0))
        if given is not None:
            value = _value(key, given, main)
        else:
            key, value = _flag(key, main)
        if key in found:
            raise ConfigError(f"--{key.replace('_', '-')} is given twice; give a list as JSON: '[1, 2]'")
        found[key] = value
    return found


def _value(key: str, given: str, main: MainFunction) -> Any:
    if main.knows(key) and main.is_text(key):
        return given
    value = parse_value(given)
    return given if main.fits(key, given) and not main.fits(key, value) else value


def _flag(key: str, main: MainFunction) -> tuple[str, bool]:
    """A key that stands alone, and its value."""
    is_on = main.knows(key) or not key.startswith("no_") or len(key) == 3
    name = key if is_on else key[3:]
    if not main.is_flag(name):
        raise ConfigError(f"--{key.replace('_', '-')} takes a value: {name!r} of main() is {main.kind_of(name)}")
    return name, is_on


def _split_key(word: str) -> tuple[str, str | None]:
    name, equals, value = word.removeprefix("--").partition("=")
    key = name.replace("-", "_")
    if not word.startswith("--") or not key.isidentifier():
        raise ConfigError(f"{word!r} is no argument of an inferlet: they look like `-- --key value --flag`")
    return key, value if equals else None


def _checked_text(word: str) -> str:
    """The word, if it is text: what is not UTF-8 comes from the system as lone surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(word)[:80]
        raise ConfigError(f"an argument of an inferlet is UTF-8 text; given {ascii(raw)[1:]}") from None
    return word


def parse_value(text: str) -> Any:
    """`text` as JSON where it is JSON, else as it stands: 64, true, [1, 2], "12", but also plain words."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def parse_input(text: str | None) -> dict[str, Any]:
    """The JSON object given with `--input`: literally, as `@file`, or as `@-` for standard input.

    Raises ConfigError.
    """
    if text is None:
        return {}
    try:
        value = parse_json(_read(_checked_text(text)))
    except ValueError as error:
        raise ConfigError(f"--input is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"--input is a JSON object with the arguments of main; given {_kind(value)}")
    return value


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`model.num_pages=512` and the like as the nested mapping that `pieray.config` takes; raises ConfigError."""
    found: dict[str, Any] = {}
    for pair in pairs:
        path, value = _split_pair("--set", pair)
        *groups, name = path.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return found


def parse_limits(pairs: Sequence[str]) -> dict[str, float]:
    """`name=value` pairs as limits of one inferlet; raises ConfigError for an unknown name and for no number."""
    found = dict(_split_pair("--limit", pair) for pair in pairs)
    known = from_mapping(Limits, found, "limits.")
    names = [name.replace("-", "_") for name in found]
    return {name: getattr(known, name) for name in names}


def _split_pair(option: str, pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{option} takes name=value; given {pair!r}")
    return name.strip(), value


def _read(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        if text == "@-":
            return sys.stdin.read().removeprefix("\ufeff")
        return Path(text[1:]).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:  # not UTF-8, a NUL in the name, no home
        raise ConfigError(f"--input {text}: {error}") from None


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")
