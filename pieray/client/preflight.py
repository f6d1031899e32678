"""What can be told of the files of an engine on this machine before Ray has taken its seconds."""

from __future__ import annotations

from pathlib import Path

from pieray.assets import model_folder
from pieray.config import Config
from pieray.errors import ConfigError, ModelError
from pieray.models.adapter_file import CONFIG, WEIGHTS
from pieray.models.ways import glance


def check_files(config: Config) -> None:
    """Raises ModelError for a model that cannot be served or an adapter that is not there, ConfigError for a path."""
    for settings in config.all_models().values():
        _check_model(model_folder(settings.path))
    for name, path in config.model.adapters.items():
        _check_adapter(name, path)
    if config.registry_path and not _may_be_folder(Path(config.registry_path).expanduser()):
        raise ConfigError(f"registry_path is a folder; {config.registry_path!r} is none")
    if config.store_path and Path(config.store_path).expanduser().is_dir():
        raise ConfigError(f"store_path is a file; {config.store_path!r} is a folder")


def _check_model(folder: Path) -> None:
    glance(folder)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no *.safetensors there; weights are read from these alone, never from pickles")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder / 'tokenizer.json'}: no such file")


def _check_adapter(name: str, path: object) -> None:
    if not isinstance(path, str) or not path:
        raise ConfigError(f"model.adapters: {name!r} is a file or folder; given {path!r}")
    place = Path(path).expanduser()
    needed = [place / CONFIG, place / WEIGHTS] if place.is_dir() else [place]
    for file in needed:
        if not file.is_file():
            raise ModelError(f"adapter {name!r}: {file}: no such file")


def _may_be_folder(path: Path) -> bool:
    return path.is_dir() or not (path.exists() or path.is_symlink())
