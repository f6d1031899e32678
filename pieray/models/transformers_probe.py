"""What a module of transformers does with attention, found out without its weights.

The module is built on torch's meta device, where tensors have shapes and no numbers, and run over a few tokens with an
attention function that writes down how each layer calls it.  That says what the page pool must hold and what has to
be computed; what a layer keeps besides keys and values shows as a call that is missing.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pieray.errors import ModelError
from pieray.models.config import NO_WINDOW, ModelConfig, architecture_name, is_scoring, read_json, readable, token_ids
from pieray.models.image_rules import SEEING
from pieray.models.rope_config import RopeConfig, RopeReader
from pieray.models.stored_formats import require_floats

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE = "pieray_probe"
NUM_TOKENS = 4
MAX_HEAD_DIM = 256
#: ropes whose frequencies change with the longest position that a module has seen
GROWING = ("dynamic", "longrope")
#: arguments of an attention function that change nothing of what it computes here, or that are followed
FOLLOWED = {"scaling", "softcap", "s_aux", "sliding_window", "is_causal"}
HARMLESS = {"dropout", "position_ids", "use_cache", "output_attentions", "output_hidden_states"}
HARMLESS |= {"output_router_logits", "logits_to_keep"}


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """How one layer asked for attention; `name` is that of its module."""

    name: str
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int


@dataclass(slots=True)
class Probe:
    """What a run without weights has shown: the calls of the layers, in order, and the matrices that all tokens go
    through once, as (in, out) by name."""

    config: Any  # transformers' own
    model_class: Any
    calls: list[AttentionCall] = field(default_factory=list)
    linears: dict[str, tuple[int, int]] = field(default_factory=dict)


ENCODER_DECODER = "an encoder-decoder; what predicts the next token of one text is served"


class Unservable(ModelError):
    """An architecture cannot run through transformers' module; `reason` is why, in a few words, and `is_of_class` says
    that it holds whatever the config."""

    def __init__(self, where: str, reason: str, *, is_of_class: bool = False) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason
        self.is_of_class = is_of_class

    def __reduce__(self) -> Any:
        return ModelError, (self.message,)


def hosted_config(folder: str | Path, max_context: int = 0) -> tuple[ModelConfig, Probe]:
    """The shapes of a model that runs through transformers' module, from its config.json alone.

    Raises ModelError that names the architecture and why it cannot run so.
    """
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    raw = read_json(path)
    require_floats(raw, str(path))
    name = architecture_name(raw)
    where = f"{path}: {name}"
    model_class = causal_class(_sibling(raw) if is_scoring(raw) else name, where)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:
            raise Unservable(where, f"transformers does not read its config: {error}") from error
    if is_scoring(raw):
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = True  # it has no head of its own
    found = probe(model_class, config, where)
    with readable(str(path)):
        return _shapes(found, raw, str(path), max_context), found


def _sibling(raw: dict[str, Any]) -> str | None:
    """The class that predicts the next token, of the kind of model that scores texts here."""
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(raw.get("model_type")))
    return names[0] if isinstance(names, tuple) else names or architecture_name(raw)


def causal_class(name: str | None, where: str) -> Any:
    """transformers' own class of this name; ModelError if it has none that predicts the next token."""
    import transformers
    from transformers.models.auto import modeling_auto

    causal = set(_names(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    if name in causal or name in SEEING:
        return getattr(transformers, str(name))
    if name in set(_names(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)):
        raise Unservable(where, ENCODER_DECODER, is_of_class=True)
    if hasattr(transformers, str(name)):
        raise Unservable(where, "not a causal language model")
    raise Unservable(where, "unknown to the transformers that is installed; code of a model's own never runs")


def probe(model_class: Any, config: Any, where: str) -> Probe:
    """Run the class without weights.  Raises Unservable."""
    if config.is_encoder_decoder:
        raise Unservable(where, ENCODER_DECODER, is_of_class=True)
    if getattr(model_class, "_is_stateful", False):
        reason = "its layers keep a recurrent state, which pages of keys and values do not hold"
        raise Unservable(where, reason, is_of_class=True)
    found = Probe(config, model_class)
    recorder = _Recorder(where, found)
    with quiet(), recorder.registered(), torch.device("meta"), torch.inference_mode():
        try:
            own = copy.deepcopy(config)  # the model is served with other implementations
            ways = {"attn_implementation": PROBE, "experts_implementation": "batched_mm"}
            model = model_class._from_config(own, **ways).eval()
            recorder.watch(model)
            _hold_ropes(model, where)
            ids = torch.zeros(1, NUM_TOKENS, dtype=torch.long)
            positions = torch.arange(NUM_TOKENS)[None]
            model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False)
        except Unservable:
            raise
        except Exception as error:
            if isinstance(error, KeyError) and error.args == (PROBE,):
                raise Unservable(where, "its layers compute attention themselves") from error
            raise Unservable(where, f"its module does not run over plain tokens: {first_line(error)}") from error
    text = model.model.language_model if model_class.__name__ in SEEING else model
    mixing = {type(one).__name__ for one in text.modules() if isinstance(one, nn.Conv1d | nn.Conv2d | nn.RNNBase)}
    if mixing:
        raise Unservable(
            where, f"its layers mix neighbouring tokens outside of attention ({', '.join(sorted(mixing))})"
        )
    _check_calls(found, where)
    return found


def _hold_ropes(model: nn.Module, where: str) -> None:
    """Ropes that would look at the greatest position of a batch do not: see `_settle_ropes` of the decoder."""
    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, dict) and set(kind.values()) & set(GROWING):
            raise Unservable(where, f"rope_type {' or '.join(GROWING)} in layers whose ropes differ")
        if isinstance(kind, str) and kind in GROWING:
            rope: Any = module
            rope.rope_type = "default"


