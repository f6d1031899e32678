"""Weights from safetensors, whole or sharded; nothing in a model folder is ever executed or unpickled."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pieray.errors import ModelError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = {"torch.float32", "torch.float16", "torch.bfloat16"}


class Checkpoint:
    """The tensors of a model folder by name, read on demand (memory-mapped), checked against the shape asked for.

    Owns the open files: use it as a context manager.  Every ModelError names the file and the key.
    """

    def __init__(self, folder: str | Path, framework: str = "pt") -> None:
        """`framework` is what tensors are read as; with "numpy" torch is not imported, nor needed for `headers`."""
        self.folder = Path(folder)
        self._framework = framework
        self._files: dict[str, Any] = {}
        has_index, has_single = (self.folder / INDEX).exists(), (self.folder / SINGLE).exists()
        self._file_of = self._index() if has_index and not has_single else self._single()
        if has_index and has_single and self._is_stale():
            log.warning("%s: names other files than %s, which is read", self.folder / INDEX, SINGLE)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent; tensors already handed out stay valid."""
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`, which must have `shape` and a floating dtype.  Not yet cast or moved."""
        tensor = self.stored(name)
        path = self.folder / self._file_of[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{path}: {name!r} has shape {tuple(tensor.shape)}; config.json implies {shape}")
        if str(tensor.dtype) not in FLOATS:
            raise ModelError(f"{path}: {name!r} is {tensor.dtype}; supported: float32, float16 or bfloat16")
        return tensor

    def stored(self, name: str) -> torch.Tensor:
        """The tensor `name`, whatever it is."""
        if name not in self._file_of:
            raise ModelError(f"{self.folder / INDEX if len(self._names()) > 1 else self.folder / SINGLE}: no {name!r}")
        path = self.folder / self._file_of[name]
        try:
            tensor: torch.Tensor = self._open(self._file_of[name]).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: cannot read {name!r}: {error}") from error
        return tensor

    def headers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """(shape, safetensors' name of the dtype) of each tensor; reads no tensor."""
        slices = {name: self._open(file).get_slice(name) for name, file in self._file_of.items()}
        return {name: (tuple(one.get_shape()), str(one.get_dtype())) for name, one in slices.items()}

    def _single(self) -> dict[str, str]:
        path = self.folder / SINGLE
        if not path.exists():
            pickles = sorted(item.name for pattern in PICKLES for item in self.folder.glob(pattern))
            if pickles:
                raise ModelError(
                    f"{self.folder / pickles[0]}: pickled weights run code when loaded and are never read; "
                    f"convert them to {SINGLE}"
                )
            raise ModelError(f"{path}: no such file, and no {INDEX} beside it")
        return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)

    def _index(self) -> dict[str, str]:
        path = self.folder / INDEX
        try:
            weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            index = {str(name): str(file) for name, file in weight_map.items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{path}: not a safetensors index with a weight_map: {error!r}") from error
        for name, file in index.items():
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ModelError(f"{path}: {name!r} is in {file!r}; only *.safetensors of the same folder are read")
        missing = sorted(file for file in set(index.values()) if not (self.folder / file).exists())
        if missing:
            raise ModelError(f"{self.folder}: no {', '.join(missing)}, which {INDEX} names")
        for file in sorted(set(index.values())):
            absent = {name for name, place in index.items() if place == file} - set(self._open(file).keys())
            if absent:
                raise ModelError(f"{self.folder / file}: no {min(absent)!r}, which {INDEX} places there")
        return index

    def _is_stale(self) -> bool:
        """Whether the index is of other files than the single one."""
        try:
            named = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return True
        return set(named) != {SINGLE}

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.folder / file
            try:
                self._files[file] = safe_open(path, framework=self._framework)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: not a readable safetensors file: {error}") from error
        return self._files[file]

    def _names(self) -> set[str]:
        return set(self._file_of.values())
