"""Which way a model runs: by a decoder of pieray's own, or through transformers' module; and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pieray.errors import ModelError
from pieray.models.architectures import ARCHITECTURES
from pieray.models.config import ModelConfig, architecture_name, read_json, refuse_quantized

if TYPE_CHECKING:
    from pieray.models.transformers_probe import Probe

NATIVE, TRANSFORMERS = "native", "transformers"


@dataclass(frozen=True, slots=True)
class Way:
    """`kind` is NATIVE or TRANSFORMERS, `why` says why it is not native, `probe` is what transformers' module does."""

    kind: str
    config: ModelConfig
    why: str = ""
    probe: Probe | None = None


def way_of(folder: str | Path, max_context: int = 0) -> Way:
    """How the model in `folder` runs, from its config.json alone.

    Raises ModelError that names the file, and key and value or architecture, if it cannot run either way.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    refuse_quantized(raw, str(path))
    name = architecture_name(raw)
    if name is None:
        raise ModelError(f"{path}: architectures is None; it names the class of the model, as in LlamaForCausalLM")
    try:
        if name in ARCHITECTURES:
            return Way(NATIVE, ModelConfig.from_folder(folder, max_context))
        why = f"{name} has no decoder of pieray's own"
    except ModelError as error:
        why = error.message
    from pieray.models.transformers_probe import hosted_config

    try:
        config, found = hosted_config(folder, max_context)
    except ModelError as error:
        if name in ARCHITECTURES:
            raise ModelError(f"{why}; nor does it run through transformers: {error.message}") from error
        raise
    return Way(TRANSFORMERS, config, why, found)
