"""Decode steps as CUDA graphs: a step of one token a sequence is launched as a whole, not kernel by kernel.

A small model's decode step is some hundreds of kernels of a few microseconds; launching them one by one from Python
takes longer than running them.  A graph is captured once per *bucket*, a number of rows and a bound on their lengths,
over columns that stay where they are (`StagedRows`), from the tokens to the draws.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pieray.arrays import I64
from pieray.kernels.meta import DrawColumns
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import DecodeRows, RaggedBatch, row_errors
from pieray.models.decoder import Decoder
from pieray.models.kv_pool import KvPool
from pieray.models.lora import LoraAdapter
from pieray.models.sampler import sample_torch
from pieray.models.staged_rows import StagedRows

log = logging.getLogger(__name__)

#: rows of a graph: a batch runs in the smallest that holds it, with idle rows for the rest
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
#: the shortest bound on the length of sequences; bounds double, since the kernel's split of keys depends on them
MIN_KV_LEN = 512
#: pages that a row of a graph has at most
PAGES_PER_ROW = 2048

Compute = Callable[[], None]
#: from a computation to what runs it again, over the same memory
Capture = Callable[[Compute], Callable[[], object]]
#: sample_rows of kernels/sample_triton.py
Draw = Callable[[torch.Tensor, DrawColumns, torch.Tensor | None, torch.Tensor, torch.Tensor], None]


@dataclass(slots=True)
class _Graph:
    """One bucket's columns and what computes over them."""

    staged: StagedRows
    replay: Callable[[], object]


class GraphedDecoder:
    """A `Decoder` whose plain decode steps are replayed; all others go through it as they are.

    Plain means: one token and at most one row of logits per item, no mask, embeddings, adapter or hidden states.  Rows
    are a copy to the device, a replay that ends with their draws, and a copy back.  The logits of a replayed step lie
    in a buffer of all buckets: they hold until the next step.  All graphs share one pool of memory for what lies
    between, which is why only one may run at a time.
    """

    def __init__(self, decoder: Decoder, capture: Capture | None = None, draw: Draw | None = None) -> None:
        self.decoder = decoder
        self.device = decoder.device
        self._capture = capture or _CudaCapture()
        self._draw = draw or _triton_draw()
        self._logits = decoder.weights.embed.new_empty((ROWS[-1], decoder.config.vocab_size))
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
            graph = (
                self._graph(batch.attention.num_requests, batch.attention.max_kv_len, pool)
                if _is_plain(batch)
                else None
            )
            if graph is None:
                return self.decoder.forward(batch, pool)
            graph.staged.take(batch)
            self._replay(graph)
            logits = self.row_logits(len(batch.tokens))
            return logits if len(batch.rows) == len(logits) else logits[batch.rows]

    def decode_rows(self, rows: DecodeRows, pool: KvPool, special: Sequence[int] = ()) -> tuple[I64, I64 | None] | None:
        """Run rows and draw from their plain logits, but for those at `special`.

        Returns their tokens [R], and, if there are any, which rows have logits that are not finite [R]; None if they
        cannot be replayed, or a row cannot be computed.  `row_logits` holds until the next step.
        """
        count, longest = len(rows), int(rows.kv_lens.max(initial=0)) + 1
        num_pages = -(-longest // pool.page_size)
        if rows.adapters or num_pages > rows.pages.shape[1]:
            return None
        seen = replace(rows, pages=rows.pages[:, :num_pages])
        if row_errors(seen, self.decoder.config, pool):
            return None
        with torch.inference_mode():
            graph = self._graph(count, longest, pool)
            if graph is None:
                return None
            graph.staged.write(seen, num_pages)
            self._replay(graph)
            tokens, is_bad = graph.staged.drawn.read(count)
            others = np.setdiff1d(np.flatnonzero(rows.choices["typical_p"] < 1), special)
            if len(others):
                picked = self._logits[torch.from_numpy(others).to(self.device)]
                tokens[others] = sample_torch(picked, rows.choices[others]).cpu().numpy()
        return tokens, is_bad if is_bad.any() else None

    def row_logits(self, num_rows: int) -> torch.Tensor:
        """Logits [R, vocab] of the rows that were replayed last."""
        return self._logits[:num_rows]

    def _replay(self, graph: _Graph) -> None:
        graph.replay()
        self.num_replayed += 1

    def _graph(self, num_rows: int, longest: int, pool: KvPool) -> _Graph | None:
        """The graph of the smallest bucket that holds so many rows of up to so many tokens; None if none can."""
        if num_rows > ROWS[-1] or longest > PAGES_PER_ROW * pool.page_size:
            return None
        bucket = next(rows for rows in ROWS if rows >= num_rows), max(MIN_KV_LEN, 1 << (longest - 1).bit_length())
        if bucket not in self._graphs:
            self._graphs[bucket] = self._captured(*bucket, pool)
        return self._graphs[bucket]

    def _captured(self, num_rows: int, max_kv_len: int, pool: KvPool) -> _Graph | None:
        """The bucket's graph; None if there is no memory for it: its steps run kernel by kernel from then on."""
        logits = self.row_logits(num_rows)
        try:
            staged = StagedRows(num_rows, max_kv_len, pool, self.device)
            staged.batch.logits = logits

            def compute() -> None:
                self.decoder.forward(staged.batch, pool)
                self._draw(logits, staged.draws, None, staged.drawn.tokens, staged.drawn.is_bad)

            replay = self._capture(compute)
        except torch.OutOfMemoryError as error:
            log.warning("no memory to capture a decode step of %d rows: %s", num_rows, error)
            return None
        log.info("captured a decode step of %d rows, sequences of up to %d tokens", num_rows, max_kv_len)
        return _Graph(staged, replay)


def _is_plain(batch: RaggedBatch) -> bool:
    meta = batch.attention
    return (
        meta.max_q_len == 1
        and len(batch.tokens) == meta.num_requests
        and meta.mask is None
        and batch.embeds is None
        and batch.hidden is None
        and not batch.adapters
    )


def _triton_draw() -> Draw:
    from pieray.kernels.sample_triton import sample_rows

    return sample_rows


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
