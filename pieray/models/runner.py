"""ModelRunner: a model on a device with its page pool; one call is one ragged step."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from pieray.arrays import F32, I64, U32
from pieray.errors import DeviceLost, InvalidRequest, ModelError, PierayError, Unsupported
from pieray.kernels.cells import E4M3
from pieray.kernels.quantized import DTYPES as QUANTIZED
from pieray.messages import Distribution, Hidden, Logprobs, Output, Sample
from pieray.models import batch
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import NO_ROWS, DecodeRows, ForwardItem
from pieray.models.config import ModelConfig
from pieray.models.cores import cores, decoder_threads
from pieray.models.decode_graphs import GraphedDecoder
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.drawn_by_programs import commit
from pieray.models.draws import NO_SCORES, Drawn, check_sampler, draw_plain, draw_rows, finite, not_finite, spread
from pieray.models.experts import check_widths
from pieray.models.host_pool import HostPool, budget_of
from pieray.models.images import ImageEncoder, SeenImage
from pieray.models.kv_pool import KvPool, TokenRange
from pieray.models.lora import LoraAdapter
from pieray.models.outputs import OutputValues, StepResult, check_ids
from pieray.models.pass_programs import PASS_STAGES, PassPrograms
from pieray.models.scores import ScoreHead
from pieray.models.tensor_programs import ProgramInstance, sizes_of
from pieray.models.transformers_decoder import TransformersDecoder
from pieray.models.ways import NATIVE, Way, way_of
from pieray.models.weights import open_weights
from pieray.tensor.program import Bounds, parse

log = logging.getLogger(__name__)

MAX_GPU_HEAD_DIM = 256
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KV_DTYPES = {"auto": None, "fp8": E4M3}


AnyDecoder = Decoder | GraphedDecoder | CpuDecoder | TransformersDecoder


class ModelRunner:
    """Owns decoder, pool, `swap_bytes` of host memory for swapped pages, and device; not thread-safe: one thread steps
    it.

    All that computes raises DeviceLost once the device is dead, as it is after a failed assertion or an illegal access
    in a kernel: nothing can be computed in this process any more.
    """

    def __init__(self, config: ModelConfig, decoder: AnyDecoder, pool: KvPool, swap_bytes: int = 0) -> None:
        self.config = config
        self.decoder = decoder
        self.pool = pool
        self.host_pool = HostPool(pool, swap_bytes)
        self.way, self.why, self.dtype = NATIVE, "", config.dtype
        self.scores: ScoreHead | None = None
        self.images: ImageEncoder | None = None
        """What sees images; None: the model does not."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str | None = None,
        num_pages: int | None = None,
        page_size: int = 16,
        threads: int = 1,
        kv_bytes: int = 0,
        *,
        gpu_fraction: float = 0.85,
        cuda_graphs: bool = True,
        swap_bytes: int = 0,
        max_context: int = 0,
        bf16_products: str = "auto",
        quantization: str = "none",
        kv_dtype: str = "auto",
        num_sharing: int = 1,
    ) -> ModelRunner:
        """Load the model folder `path`; ModelError if it cannot be served.

        `dtype` None takes the config's; `num_pages` None takes what fits in `kv_bytes`, and 0 of these is 256 MiB
        on a CPU, and `gpu_fraction` of the memory that is free beside the weights on a GPU.  `threads` are those of
        torch in this whole process (CPU only); 0: `decoder_threads` of the cores that `num_sharing` processes share.
        `cuda_graphs` replays decode steps as graphs (CUDA only).  `swap_bytes` of host memory take swapped pages, see
        `budget_of`.  `max_context` tokens is the longest context to serve, 0: the config's.  `bf16_products` as in
        `CpuDecoder`; `quantization` "int8" or "fp8" is what the matrices become.
        `kv_dtype` "fp8" has pages hold E4M3, "auto" what the model computes in.
        """
        way = way_of(path, max_context)
        config = way.config
        name = dtype or config.dtype
        if name not in DTYPES:
            raise ModelError(f"dtype {name!r}: supported are {', '.join(DTYPES)}")
        if device == "cpu":
            step_bytes = config.step_numbers * (DTYPES[name].itemsize if quantization == "none" else 1)
            torch.set_num_threads(threads or decoder_threads(step_bytes, cores() // num_sharing))
        decoder = _decoder(way, path, DTYPES[name], device, bf16_products, quantization, cuda_graphs=cuda_graphs)
        if kv_dtype not in KV_DTYPES:
            raise ModelError(f"kv_dtype {kv_dtype!r}: supported are {', '.join(KV_DTYPES)}")
        cells = KV_DTYPES[kv_dtype] or DTYPES[name]
        pages = num_pages or KvPool.pages_that_fit(config, page_size, cells, device, kv_bytes, gpu_fraction)
        pool = KvPool(config, pages, page_size, cells, device)
        log.info("%s on %s as %s: %d pages of %d tokens, %d bytes", path, device, name, pages, page_size, pool.nbytes)
        runner = cls(config, decoder, pool, budget_of(swap_bytes, pool.nbytes))
        if config.is_scoring:
            runner.scores = ScoreHead.from_folder(path, config.hidden_size, decoder.device)
        runner.way, runner.why, runner.dtype = way.kind, way.why, name
        if isinstance(decoder, TransformersDecoder):
            runner.images = ImageEncoder.load(path, decoder.model, config.hidden_size)
        return runner

    def step(self, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]) -> list[StepResult]:
        """As `decode`, without rows."""
        return self.decode(NO_ROWS, items, outputs)[1]

    def decode(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, list[StepResult]]:
        """Compute rows and items in one ragged batch; `outputs[i]` are those wanted of `items[i]`.

        A row or an item that is invalid or not finite gets a PierayError in its place, and the others are computed as
        if it had not been there; so does a draw that may give no token.  `items[i].rows` is overwritten.

        Raises DeviceLost, and ModelError for a step that fails to compute: `DeviceSteps` finds out who is at fault.
        """
        if not items and self.scores is None and isinstance(self.decoder, (CpuDecoder, GraphedDecoder)) and len(rows):
            drawn = self._draw_rows(self.decoder, rows)
            if drawn is not None:
                return drawn, []
        results: list[StepResult] = [[] for _ in items]
        good = []
        are_valid = batch.are_valid(items, self.config, self.pool)
        for index, (item, wanted) in enumerate(zip(items, outputs, strict=True)):
            try:
                self._prepare(item, wanted)
                if not are_valid:
                    batch.validate_item(item, self.config, self.pool)
                good.append(index)
            except (InvalidRequest, ValueError) as error:
                results[index] = error if isinstance(error, InvalidRequest) else InvalidRequest(f"malformed: {error}")
        good.sort(key=lambda i: 0 if (adapter := items[i].adapter) is None else adapter.serial)
        drawn, found = self._decode_rows(rows, [items[i] for i in good], [outputs[i] for i in good])
        for index, result in zip(good, found, strict=True):
            results[index] = result
        return drawn, results

    def load_program(self, code: bytes, bounds: Bounds, states: Sequence[bytes]) -> ProgramInstance:
        """A tensor program for this model; raises InvalidRequest, QuotaExceeded."""
        program = parse(code, sizes_of(self.config, self.pool.page_size), bounds)
        if states and len(states) != len(program.states):
            raise InvalidRequest(f"this program has {len(program.states)} states; given {len(states)}")
        self._check_stage(program.stage)
        return ProgramInstance.of(program, self.decoder.device, states)

    def _check_stage(self, stage: str) -> None:
        if stage in PASS_STAGES and isinstance(self.decoder, TransformersDecoder):
            raise Unsupported(f"programs of stage {stage} need a native decoder; this model runs through transformers")

    def _draw_rows(self, decoder: CpuDecoder | GraphedDecoder, rows: DecodeRows) -> Drawn | None:
        """A step of rows alone in one call; None if one of them fails, which is found out as with any others."""
        special = sorted({*rows.samplers, *rows.masks}) if rows.samplers or rows.masks else []
        try:
            with self._device():
                return self._drawn(decoder, rows, special)
        except DeviceLost:
            raise
        except (PierayError, ValueError, RuntimeError, MemoryError) as error:
            log.warning("a step of rows alone failed, each is looked at: %s", error)
            return None

    def _drawn(self, decoder: CpuDecoder | GraphedDecoder, rows: DecodeRows, special: list[int]) -> Drawn | None:
        for sampler in rows.samplers.values():
            check_sampler(sampler, self.config.vocab_size)
        found = decoder.decode_rows(rows, self.pool, special)
        if found is None:
            return None
        if self.pool.keeps_bounds:
            self.pool.written(rows.pages[np.arange(len(rows)), rows.kv_lens // self.pool.page_size].astype(np.int64))
        tokens, is_bad = found
        errors = {} if is_bad is None else {row: not_finite() for row in np.flatnonzero(is_bad).tolist()}
        if not special and not len(rows.scored):
            return Drawn(tokens, NO_SCORES, errors)
        logits = decoder.row_logits(len(rows))
        if errors and logits.is_cuda:
            logits[list(errors)] = 0  # as `finite` does
        drawn = draw_rows(rows, logits, special, torch.from_numpy(tokens).to(logits.device))
        drawn.errors |= errors
        return drawn

    def _decode_rows(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, list[StepResult]]:
        """As `decode`, of valid items."""
        errors: dict[int, PierayError] = dict(batch.row_errors(rows, self.config, self.pool))
        if self.scores is not None:
            errors = dict.fromkeys(range(len(rows)), _scores_alone())
        for row, sampler in rows.samplers.items():
            try:
                check_sampler(sampler, self.config.vocab_size)
            except (InvalidRequest, ValueError) as error:
                errors[row] = InvalidRequest(f"sampler: {error}")
        if not errors:
            return self._compute(rows, items, outputs)
        kept = np.setdiff1d(np.arange(len(rows)), list(errors))
        part, found = self._compute(rows.take(kept), items, outputs)
        return spread(part, kept, rows, errors), found

    def read_adapter(self, file: AdapterFile, max_bytes: int) -> LoraAdapter:
        """An adapter for this model, to be given with items; see `read_lora`.  From any thread.  Raises DeviceLost."""
        with self._device():
            return self.decoder.adapt(file, max_bytes)

    def is_healthy(self) -> bool:
        """Whether the device still computes; waits for what it has been given.  A CPU always does."""
        device = self.decoder.device
        if device.type == "cpu":
            return True
        try:
            torch.cuda.synchronize(device)
            return int(torch.ones(1, dtype=torch.int32, device=device).add_(1).item()) == 2
        except Exception:
            log.exception("%s does not compute any more", device)
            return False

    @contextlib.contextmanager
    def _device(self) -> Iterator[None]:
        """What fails inside on a dead device is DeviceLost.

        Neither the class nor the text of an error tells: a launch on a poisoned device fails as plain RuntimeError, a
        lack of memory is one too.  So the device is asked.
        """
        try:
            yield
        except BaseException as error:
            if isinstance(error, PierayError) or self.is_healthy():
                raise
            raise DeviceLost(f"{self.decoder.device} is dead: {type(error).__name__}: {error}") from error

    def require_trees(self) -> None:
        """Raise Unsupported if a sliding window would cut drafts off by their order, not by their positions."""
        if any(self.config.windows):
            raise Unsupported("drafts as a tree need a model without sliding windows; give them as a chain")

    def embed(self, tokens: U32) -> F32:
        """The embeddings of tokens, float32 [n, hidden]; InvalidRequest for one outside the vocabulary."""
        if int(tokens.max(initial=0)) >= self.config.vocab_size:
            raise InvalidRequest(f"token {int(tokens.max())} is outside the vocabulary of {self.config.vocab_size}")
        with self._device(), torch.inference_mode():
            ids = torch.from_numpy(tokens.astype(np.int64)).to(self.decoder.device)
            values: F32 = self.decoder.embeddings(ids).float().cpu().numpy()
        return values

    def see(self, data: bytes, max_pixels: int, max_bytes: int) -> SeenImage:
        """The embeddings of an image file; see `ImageEncoder.encode`.  From one thread, beside that of the steps.
        Raises Unsupported for a model that does not see, and DeviceLost."""
        if self.images is None:
            raise Unsupported(f"{self.config.architecture} does not see images")
        with self._device():
            return self.images.encode(data, max_pixels, max_bytes)

    def copy_tokens(self, ranges: Sequence[TokenRange]) -> None:
        """See `KvPool.copy_tokens`.  Raises DeviceLost."""
        with self._device():
            self.pool.copy_tokens(ranges)

    def swap_out(self, pages: I64, slots: I64) -> None:
        """See `HostPool.swap_out`.  Raises DeviceLost."""
        with self._device():
            self.host_pool.swap_out(pages, slots)

    def swap_in(self, slots: I64, pages: I64) -> None:
        """See `HostPool.swap_in`.  Raises DeviceLost."""
        with self._device():
            self.host_pool.swap_in(slots, pages)
            self.pool.written(pages)

    def read_pages(self, pages: I64) -> bytes:
        """See `KvPool.read_pages`.  Raises DeviceLost."""
        with self._device():
            return self.pool.read_pages(pages)

    def write_pages(self, pages: I64, data: bytes) -> None:
        """See `KvPool.write_pages`.  Raises DeviceLost."""
        with self._device():
            self.pool.write_pages(pages, data)

    def _prepare(self, item: ForwardItem, wanted: Sequence[Output]) -> None:
        num_tokens, vocab = len(item.tokens), self.config.vocab_size
        for output in wanted:
            if not -num_tokens <= output.row - item.start < num_tokens:
                raise InvalidRequest(f"row {output.row} is outside of {num_tokens} tokens from {item.start} on")
            if self.scores is not None and not isinstance(output, Hidden):
                raise _scores_alone()
            if isinstance(output, Sample):
                check_sampler(output.sampler, vocab)
            elif isinstance(output, Logprobs):
                check_ids(output, vocab)
            elif isinstance(output, Distribution) and output.k < 0:
                raise InvalidRequest(f"k is {output.k}; it must be 0 (all) or more")
        item.rows = sorted({(output.row - item.start) % num_tokens for output in wanted})

    def _compute(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, list[StepResult]]:
        if not items and not len(rows):
            return Drawn(np.zeros(0, np.int64), np.zeros(0, np.float32), {}), []
        try:
            with self._device():
                return self._run(rows, items, outputs)
        except (RuntimeError, MemoryError) as error:
            raise ModelError(f"the step failed: {error}") from error

    def _run(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, list[StepResult]]:
        ragged = batch.build_batch(items, self.pool.page_size, self.decoder.device, rows)
        if any(isinstance(output, Hidden) for wanted in outputs for output in wanted):
            shape = len(ragged.rows), self.config.hidden_size
            ragged.hidden = torch.empty(shape, dtype=torch.float32, device=self.decoder.device)
        if self.pool.keeps_bounds:
            self.pool.written(ragged.slots // self.pool.page_size)
        programs = [(len(rows) + i, item.programs) for i, item in enumerate(items) if item.programs]
        if programs:
            ragged.programs = PassPrograms(programs, ragged.attention, ragged.positions, self.pool, self.config)
        logits = self.decoder.forward(ragged, self.pool)
        if ragged.hidden is not None and self.scores is not None:
            ragged.hidden = self.scores(ragged.hidden)
        logits, bad = finite(logits)
        pending: dict[ProgramInstance, list[torch.Tensor]] = {}
        if ragged.programs is not None:
            ragged.programs.finish()
            pending = ragged.programs.pending
        values = OutputValues(items, outputs, logits, ragged.hidden, len(rows), pending).collect(bad)
        special = sorted({*rows.samplers, *rows.masks})
        logits = logits[: len(rows)]
        drawn = draw_rows(rows, logits, special, draw_plain(rows, logits, special), pending)
        drawn.errors |= {row: not_finite() for row in bad if row < len(rows)}
        if pending:
            commit(pending)
        if logits.is_cuda and not len(ragged.rows):  # nothing has waited for the device: the next step's time would
            torch.cuda.synchronize(logits.device)  # be this one's too
        return drawn, values


def _scores_alone() -> InvalidRequest:
    return InvalidRequest(
        "this model scores texts and predicts no tokens: of outputs it has `hidden`, the scores, alone"
    )


def check_quantization(way: Way, path: str | Path, quantization: str) -> None:
    """Raise ModelError if the matrices of this model do not become what `model.quantization` says."""
    if quantization not in QUANTIZED:
        raise ModelError(f"quantization {quantization!r}: supported are none, {', '.join(QUANTIZED)}")
    if way.probe is not None:
        raise ModelError(f"{path}: quantization {quantization!r} is of native models; this one runs so: {way.why}")
    if way.config.experts is not None:
        raise ModelError(f"{path}: quantization {quantization!r}: a mixture of experts is served unquantized alone")


def _decoder(
    way: Way,
    path: str | Path,
    dtype: torch.dtype,
    device: str,
    bf16_products: str,
    quantization: str,
    *,
    cuda_graphs: bool,
) -> AnyDecoder:
    """The model's decoder with its weights.  Raises ModelError."""
    if quantization != "none":
        check_quantization(way, path, quantization)
    if way.probe is not None:
        if bf16_products != "auto":
            log.warning("%s: bf16_products %r does not apply through transformers' module", path, bf16_products)
        return TransformersDecoder.load(path, way.config, way.probe, dtype, device)
    check_widths(way.config, dtype)
    if device.startswith("cuda") and way.config.head_dim > MAX_GPU_HEAD_DIM:
        raise ModelError(f"head_dim is {way.config.head_dim}; at most {MAX_GPU_HEAD_DIM} on {device}")
    is_packed = CpuDecoder.computes(way.config, dtype, device)
    with open_weights(path, way.config, dtype, device, is_copied=not is_packed, quantization=quantization) as weights:
        if is_packed:
            try:
                decoder_cpu = CpuDecoder(way.config, weights, bf16_products)
            except MemoryError as error:
                raise ModelError(f"{path}: its packed weights: {error}") from error
            log.info("%s: %s", path, decoder_cpu.products_why)
            return decoder_cpu
        if bf16_products != "auto":
            log.warning("%s: bf16_products %r applies to the C decoder alone, not to this model", path, bf16_products)
        decoder = Decoder(way.config, weights)
    if cuda_graphs and decoder.device.type == "cuda" and way.config.experts is None:
        return GraphedDecoder(decoder)
    return decoder
