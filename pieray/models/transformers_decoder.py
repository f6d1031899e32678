"""A decoder that is transformers' own module, with attention over the page pool in place of its own.

What an architecture does between its layers, and in them, stays transformers' code; keys and values go to pages and
attention is pieray's kernels, through transformers' attention interface.  All sequences of a step lie side by side in
one row of tokens, each with its own positions.
"""

from __future__ import annotations

import copy
import inspect
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import nn

from pieray.errors import ModelError
from pieray.kernels.cells import as_bits, to_cells
from pieray.kernels.dispatch import attention
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import ForwardItem, RaggedBatch, build_batch
from pieray.models.config import ModelConfig
from pieray.models.kv_pool import KvPool
from pieray.models.loader import Checkpoint
from pieray.models.lora import LoraAdapter, LoraTargets, add_low_rank, read_lora
from pieray.models.transformers_probe import GROWING, Probe, first_line, quiet

log = logging.getLogger(__name__)

PAGED = "pieray_paged"
ADAPTER = "adapter_config.json"
#: largest difference from transformers' own attention over the largest logit, at load
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}


@dataclass(slots=True)
class _Layer:
    """What an attention module of transformers is known by here."""

    decoder: TransformersDecoder
    index: int
    window: int


@dataclass(slots=True)
class _Step:
    """What the layers of one step share."""

    batch: RaggedBatch
    pool: KvPool
    pages: torch.Tensor  # int64 [T]: where the keys of each token go
    offsets: torch.Tensor


