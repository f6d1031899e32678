"""Embedded models."""

from __future__ import annotations

from pathlib import Path

from pieray.errors import ModelError

_HERE = Path(__file__).parent


def embedded_models() -> list[str]:
    """Names of the models that come with pieray."""
    return sorted(p.name for p in _HERE.iterdir() if (p / "config.json").exists())


def model_folder(name_or_path: str) -> Path:
    """The folder of an embedded model by name, or the path given; raises ModelError if there is none."""
    embedded = _HERE / name_or_path
    if "/" not in name_or_path and (embedded / "config.json").exists():
        return embedded
    path = Path(name_or_path).expanduser()
    if not (path / "config.json").exists():
        known = ", ".join(embedded_models())
        raise ModelError(f"{path / 'config.json'}: no such file; give a model folder or one of: {known}")
    return path.resolve()
