"""Decode steps as CUDA graphs: a step of one token a sequence is launched as a whole, not kernel by kernel.

A small model's decode step is some hundreds of kernels of a few microseconds; launching them one by one from Python
takes longer than running them.  A graph is captured once per *bucket*, a number of rows and a bound on their lengths,
over buffers that stay where they are; a step copies its batch into them, replays, and reads the logits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pieray.kernels.meta import AttentionMeta
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import RaggedBatch
from pieray.models.decoder import Decoder
from pieray.models.kv_pool import KvPool
from pieray.models.lora import LoraAdapter

log = logging.getLogger(__name__)

#: rows of a graph: a batch runs in the smallest that holds it, with idle rows for the rest
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
#: the shortest bound on the length of sequences; bounds double, since the kernel's split of keys depends on them
MIN_KV_LEN = 512
#: page ids that a graph's batch may name, per row
PAGES_PER_ROW = 2048

Compute = Callable[[], torch.Tensor]
#: from a computation to what runs it again, over the same memory
Capture = Callable[[Compute], Callable[[], None]]


@dataclass(slots=True)
class _Graph:
    """One bucket's buffers and what computes over them."""

    batch: RaggedBatch
    replay: Callable[[], None]


class GraphedDecoder:
    """A `Decoder` whose plain decode steps are replayed; all others go through it as they are.

    Plain means: one token and at most one row of logits per item, no mask, embeddings, adapter or hidden states.  The
    logits of a replayed step lie in a buffer of all buckets: they hold until the next step.  All graphs share one pool
    of memory for what lies between, which is why only one may run at a time.
    """

    def __init__(self, decoder: Decoder, capture: Capture | None = None) -> None:
        self.decoder = decoder
        self.device = decoder.device
        self._capture = capture or _CudaCapture()
        self._logits = decoder.weights.lm_head.new_empty((ROWS[-1], decoder.config.vocab_size))
        self._graphs: dict[tuple[int, int], _Graph | None] = {}  # None: there was no memory for it
        self.num_replayed = 0

    def adapt(self, file: AdapterFile, max_bytes: int) -> LoraAdapter:
        """See `Decoder.adapt`."""
        return self.decoder.adapt(file, max_bytes)

    def embeddings(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Decoder.embeddings`."""
        return self.decoder.embeddings(tokens)

    def forward(self, batch: RaggedBatch, pool: KvPool) -> torch.Tensor:
        """See `Decoder.forward`."""
        with torch.inference_mode():
            return self._forward(batch, pool)

    def _forward(self, batch: RaggedBatch, pool: KvPool) -> torch.Tensor:
        bucket = self._bucket(batch)
        if bucket is None:
            return self.decoder.forward(batch, pool)
        if bucket not in self._graphs:
            self._graphs[bucket] = self._captured(bucket, pool)
        graph = self._graphs[bucket]
        if graph is None:
            return self.decoder.forward(batch, pool)
        num_rows = len(batch.tokens)
        _fill(graph.batch, batch, pool.scratch_slot)
        graph.replay()
        self.num_replayed += 1
        logits = self._logits[:num_rows]
        return logits if len(batch.rows) == num_rows else logits[batch.rows]

    def _bucket(self, batch: RaggedBatch) -> tuple[int, int] | None:
        """(rows, longest sequence) of the graph that can run the batch, or None."""
        meta = batch.attention
        num_rows = meta.num_requests
        if (
            meta.max_q_len != 1
            or len(batch.tokens) != num_rows
            or num_rows > ROWS[-1]
            or meta.mask is not None
            or batch.embeds is not None
            or batch.hidden is not None
            or batch.adapters
        ):
            return None
        rows = next(rows for rows in ROWS if rows >= num_rows)
        if len(meta.pages) > rows * PAGES_PER_ROW:
            return None
        return rows, max(MIN_KV_LEN, 1 << (meta.max_kv_len - 1).bit_length())

    def _captured(self, bucket: tuple[int, int], pool: KvPool) -> _Graph | None:
        """The bucket's graph; None if there is no memory for it: its steps run kernel by kernel from then on."""
        rows, max_kv_len = bucket
        batch = _idle_batch(rows, max_kv_len, pool.scratch_slot, self.device)
        batch.logits = self._logits[:rows]
        try:
            replay = self._capture(lambda: self.decoder.forward(batch, pool))
        except torch.OutOfMemoryError as error:
            log.warning("no memory to capture a decode step of %d rows: %s", rows, error)
            return None
        log.info("captured a decode step of %d rows, sequences of up to %d tokens", rows, max_kv_len)
        return _Graph(batch, replay)


def _idle_batch(rows: int, max_kv_len: int, scratch_slot: int, device: torch.device) -> RaggedBatch:
    """Buffers of a bucket; its rows see nothing and write to the scratch slot."""

    def whole(size: int, value: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((size,), value, dtype=dtype, device=device)

    def steps(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.arange(size, dtype=dtype, device=device)

    attention = AttentionMeta(
        qo_indptr=steps(rows + 1, torch.int32),
        page_indptr=whole(rows + 1, 0, torch.int32),
        pages=whole(rows * PAGES_PER_ROW, 0, torch.int32),
        kv_lens=whole(rows, 0, torch.int32),
        causal=whole(rows, 1, torch.int32),
        q_lens=[1] * rows,
        max_kv_len=max_kv_len,
    )
    return RaggedBatch(
        tokens=whole(rows, 0, torch.int64),
        positions=whole(rows, 0, torch.int64),
        slots=whole(rows, scratch_slot, torch.int64),
        rows=steps(rows, torch.int64),
        attention=attention,
    )


def _fill(target: RaggedBatch, batch: RaggedBatch, scratch_slot: int) -> None:
    """Put a batch into a bucket's buffers; rows beyond it become idle."""
    num_rows = len(batch.tokens)
    to, given = target.attention, batch.attention
    for buffer, values, idle in (
        (target.tokens, batch.tokens, 0),
        (target.positions, batch.positions, 0),
        (target.slots, batch.slots, scratch_slot),
        (to.kv_lens, given.kv_lens, 0),
    ):
        buffer[:num_rows].copy_(values)
        if num_rows < len(buffer):
            buffer[num_rows:].fill_(idle)
    to.page_indptr[: num_rows + 1].copy_(given.page_indptr)
    to.pages[: len(given.pages)].copy_(given.pages)


class _CudaCapture:
    """Captures CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Callable[[], None]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # kernels compile and libraries make their workspaces outside of the capture
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            compute()
        return graph.replay
