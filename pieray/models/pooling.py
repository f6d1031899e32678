"""How a model makes one vector of a text, as its folder says in sentence-transformers' layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pieray.errors import ModelError
from pieray.models.config import is_scoring

#: pooling_mode_... of 1_Pooling/config.json -> what is computed
MODES = {"lasttoken": "last", "mean_tokens": "mean", "cls_token": "first"}
PASSED = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True, slots=True)
class Pooling:
    """`kind` is "last" or "first" (the state of that token), "mean" (of all), or "" for what is not served: see `why`.

    The vector is brought to length 1 if `is_normalized`.
    """

    kind: str = "last"
    is_normalized: bool = True
    why: str = ""

    @classmethod
    def from_folder(cls, folder: str | Path) -> Pooling:
        """Reads modules.json and the config of its pooling; without them it is the last state, of length 1.

        Of a model that scores texts it is the scores of the last token, as they are.

        ModelError names a file that is not readable as JSON.
        """
        folder = Path(folder)
        listed = _read(folder / "modules.json")
        if is_scoring(_read(folder / "config.json") or {}):
            return cls("last", is_normalized=False)
        if not isinstance(listed, list):
            return cls()
        modules = [one for one in listed if isinstance(one, dict)]
        kinds = [str(one.get("type", "")).rpartition(".")[2] for one in modules]
        is_normalized = "Normalize" in kinds
        others = sorted(set(kinds) - PASSED)
        if others:
            return cls("", is_normalized, f"modules.json: {', '.join(others)} behind the pooling")
        path = str(modules[kinds.index("Pooling")].get("path", "")) if "Pooling" in kinds else ""
        if not path or Path(path).name != path:
            return cls("last", is_normalized)
        given = _read(folder / path / "config.json") or {}
        if not isinstance(given, dict):
            raise ModelError(f"{folder / path / 'config.json'}: expected an object, found {type(given).__name__}")
        modes = [key.removeprefix("pooling_mode_") for key, value in given.items() if value is True and "mode" in key]
        if len(modes) != 1 or modes[0] not in MODES:
            return cls("", is_normalized, f"{path}: pooling by {', '.join(modes) or 'nothing'}")
        return cls(MODES[modes[0]], is_normalized)


def _read(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