def _check_calls(found: Probe, where: str) -> None:
    if not found.calls:
        raise Unservable(where, "its layers compute attention themselves")
    expected = found.config.get_text_config().num_hidden_layers
    if len(found.calls) < expected:
        raise Unservable(
            where,
            f"{len(found.calls)} of {expected} layers attend through transformers' attention interface; "
            "the others keep a state of another kind, or compute attention themselves",
        )
    if len({call.name for call in found.calls}) < len(found.calls):
        raise Unservable(where, "layers share one attention module, whose keys would share pages")
    for name, values in (
        ("key and value heads", {call.num_kv_heads for call in found.calls}),
        ("query heads", {call.num_heads for call in found.calls}),
        ("sizes of a head", {max(call.key_dim, call.value_dim) for call in found.calls}),
    ):
        if len(values) > 1:
            raise Unservable(where, f"its layers have different {name} ({', '.join(map(str, sorted(values)))})")
    call = found.calls[0]
    if max(call.key_dim, call.value_dim) > MAX_HEAD_DIM:
        raise Unservable(where, f"heads of {max(call.key_dim, call.value_dim)} numbers; {MAX_HEAD_DIM} at most")
    if call.num_heads % call.num_kv_heads:
        raise Unservable(where, f"{call.num_heads} query heads do not share {call.num_kv_heads} heads of keys evenly")


def _shapes(found: Probe, raw: dict[str, Any], file: str, max_context: int) -> ModelConfig:
    """What the runner, the pool and the scheduler need to know; the decoder has the rest in its module."""
    text, call = found.config.get_text_config(), found.calls[0]
    max_position = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if not isinstance(max_position, int):
        raise Unservable(f"{file}: {architecture_name(raw)}", "its config has no max_position_embeddings")
    head_dim = max(call.key_dim, call.value_dim)
    if architecture_name(raw) in SEEING:  # files of transformers 4 have what is of the text in one place or the other
        raw = {**raw, **text.to_dict(), "architectures": raw["architectures"]}
    ropes = RopeReader(raw, file, max_position, head_dim, max_context)
    if max_context > ropes.longest():
        raise ModelError(f"{file}: a context of {max_context} tokens; max_position_embeddings is {max_position}")
    return ModelConfig(
        family=str(found.config.model_type),
        architecture=str(architecture_name(raw)),
        vocab_size=int(text.vocab_size),
        hidden_size=int(text.hidden_size),
        intermediate_size=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        num_layers=len(found.calls),
        num_heads=call.num_heads,
        num_kv_heads=call.num_kv_heads,
        head_dim=head_dim,
        max_position=ropes.context,
        rms_eps=0.0,
        rope=RopeConfig(),
        windows=tuple(call.window for call in found.calls),
        is_scoring=is_scoring(raw),
        tie_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_ids=token_ids(raw.get("eos_token_id")),
        has_shifts=SEEING.get(str(architecture_name(raw)), False),
    )


