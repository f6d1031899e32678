"""The decoder as one C call a step, for CPUs: no dispatch, packed weights, the same bits whatever the batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from pieray.arrays import I64, U8
from pieray.errors import ModelError
from pieray.kernels.cc import library
from pieray.kernels.decode_rows_cpu import CBounds, CRows, RowStep, column
from pieray.kernels.decoder_step_cpu import (
    FP8,
    INT8_KINDS,
    PAIR_KINDS,
    CBlock,
    CMatrix,
    CModel,
    CStep,
    decoder_step,
    int8_kinds,
    kind_of,
    num_phases,
    packed,
    padded,
    pair_kinds,
    workspace,
)
from pieray.kernels.paged_attention_cpu import POOL_KINDS, is_supported, ragged
from pieray.kernels.quantized import AnyMatrix, QuantizedMatrix
from pieray.kernels.sample_cpu import CHOICE
from pieray.models.adapter_file import AdapterFile
from pieray.models.arena import Arena, huge_memory
from pieray.models.batch import DecodeRows, RaggedBatch
from pieray.models.config import ModelConfig
from pieray.models.kv_pool import KvPool
from pieray.models.lora import LoraAdapter, LoraSegment, native_targets, read_lora
from pieray.models.lora_cpu import compile_adapter, segments
from pieray.models.pass_programs import PassPrograms
from pieray.models.rope import RopeTables
from pieray.models.weights import DecoderWeights, LayerWeights, MlpWeights

log = logging.getLogger(__name__)


class CpuDecoder:
    """Drop-in for `Decoder`.  Weights and pool in float32 or bfloat16, everything between them in float32.

    `bf16_products` says how rows are multiplied with weights of bfloat16: "amx" and "avx512_bf16" round the rows to
    bfloat16 too, "float32" does not; "auto" is "amx" where there is, else "float32".  A row's logits are
    the same in any batch with each of them, and differ between them; `products` is the one, `products_why` says why.
    Matrices of int8 are multiplied by the fastest instructions there are for them, to the same bits by all.
    Raises ModelError for what there is not, MemoryError where packed matrices do not fit.

    Owns packed copies of the matrices; `weights` can be dropped afterwards.  Bound to the pool of the last call.
    """

    def __init__(self, config: ModelConfig, weights: DecoderWeights, bf16_products: str = "auto") -> None:
        self.config = config
        self.products, self.products_why = _products(weights.embed.dtype, bf16_products)
        if bf16_products not in ("auto", self.products):
            log.warning("bf16_products %r does not apply: %s", bf16_products, self.products_why)
        self._kind = kind_of(weights.embed.dtype, self.products)
        self._int8_kind = INT8_KINDS[int8_kinds()[0]]
        self._arena = Arena()
        self.device = weights.embed.device
        self._embed = weights.embed
        self._keep: list[torch.Tensor] = []  # what the C structures point into
        self._pool: KvPool | None = None
        self._blocks = (CBlock * config.num_layers)()
        self._tables = RopeTables(config.head_dim, config.max_position, self.device)
        for layer, one in enumerate(weights.layers):
            self._blocks[layer] = self._block(one, layer)
        self._model = CModel(
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.rms_eps,
            scale=config.softmax_scale,
            softcap=config.attention_softcap,
            embed_scale=torch.tensor(config.embed_scale, dtype=weights.embed.dtype).item() * config.input_scale,
            residual_scale=config.residual_scale,
            logits_scale=1 / config.logits_divisor,
            logits_softcap=config.logits_softcap,
            is_bf16=weights.embed.dtype is torch.bfloat16,
            is_gelu=config.activation == "gelu_tanh",
            is_row_norm=config.qk_norm == "row",
            has_tiles=self.products == "amx",
            embed=self._pointer(weights.embed),
            norm=self._pointer(weights.norm.float()),
            lm_head=self._matrix(weights.lm_head, None),
            blocks=self._blocks,
        )
        self._work = torch.empty(0)
        self._work_at, self._num_tokens = self._work.data_ptr(), 0
        self._bounds = CBounds(config.vocab_size, config.max_position, 0)
        self._run_rows = RowStep(self._model, self._bounds)
        self._row_step = CStep()
        self._logits = torch.empty(0, padded(config.vocab_size))  # of rows
        self._logits_at, self._num_rows = self._logits.data_ptr(), 0

    @staticmethod
    def can_run(config: ModelConfig, weights: DecoderWeights) -> bool:
        """Whether there is a compiled library and it computes this model on this device and dtype."""
        return CpuDecoder.computes(config, weights.embed.dtype, weights.embed.device)

    @staticmethod
    def computes(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> bool:
        """As `can_run`, before weights are read."""
        on_cpu = torch.device(device).type == "cpu"
        return config.experts is None and on_cpu and is_supported(dtype, config.head_dim) and library() is not None

    def adapt(self, file: AdapterFile, max_bytes: int) -> LoraAdapter:
        """Load an adapter for this model, in float32; see `read_lora`."""
        adapter = read_lora(file, native_targets(self.config), torch.float32, self.device, max_bytes)
        compile_adapter(adapter)
        return adapter

    def embeddings(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, hidden] of tokens int64 [n], in model dtype."""
        embed = self._embed[tokens]
        scale = torch.tensor(self.config.embed_scale, dtype=embed.dtype)
        return embed if scale == 1 else embed * scale

    def forward(self, batch: RaggedBatch, pool: KvPool) -> torch.Tensor:
        """Write the keys and values of all T tokens to `pool`; logits float32 [R, vocab] of the wanted rows."""
        self._bind(pool)
        num_tokens, num_rows = len(batch.tokens), len(batch.rows)
        self._reserve(num_tokens)
        logits = torch.empty(num_rows, padded(self.config.vocab_size))
        found, lora = segments(batch.adapters)
        embeds = None if batch.embeds is None else batch.embeds.values * self.config.input_scale
        step = CStep(
            batch.tokens.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.rows.data_ptr(),
            num_tokens,
            num_rows,
            ragged(batch.attention),
            found,
            len(batch.adapters),
            lora.data_ptr(),
            None if batch.embeds is None else batch.embeds.rows.data_ptr(),
            None if embeds is None else embeds.data_ptr(),
            0 if batch.embeds is None else len(batch.embeds.rows),
            None if batch.hidden is None else batch.hidden.data_ptr(),
        )
        if batch.programs is None:
            decoder_step(self._model, step, self._work, logits, torch.get_num_threads())
        else:
            self._run_with(batch.programs, step, logits)
        return logits[:, : self.config.vocab_size]

    def _run_with(self, programs: PassPrograms, step: CStep, logits: torch.Tensor) -> None:
        """The step in parts, with programs between them."""
        c, tokens, first = self.config, int(step.num_tokens), 0
        width = padded(c.hidden_size)
        hidden = self._work[: tokens * width].view(tokens, width)[:, : c.hidden_size]
        heads = padded((c.num_heads + 2 * c.num_kv_heads) * c.head_dim)
        projected = self._work[2 * tokens * width : tokens * (2 * width + heads)].view(tokens, heads)
        queries = torch.unflatten(projected[:, : c.num_heads * c.head_dim], 1, (c.num_heads, c.head_dim))
        whole = step.ragged
        meta = None  # outlives the part of the step that reads it
        for layer in range(c.num_layers):
            if programs.steers(layer):
                first = self._run_part(step, logits, first, 1 + 2 * layer)
                programs.hidden(layer, hidden)
            if programs.selects(layer):
                first = self._run_part(step, logits, first, 2 + 2 * layer)
                meta = programs.attention(layer, queries)
                step.ragged = ragged(meta)
                first = self._run_part(step, logits, first, 3 + 2 * layer)
                step.ragged = whole
        self._run_part(step, logits, first, num_phases(self._model))
        del meta

    def _run_part(self, step: CStep, logits: torch.Tensor, first: int, last: int) -> int:
        if first < last:
            decoder_step(self._model, step, self._work, logits, torch.get_num_threads(), range(first, last))
        return last

    def decode_rows(self, rows: DecodeRows, pool: KvPool, special: Sequence[int] = ()) -> tuple[I64, U8 | None] | None:
        """Run rows and draw from their plain logits, but for those at `special`.

        Returns their tokens [R], and, if there are any, which rows have logits that are not finite [R]; None if a row
        cannot be computed.  `row_logits` holds until the next call.  Raises MemoryError.
        """
        self._bind(pool)
        num_rows = len(rows)
        if num_rows > self._num_rows:
            self._reserve(num_rows)
            self._logits = torch.empty(num_rows, self._logits.shape[1])
            self._logits_at, self._num_rows = self._logits.data_ptr(), num_rows
        step = self._row_step
        if rows.adapters or step.num_segments:
            step.segments, lora = segments([LoraSegment(*one, *one[1:]) for one in rows.adapters])
            step.num_segments, step.lora = len(rows.adapters), lora.data_ptr()
        is_special = None
        if special:
            is_special = np.zeros(num_rows, np.uint8)
            is_special[special] = 1
        return self._run_rows(_view(rows), step, self._work_at, self._logits_at, torch.get_num_threads(), is_special)

    def row_logits(self, num_rows: int) -> torch.Tensor:
        """Logits [R, vocab] of the rows that `decode_rows` has run last."""
        return self._logits[:num_rows, : self.config.vocab_size]

    def _reserve(self, num_tokens: int) -> None:
        if num_tokens <= self._num_tokens:
            return
        self._work = huge_memory(workspace(self._model, num_tokens) * 4).view(torch.float32)
        self._work_at, self._num_tokens = self._work.data_ptr(), num_tokens

    def _bind(self, pool: KvPool) -> None:
        if self._pool is pool:
            return
        self._pool = pool
        self._model.page_size = pool.page_size
        self._model.kv_kind = POOL_KINDS[pool.data.dtype]
        self._bounds.num_pages = pool.num_pages
        for block, layer in zip(self._blocks, pool.layers, strict=True):
            block.kv = layer.data_ptr()

    def _block(self, one: LayerWeights, layer: int) -> CBlock:
        assert isinstance(one.mlp, MlpWeights), "see `can_run`"
        cos, sin = self._tables.of(self.config.rope_of(layer))
        return CBlock(
            qkv=self._matrix(one.qkv, one.qkv_bias),
            out=self._matrix(one.out, one.out_bias),
            gate_up=self._matrix(one.mlp.gate_up, one.mlp.gate_up_bias),
            down=self._matrix(one.mlp.down, one.mlp.down_bias),
            attn_norm=self._vector(one.attn_norm),
            mlp_norm=self._vector(one.mlp_norm),
            q_norm=self._vector(one.q_norm),
            k_norm=self._vector(one.k_norm),
            attn_post=self._vector(one.attn_post),
            mlp_post=self._vector(one.mlp_post),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            window=self.config.windows[layer],
        )

    def _vector(self, weight: torch.Tensor | None) -> int | None:
        return None if weight is None else self._pointer(weight.float())

    def _matrix(self, matrix: AnyMatrix, bias: torch.Tensor | None) -> CMatrix:
        num_out, num_in = matrix.shape
        found = CMatrix(None, self._padded(bias), num_out, num_in, self._kind)
        if isinstance(matrix, QuantizedMatrix):
            is_int = matrix.dtype is torch.int8
            found.kind = self._int8_kind if is_int else FP8
            found.scales = self._padded(matrix.scales)
            if is_int:  # in parts, for each is made int32 on the way
                sums = [part.sum(1, dtype=torch.int32) for part in torch.split(matrix.values, 256)]
                found.sums = self._padded(torch.cat(sums))
            matrix = matrix.values if is_int else matrix.values.view(torch.uint8)
        found.data = self._arena.take(packed(matrix, found.kind))
        return found

    def _padded(self, vector: torch.Tensor | None) -> int | None:
        """The address of numbers of outputs, in float32 or int32, with zeros up to whole panels."""
        if vector is None:
            return None
        dtype = torch.int32 if vector.dtype is torch.int32 else torch.float32
        wide = torch.zeros(padded(len(vector)), dtype=dtype)
        wide[: len(vector)] = vector
        return self._pointer(wide)

    def _pointer(self, tensor: torch.Tensor) -> int:
        self._keep.append(tensor.contiguous())
        return self._keep[-1].data_ptr()