class TransformersDecoder:
    """Drop-in for `Decoder`.  Owns the module; what it keeps between calls is all in the pool."""

    def __init__(self, config: ModelConfig, found: Probe, model: Any) -> None:
        """`model` is the module of `found` with its weights, on its device."""
        self.config = config
        self.model = model
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.targets = _targets(found)
        self._step: _Step | None = None
        self._hidden: torch.Tensor | None = None
        self._keeps_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        for index, call in enumerate(found.calls):
            model.get_submodule(call.name).pieray_layer = _Layer(self, index, call.window)
        for layer, matrices in enumerate(self.targets.layers):
            for name in matrices:
                module = model.get_submodule(f"{self.targets.prefix}{layer}.{name}")
                module.register_forward_hook(self._adds_to(layer, name))
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.out_features != config.vocab_size:
            raise ModelError(f"{config.architecture}: its head is {head}; expected {config.vocab_size} logits")
        head.register_forward_pre_hook(self._keep_hidden)
        _register()
        self._attention = model.config.get_text_config()  # a model that sees has another one for its images
        self._attention._attn_implementation = PAGED

    @classmethod
    def load(
        cls, folder: str | Path, config: ModelConfig, found: Probe, dtype: torch.dtype, device: str
    ) -> TransformersDecoder:
        """Read the weights; ModelError if one is missing or not as the config says, or if the module computes something
        else over pages than by itself.

        Implementations of attention and experts that the folder's config asks for are not taken: they may be packages,
        or code of a hub.
        """
        if (Path(folder) / ADAPTER).exists():
            raise ModelError(
                f"{Path(folder) / ADAPTER}: the folder is of an adapter; serve the model that it is for, merged or not"
            )
        with Checkpoint(folder), quiet():  # what is no checkpoint of safetensors is refused here, with its name
            try:
                model, info = found.model_class.from_pretrained(
                    str(folder),
                    config=_plain_ways(found.config),
                    attn_implementation=_attention_of(found.config),
                    dtype=dtype,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            except Exception as error:  # whatever a module of theirs raises
                raise ModelError(f"{folder}: transformers cannot load it: {first_line(error)}") from error
        for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
            if info.get(kind):
                raise ModelError(f"{folder}: {kind.replace('_', ' ')}: {', '.join(map(str, sorted(info[kind])[:5]))}")
        model = model.eval().to(device)
        _settle_ropes(model, config.max_position)
        decoder = cls(config, found, model)
        decoder.check(str(folder))
        return decoder

    def adapt(self, file: AdapterFile, max_bytes: int) -> LoraAdapter:
        """Load an adapter for this model, in its dtype; see `read_lora`."""
        return read_lora(file, self.targets, self.dtype, self.device, max_bytes)

    def embeddings(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, hidden] of tokens int64 [n], in model dtype: what given in their place computes the same."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def forward(self, batch: RaggedBatch, pool: KvPool) -> torch.Tensor:
        """Write the keys and values of all T tokens to `pool`; logits [R, vocab] of the wanted rows, in model dtype."""
        with torch.inference_mode():
            pages = batch.slots.div(pool.page_size, rounding_mode="floor")
            self._step = _Step(batch, pool, pages, batch.slots - pages * pool.page_size)
            try:
                logits = self._run(batch)
            finally:
                self._step = None
            if batch.hidden is not None:
                assert self._hidden is not None
                batch.hidden.copy_(self._hidden[0] if self._keeps_rows else self._hidden[0, batch.rows])
            self._hidden = None
            return logits

    def check(self, where: str) -> None:
        """Compute a few tokens over pages, in parts and beside others, and by transformers' own attention.

        Raises ModelError if they differ: a module may look at its whole row of tokens outside of attention.
        """
        tokens = np.arange(6, dtype=np.uint32) % self.config.vocab_size
        with torch.inference_mode():
            self._attention._attn_implementation = "eager"
            try:
                ids = torch.from_numpy(tokens.astype(np.int64))[None].to(self.device)
                want = self.model(input_ids=ids, use_cache=False).logits[0].float()
            finally:
                self._attention._attn_implementation = PAGED
        pool = KvPool(self.config, 4, 4, self.dtype, self.device)
        got = torch.cat([self._checked(pool, tokens, start) for start in (0, 3)])
        worst = float((got - want).abs().max() / want.abs().max().clamp_min(1e-6))
        if not worst <= TOLERANCE[self.dtype]:
            raise ModelError(
                f"{where}: {self.config.architecture} does not compute over pages what it computes by itself "
                f"(logits differ by {worst:.2g} of the largest); it cannot be served"
            )

    def _checked(self, pool: KvPool, tokens: np.ndarray[Any, Any], start: int) -> torch.Tensor:
        """Logits of three of the tokens, beside two of another sequence that come first."""
        items = []
        for pages, first, given in (([3, 2], start // 3 * 2, tokens[-2:]), ([1, 0], start, tokens[start : start + 3])):
            positions = np.arange(first, first + len(given), dtype=np.uint32)
            rows = list(range(len(given))) if len(given) == 3 else []
            items.append(ForwardItem(np.array(pages, np.uint32), first, given, positions, rows=rows))
        return self.forward(build_batch(items, pool.page_size, self.device), pool).float()

    def attend(
        self, layer: _Layer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, given: dict[str, Any]
    ) -> torch.Tensor:
        """Of [1, heads, T, head_dim] each, [1, T, heads, value's head_dim]; keys and values go to their pages."""
        assert self._step is not None, "the module runs outside of a step"
        batch, kv = self._step.batch, self._step.pool.layers[layer.index]
        head_dim, value_dim = kv.shape[-1], value.shape[-1]
        for half, states in enumerate((key, value)):
            rows = F.pad(states[0].transpose(0, 1), (0, head_dim - states.shape[-1]))
            as_bits(kv)[self._step.pages, half, :, self._step.offsets] = as_bits(to_cells(rows, kv.dtype))
        queries = F.pad(query[0].transpose(0, 1), (0, head_dim - query.shape[-1])).to(self.dtype).contiguous()
        scale = given.get("scaling")
        mixed = attention(
            queries,
            kv,
            batch.attention,
            scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
            window=layer.window,
            softcap=float(given.get("softcap") or 0.0),
            sinks=given.get("s_aux"),
        )
        return mixed[None, :, :, :value_dim].to(query.dtype)

    def _run(self, batch: RaggedBatch) -> torch.Tensor:
        given: dict[str, Any] = {"input_ids": batch.tokens[None]}
        if batch.embeds is not None:
            embeds = self.embeddings(batch.tokens[None]).clone()
            embeds[0, batch.embeds.rows] = batch.embeds.values.to(embeds.dtype)
            given = {"inputs_embeds": embeds}
        if self._keeps_rows:
            given["logits_to_keep"] = batch.rows
        assert self._step is not None
        positions = (
            shifted_positions(batch, self._step.pool)[:, None] if self.config.has_shifts else batch.positions[None]
        )
        logits: torch.Tensor = self.model(**given, position_ids=positions, use_cache=False).logits[0]
        return logits if self._keeps_rows else logits[batch.rows]

    def _keep_hidden(self, _module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._hidden = given[0]

    def _adds_to(self, layer: int, name: str) -> Any:
        """A hook that adds what the step's adapters add to the output of one matrix."""

        def add(module: nn.Linear, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            step = self._step
            if step is not None and step.batch.adapters:
                x, y = given[0].reshape(-1, module.in_features), output.view(-1, module.out_features)
                add_low_rank(y, x, step.batch.adapters, layer, name, are_rows=False)

        return add


def shifted_positions(batch: RaggedBatch, pool: KvPool) -> torch.Tensor:
    """Temporal, vertical and horizontal positions, int64 [3, T]; writes the shifts of all T tokens: see `KvPool`."""
    shifts, meta = pool.shifts, batch.attention
    assert shifts is not None
    q_lens = (meta.qo_indptr[1:] - meta.qo_indptr[:-1]).long()
    num_before = meta.kv_lens.long() - q_lens
    last = (num_before - 1).clamp_min(0)
    pages = meta.pages[meta.page_indptr[:-1].long() + last.div(pool.page_size, rounding_mode="floor")].long()
    before = shifts[pages, last % pool.page_size].long().where(num_before > 0, 0)
    owner = torch.repeat_interleave(torch.arange(len(q_lens), device=q_lens.device), q_lens)
    shift = before[owner]
    positions = batch.positions + shift
    found = positions.expand(3, -1)
    if batch.embeds is not None and batch.embeds.places is not None:
        places = batch.embeds.places.long()
        taken = torch.zeros_like(batch.positions)
        taken[batch.embeds.rows] = places[:, 3]
        total = taken.cumsum(0)
        first = meta.qo_indptr[:-1].long()
        total = total - (total - taken)[first[owner]]
        found = (positions + total - taken).repeat(3, 1)
        found[:, batch.embeds.rows] += places[:, :3].T
        shift = shift + total
    slots = batch.slots.div(pool.page_size, rounding_mode="floor"), batch.slots % pool.page_size
    shifts[slots] = shift.to(torch.int32)
    return found


def _plain_ways(config: Any) -> Any:
    """A copy of transformers' config that names no implementation of attention or experts."""
    own = copy.deepcopy(config)
    parts = [own, *(part for name in own.sub_configs if (part := getattr(own, name, None)) is not None)]
    for part in parts:
        part._attn_implementation_internal = part._experts_implementation_internal = None
    return own


def _attention_of(config: Any) -> Any:
    """Of the layers that predict tokens, plain attention, until it is that over pages; of those that see, torch's."""
    parts = dict.fromkeys(config.sub_configs, "sdpa")
    return {**parts, "text_config": "eager", "": "eager"} if "vision_config" in parts else "eager"


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(PAGED, _attend)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,  # noqa: ARG001 - transformers gives it; `_Layer` knows the window
    **given: Any,
) -> tuple[torch.Tensor, None]:
    layer: _Layer = module.pieray_layer
    return layer.decoder.attend(layer, query, key, value, given), None


def _targets(found: Probe) -> LoraTargets:
    """The matrices that all tokens of a step go through, by layer."""
    numbered = re.match(r"(.*?\.)\d+\.", found.calls[0].name)
    prefix = numbered[1] if numbered else ""
    layers: list[dict[str, dict[str, tuple[int, int]]]] = [{} for _ in found.calls]
    for name, size in found.linears.items():
        number, _, module = name.removeprefix(prefix).partition(".")
        if prefix and name.startswith(prefix) and number.isdecimal() and int(number) < len(layers):
            layers[int(number)][module] = {module: size}
    return LoraTargets(layers, prefix)


def _settle_ropes(model: nn.Module, context: int) -> None:
    """Give ropes that grow with what they see the frequencies of the context, once and for all: see rope_config.py."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for module in model.modules():
        kind: Any = getattr(module, "rope_type", None)
        if isinstance(kind, str) and kind in GROWING:
            rope: Any = module
            inverse, rope.attention_scaling = ROPE_INIT_FUNCTIONS[kind](
                rope.config, rope.inv_freq.device, seq_len=context
            )
            rope.inv_freq = inverse.to(rope.inv_freq.device)
            rope.rope_type = "default"
