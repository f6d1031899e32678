"""Which way a model runs: by a decoder of pieray's own, or through transformers' module; and why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pieray.errors import ModelError
from pieray.models.architectures import ARCHITECTURES
from pieray.models.config import ModelConfig, architecture_name, causal_name, read_json
from pieray.models.image_rules import SEEING
from pieray.models.stored_formats import require_floats

if TYPE_CHECKING:
    from pieray.models.transformers_probe import Probe

#: written by tools/model_table.py: what the transformers of that version serves, and why it does not
TABLE = Path(__file__).with_name("transformers_table.json")
NATIVE, TRANSFORMERS = "native", "transformers"


@dataclass(frozen=True, slots=True)
class Way:
    """`kind` is NATIVE or TRANSFORMERS, `why` says why it is not native, `probe` is what transformers' module does."""

    kind: str
    config: ModelConfig
    why: str = ""
    probe: Probe | None = None


def glance(folder: str | Path) -> tuple[str, str, ModelConfig | None]:
    """(kind, why, shapes) as `way_of` would find, within a fraction of a second: what transformers' modules do is taken
    from a table of the version that it was made with, and shapes are known of native models alone.

    Where the table does not know, asks `way_of`, which imports torch and transformers.  Raises ModelError.
    """
    from importlib.metadata import version

    path = Path(folder) / "config.json"
    raw = read_json(path)
    name = causal_name(architecture_name(raw))
    why = f"{name} has no decoder of pieray's own"
    if name in ARCHITECTURES:
        try:
            return NATIVE, "", ModelConfig.from_folder(folder)
        except ModelError as error:
            why = error.message
    require_floats(raw, str(path))
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if table["transformers"] == version("transformers"):
        if name in table["refused"]:
            raise ModelError(f"{path}: {name}: {table['refused'][name]}")
        if name in table["served"] or name in SEEING:
            return TRANSFORMERS, why, None
    way = way_of(folder)
    return way.kind, way.why, way.config


def way_of(folder: str | Path, max_context: int = 0) -> Way:
    """How the model in `folder` runs, from its config.json alone.

    Raises ModelError that names the file, and key and value or architecture, if it cannot run either way.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    name = causal_name(architecture_name(raw))
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
