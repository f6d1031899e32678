"""What an InferletActor knows of the served models: names, facts, tokenizers.  No weights, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pieray.errors import InvalidRequest, NotFound
from pieray.models.pooling import Pooling
from pieray.models.tokenizer import Tokenizer, TokenizerSpec


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of a served model, as the guest's `model.info` and `pieray models` give them."""

    name: str
    architecture: str
    vocab_size: int
    max_context: int
    """Tokens: positions are below it."""
    page_size: int
    """Tokens."""
    num_pages: int
    dtype: str
    device: str
    hidden_size: int = 0
    way: str = "native"
    """"native", a decoder of pieray's own, or "transformers", transformers' module with attention over pages."""
    why: str = ""
    """Why it is not native."""
    num_layers: int = 0
    num_heads: int = 0
    """Of queries."""
    head_dim: int = 0
    pooling: dict[str, Any] = field(default_factory=lambda: asdict(Pooling()))
    """How it makes one vector of a text: fields of `Pooling`."""
    image: dict[str, Any] = field(default_factory=dict)
    """How images become embeddings, of a model that sees: fields of `ImageRules`; else nothing."""

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "traits": ["tokenize", "forward", "sample", "distribution", "logprobs", "mask"]
            + ["image"] * bool(self.image)
        }


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and its tokenizer."""

    info: ModelInfo
    tokenizer: Tokenizer

    @classmethod
    def from_wire(cls, facts: Mapping[str, Any], spec: TokenizerSpec) -> ServedModel:
        return cls(ModelInfo(**facts), Tokenizer(spec))


class ModelDirectory:
    """The served models by name; "" is the default one."""

    def __init__(self, models: list[ServedModel]) -> None:
        if not models:
            raise InvalidRequest("an engine serves at least one model; given none")
        self._models = {m.info.name: m for m in models}
        self._default = models[0]
        self._info_json: dict[str, str] = {}

    def on(self, name: str) -> ModelDirectory:
        """The same with that one as the default; "": as it is.  Raises NotFound."""
        first = self.get(name)
        if first is self._default:
            return self
        return ModelDirectory([first, *(one for one in self.all if one is not first)])

    @property
    def names(self) -> list[str]:
        return list(self._models)

    @property
    def all(self) -> list[ServedModel]:
        return list(self._models.values())

    def get(self, name: str) -> ServedModel:
        """The model; raises NotFound with the names there are."""
        if not name:
            return self._default
        try:
            return self._models[name]
        except KeyError:
            raise NotFound(f"no model is named {name!r}; served: {', '.join(self._models)}") from None

    def info_json(self, name: str) -> str:
        found = self.get(name)
        told = self._info_json.get(found.info.name)
        if told is None:
            told = self._info_json[found.info.name] = json.dumps(
                {
                    **found.info.as_dict(),
                    "bos_tokens": found.tokenizer.bos_ids,
                    "end_tokens": found.tokenizer.end_ids,
                    "thought_tags": found.tokenizer.thought_tags,
                }
            )
        return told