def _products(dtype: torch.dtype, wanted: str) -> tuple[str, str]:
    """How this processor multiplies with weights of `dtype`, and why so; see `CpuDecoder`."""
    names = ("auto", *PAIR_KINDS, "float32")
    if wanted not in names:
        raise ModelError(f"bf16_products {wanted!r}: supported are {', '.join(names)}")
    found = [*pair_kinds(), "float32"]
    if dtype is not torch.bfloat16:
        return "float32", f"products in float32, for the weights are {str(dtype).removeprefix('torch.')}"
    if wanted not in ("auto", *found):
        raise ModelError(f"bf16_products {wanted!r}: this processor has {', '.join(found)}")
    if wanted == "auto":
        if "amx" in found:
            return "amx", "bf16_products auto: amx"
        return "float32", f"bf16_products auto: float32, for this processor has no amx; it has {', '.join(found)}"
    return wanted, f"bf16_products {wanted}, as it was set"


def _view(rows: DecodeRows) -> CRows:
    """The C view of rows, kept with them: columns of the decode table stay where they are from step to step."""
    view: CRows | None = rows.native
    if view is None:
        assert rows.tokens.dtype == rows.pages.dtype == np.uint32
        assert rows.positions.dtype == rows.kv_lens.dtype == np.int64
        assert rows.choices.dtype == CHOICE
        view = rows.native = CRows(
            column(rows.tokens),
            column(rows.positions),
            column(rows.kv_lens),
            column(rows.pages),
            column(rows.choices),
            len(rows),
            rows.pages.shape[1],
        )
    return view