class _Recorder:
    """The attention function and the mask function of a probe."""

    def __init__(self, where: str, found: Probe) -> None:
        self.where = where
        self.found = found
        self._names: dict[int, str] = {}  # by id of a module
        self._num_runs: dict[str, int] = {}  # of a matrix
        self._windows: dict[int, tuple[torch.Tensor, int]] = {}  # by id of a mask: the mask, kept, and its window

    @contextmanager
    def registered(self) -> Iterator[None]:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface

        AttentionInterface.register(PROBE, self.attend)
        AttentionMaskInterface.register(PROBE, self.mask)
        yield

    def watch(self, model: nn.Module) -> None:
        """To be called before the model runs: names are known, and matrices tell what goes through them."""
        for name, module in model.named_modules():
            self._names[id(module)] = name
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._matrix)

    def _matrix(self, module: nn.Linear, given: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        name = self._names[id(module)]
        self._num_runs[name] = self._num_runs.get(name, 0) + 1
        sees_all = given[0].numel() == NUM_TOKENS * module.in_features
        if sees_all and self._num_runs[name] == 1:
            self.found.linears[name] = module.in_features, module.out_features
        else:
            self.found.linears.pop(name, None)

    def mask(self, mask_function: Callable[..., Any], local_size: int | None = None, **_: object) -> torch.Tensor:
        """Stands for a mask; Unservable if that is neither causal nor a window."""
        window = _window(mask_function, local_size)
        if window is None:
            raise Unservable(self.where, "its attention mask is neither causal nor a sliding window")
        made = torch.ones(1, 1, NUM_TOKENS, NUM_TOKENS, dtype=torch.bool, device="meta")
        self._windows[id(made)] = made, window
        return made

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **given: Any,
    ) -> tuple[torch.Tensor, None]:
        window = given.get("sliding_window") or NO_WINDOW
        if attention_mask is not None:
            if id(attention_mask) not in self._windows:
                raise Unservable(self.where, "its layers make attention masks of their own")
            window = self._windows[id(attention_mask)][1]
        is_causal = given.get("is_causal")
        if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
            raise Unservable(self.where, "its attention looks ahead")
        odd = sorted(name for name, one in given.items() if name not in FOLLOWED | HARMLESS and one is not None)
        odd = [name for name in odd if given[name] is not False]
        if odd:
            raise Unservable(
                self.where, f"its attention takes {', '.join(odd)}, which paged attention does not compute"
            )
        if key.shape[2] != NUM_TOKENS or query.shape[2] != NUM_TOKENS:
            raise Unservable(self.where, "its attention sees other keys than those of the tokens given")
        name = self._names[id(module)]
        self.found.calls.append(
            AttentionCall(name, query.shape[1], key.shape[1], key.shape[3], value.shape[3], int(window))
        )
        shape = query.shape[0], query.shape[2], query.shape[1], value.shape[3]
        return query.new_empty(shape), None


def _window(mask_function: Callable[..., Any], local_size: int | None) -> int | None:
    """The window of a mask function, from what it says of some rows; NO_WINDOW: causal alone, None: neither."""
    size = int(local_size or 0)
    last = max(2 * size, 8)
    with torch.device("cpu"):
        kv = torch.arange(last + 2)
        for row in (0, 1, last // 2, last - 1, last):
            want = (kv <= row) & (kv > row - size) if size else kv <= row
            try:
                seen = mask_function(0, 0, torch.tensor(row), kv)
                if not torch.equal(torch.as_tensor(seen).expand(len(kv)), want):
                    return None
            except Exception:  # noqa: BLE001 - it looks at what a probe does not have
                return None
    return size


def _names(mapping: Any) -> Iterator[str]:
    for value in mapping.values():
        yield from ([value] if isinstance(value, str) else value)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


@contextmanager
def quiet() -> Iterator[None]:
    """transformers warns of much that does not matter here, and draws progress bars."""
    from transformers.utils import logging as theirs

    before, has_bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(before)
        if has_bars:
            theirs.enable_progress_bar()
