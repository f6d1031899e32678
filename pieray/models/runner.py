"""ModelRunner: a model on a device with its page pool; one call is one ragged step."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pieray.errors import DeviceLost, InvalidRequest, ModelError, PierayError, Unsupported
from pieray.kernels.decode_rows_cpu import zero_bad_rows
from pieray.kernels.sample_cpu import is_supported
from pieray.messages import GREEDY, Distribution, Entropy, Hidden, Logits, Logprobs, Output, Sample, Sampler
from pieray.models import batch
from pieray.models import sampler as sampling
from pieray.models.adapter_file import AdapterFile
from pieray.models.batch import NO_ROWS, DecodeRows, ForwardItem
from pieray.models.config import ModelConfig
from pieray.models.decode_graphs import GraphedDecoder
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.host_pool import HostPool, budget_of
from pieray.models.kv_pool import KvPool, TokenRange
from pieray.models.lora import LoraAdapter
from pieray.models.sampler import Bias
from pieray.models.weights import load_weights

log = logging.getLogger(__name__)

NO_SCORES = np.zeros(0, np.float32)
SLICE_BYTES = 64 << 20
"""Of float32 logits that are looked at in one go."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
#: an error in place of a value fails that output alone
OutputValue = int | tuple[npt.NDArray[np.uint32], F32] | F32 | PierayError
#: what an item gets: a value per output, in order, or the error that failed this item alone
StepResult = list[OutputValue] | PierayError


@dataclass(slots=True)
class Drawn:
    """What the rows of a step have drawn."""

    tokens: I64  # [R]; of rows that failed, anything
    scores: F32  # [S], log p of the tokens of `DecodeRows.scored`, before bias, temperature and filters
    errors: dict[int, PierayError]  # rows that failed alone


class ModelRunner:
    """Owns decoder, pool, `swap_bytes` of host memory for swapped pages, and device; not thread-safe: one thread steps
    it.

    All that computes raises DeviceLost once the device is dead, as it is after a failed assertion or an illegal access
    in a kernel: nothing can be computed in this process any more.
    """

    def __init__(
        self, config: ModelConfig, decoder: Decoder | GraphedDecoder | CpuDecoder, pool: KvPool, swap_bytes: int = 0
    ) -> None:
        self.config = config
        self.decoder = decoder
        self.pool = pool
        self.host_pool = HostPool(pool, swap_bytes)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str | None = None,
        num_pages: int | None = None,
        page_size: int = 16,
        threads: int = 1,
        kv_bytes: int = 1 << 28,
        *,
        cuda_graphs: bool = True,
        swap_bytes: int = 0,
    ) -> ModelRunner:
        """Load the model folder `path`; ModelError if it cannot be served.

        `dtype` None takes the config's; `num_pages` None takes what fits in `kv_bytes`.  `threads` are those of torch
        in this whole process (CPU only).  `cuda_graphs` replays decode steps as graphs (CUDA only).
        `swap_bytes` of host memory take swapped pages, see `budget_of`.
        """
        config = ModelConfig.from_folder(path)
        name = dtype or config.dtype
        if name not in DTYPES:
            raise ModelError(f"dtype {name!r}: supported are {', '.join(DTYPES)}")
        if device == "cpu":
            torch.set_num_threads(threads)
        weights = load_weights(path, config, DTYPES[name], device)
        decoder: Decoder | GraphedDecoder | CpuDecoder
        if CpuDecoder.can_run(config, weights):
            decoder = CpuDecoder(config, weights)
        else:
            decoder = Decoder(config, weights)
            if cuda_graphs and decoder.device.type == "cuda":
                decoder = GraphedDecoder(decoder)
        pages = num_pages or KvPool.pages_for(config, page_size, DTYPES[name], kv_bytes)
        pool = KvPool(config, pages, page_size, DTYPES[name], device)
        log.info("%s on %s as %s: %d pages of %d tokens, %d bytes", path, device, name, pages, page_size, pool.nbytes)
        return cls(config, decoder, pool, budget_of(swap_bytes, pool.nbytes))

    def step(self, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]) -> list[StepResult]:
        """As `decode`, without rows."""
        return self.decode(NO_ROWS, items, outputs)[1]

    def decode(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, list[StepResult]]:
        """Compute rows and items in one ragged batch; `outputs[i]` are those wanted of `items[i]`.

        Never raises for a row or an item: one that is invalid, not finite or fails to compute gets a PierayError in its
        place, and the others are computed as if it had not been there; so does a draw that may give no token.
        `items[i].rows` is overwritten.  Raises DeviceLost.
        """
        if not items and isinstance(self.decoder, CpuDecoder) and len(rows):
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

    def _draw_rows(self, decoder: CpuDecoder, rows: DecodeRows) -> Drawn | None:
        """A step of rows alone in one call; None if one of them fails, which is found out as with any others."""
        special = sorted({*rows.samplers, *rows.masks}) if rows.samplers or rows.masks else []
        try:
            for sampler in rows.samplers.values():
                _check_sampler(sampler, self.config.vocab_size)
            found = decoder.decode_rows(rows, self.pool, special)
        except (InvalidRequest, ValueError, MemoryError):
            return None
        if found is None:
            return None
        tokens, is_bad = found
        errors = {} if is_bad is None else {row: _not_finite() for row in np.flatnonzero(is_bad).tolist()}
        if not special and not len(rows.scored):
            return Drawn(tokens, NO_SCORES, errors)
        drawn = _drawn(rows, decoder.row_logits(len(rows)), special, torch.from_numpy(tokens))
        drawn.errors |= errors
        return drawn

    def _decode_rows(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, list[StepResult]]:
        """As `decode`, of valid items."""
        errors: dict[int, PierayError] = dict(batch.row_errors(rows, self.config, self.pool))
        for row, sampler in rows.samplers.items():
            try:
                _check_sampler(sampler, self.config.vocab_size)
            except (InvalidRequest, ValueError) as error:
                errors[row] = InvalidRequest(f"sampler: {error}")
        if not errors:
            return self._compute(rows, items, outputs)
        kept = np.setdiff1d(np.arange(len(rows)), list(errors))
        part, found = self._compute(rows.take(kept), items, outputs)
        return _spread(part, kept, rows, errors), found

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

    def embed(self, tokens: npt.NDArray[np.uint32]) -> F32:
        """The embeddings of tokens, float32 [n, hidden]; InvalidRequest for one outside the vocabulary."""
        if int(tokens.max(initial=0)) >= self.config.vocab_size:
            raise InvalidRequest(f"token {int(tokens.max())} is outside the vocabulary of {self.config.vocab_size}")
        with self._device(), torch.inference_mode():
            ids = torch.from_numpy(tokens.astype(np.int64)).to(self.decoder.device)
            values: F32 = self.decoder.embeddings(ids).float().cpu().numpy()
        return values

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

    def _prepare(self, item: ForwardItem, wanted: Sequence[Output]) -> None:
        num_tokens, vocab = len(item.tokens), self.config.vocab_size
        for output in wanted:
            if not -num_tokens <= output.row - item.start < num_tokens:
                raise InvalidRequest(f"row {output.row} is outside of {num_tokens} tokens from {item.start} on")
            if isinstance(output, Sample):
                _check_sampler(output.sampler, vocab)
            elif isinstance(output, Logprobs):
                _check_ids(output, vocab)
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
            failure = ModelError(f"the step failed: {error}")
            if len(items) + len(rows) == 1:
                nothing = Drawn(np.zeros(len(rows), np.int64), np.zeros(len(rows.scored), np.float32), {})
                nothing.errors |= dict.fromkeys(range(len(rows)), failure)
                return nothing, [failure for _ in items]
            log.warning("a step of %d failed, trying each alone: %s", len(items) + len(rows), error)
        drawn = Drawn(np.zeros(len(rows), np.int64), np.zeros(len(rows.scored), np.float32), {})
        for row in range(len(rows)):
            alone = np.array([row])
            part, _ = self._compute(rows.take(alone), [], [])
            drawn = _spread(part, alone, rows, drawn.errors, drawn)
        found = [self._compute(NO_ROWS, [item], [asked])[1][0] for item, asked in zip(items, outputs, strict=True)]
        return drawn, found

    def _run(
        self, rows: DecodeRows, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]
    ) -> tuple[Drawn, list[StepResult]]:
        ragged = batch.build_batch(items, self.pool.page_size, self.decoder.device, rows)
        if any(isinstance(output, Hidden) for wanted in outputs for output in wanted):
            shape = len(ragged.rows), self.config.hidden_size
            ragged.hidden = torch.empty(shape, dtype=torch.float32, device=self.decoder.device)
        logits = self.decoder.forward(ragged, self.pool)
        logits, bad = _finite(logits)
        values = _Answers(items, outputs, logits, ragged.hidden, len(rows)).collect(bad)
        special = sorted({*rows.samplers, *rows.masks})
        logits = logits[: len(rows)]
        drawn = _drawn(rows, logits, special, _plain(rows, logits, special))
        drawn.errors |= {row: _not_finite() for row in bad if row < len(rows)}
        if logits.is_cuda and not len(ragged.rows):  # nothing has waited for the device: the next step's time would
            torch.cuda.synchronize(logits.device)  # be this one's too
        return drawn, values


def _spread(
    part: Drawn, kept: I64, rows: DecodeRows, errors: dict[int, PierayError], into: Drawn | None = None
) -> Drawn:
    """What some of the rows have drawn, as if of all."""
    whole = into or Drawn(np.zeros(len(rows), np.int64), np.zeros(len(rows.scored), np.float32), {})
    whole.tokens[kept] = part.tokens
    whole.scores[np.isin(rows.scored, kept)] = part.scores
    whole.errors = errors | {int(kept[row]): error for row, error in part.errors.items()}
    return whole


def _finite(logits: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The logits, and rows that are not finite; such rows are zeroed, so that no sampler trips over them."""
    if is_supported(logits):
        return logits, zero_bad_rows(logits)
    is_finite = logits.amax(-1).isfinite() if len(logits) else logits.new_ones(0, dtype=torch.bool)
    if bool(is_finite.all()):
        return logits, []
    return logits.masked_fill(~is_finite[:, None], 0), (~is_finite).nonzero()[:, 0].tolist()


def _not_finite() -> PierayError:
    return ModelError("the logits of this item are not finite")


def _check_sampler(sampler: Sampler, vocab: int) -> None:
    """What the kernels cannot bear; InvalidRequest or ValueError."""
    num_bytes = (vocab + 7) // 8
    if sampler.allowed and len(sampler.allowed) != num_bytes:
        raise InvalidRequest(f"a mask of {vocab} tokens takes {num_bytes} bytes, given {len(sampler.allowed)}")
    if sampler.bias_tokens:
        ids, values = _bias(sampler)
        if len(ids) != len(values) or int(ids.max(initial=0)) >= vocab or not (values < np.inf).all():
            raise InvalidRequest(f"a bias is a value below infinity for each token id below {vocab}")


def _bias(sampler: Sampler) -> Bias:
    return np.frombuffer(sampler.bias_tokens, "<u4"), np.frombuffer(sampler.bias_values, "<f4")


def _check_ids(output: Logprobs, vocab: int) -> None:
    ids = np.frombuffer(output.token_ids, "<u4")
    if len(ids) and int(ids.max()) >= vocab:
        raise InvalidRequest(f"token {int(ids.max())} is outside the vocabulary of {vocab}")


def _restricted(logits: torch.Tensor, samplers: Sequence[Sampler], masks: Sequence[bytes]) -> torch.Tensor:
    """The logits behind each row's bias, its sampler's mask and one more (b"": all allowed)."""
    biased = sampling.add_bias(logits, [_bias(one) if one.bias_tokens else None for one in samplers])
    allowed = [one.allowed or mask or None for one, mask in zip(samplers, masks, strict=True)]
    masked = sampling.mask_tokens(biased, allowed)
    both = [mask if one.allowed and mask else None for one, mask in zip(samplers, masks, strict=True)]
    return sampling.mask_tokens(masked, both)


def _banned(logits: torch.Tensor) -> list[int]:
    """Rows in which nothing may be drawn."""
    rows: list[int] = (logits.amax(-1) == -torch.inf).nonzero()[:, 0].tolist()
    return rows


def _no_token() -> PierayError:
    return InvalidRequest("the sampler allows no token: all are banned by its bias or its mask")


def _drawn(rows: DecodeRows, logits: torch.Tensor, special: list[int], tokens: torch.Tensor) -> Drawn:
    """The `tokens` drawn from plain logits, with those of the `special` rows drawn now, and the scores of all."""
    errors: dict[int, PierayError] = {}
    if special:
        places = np.array(special)
        samplers = [rows.samplers.get(row, GREEDY) for row in special]
        restricted = _restricted(logits[places], samplers, [rows.masks.get(row, b"") for row in special])
        tokens[places] = sampling.sample(restricted, rows.choices[places])
        errors = {special[place]: _no_token() for place in _banned(restricted)}
    scores = NO_SCORES
    if len(rows.scored):
        scores = sampling.logprobs(logits[rows.scored], tokens[rows.scored, None])[:, 0].cpu().numpy()
    return Drawn(tokens.cpu().numpy(), scores, errors)


def _plain(rows: DecodeRows, logits: torch.Tensor, special: list[int]) -> torch.Tensor:
    """Draws from plain logits, for all rows but the `special` ones: int64 [R]."""
    if not special:
        return sampling.sample(logits, rows.choices)
    plain = np.setdiff1d(np.arange(len(rows)), special)
    tokens = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
    if len(plain):
        tokens[plain] = sampling.sample(logits, rows.choices[plain], plain)
    return tokens


class _Asked(NamedTuple):
    """One output, and where its value goes."""

    item: int
    place: int
    row: int  # of the logits
    output: Any
    counter: int


def _num_ids(asked: _Asked) -> float:
    return asked.output.k or float("inf")


class _Answers:
    """From the logits of a step to each item's values: vectorised calls per kind of output, each over as many rows as
    fit in SLICE_BYTES of float32, so that no copy of all rows is ever made."""

    def __init__(
        self,
        items: Sequence[ForwardItem],
        outputs: Sequence[Sequence[Output]],
        logits: torch.Tensor,
        hidden: torch.Tensor | None,
        first_row: int,
    ) -> None:
        self.logits = logits
        self.hidden = hidden
        self.first_row = first_row
        self.values: list[list[OutputValue]] = [[0] * len(wanted) for wanted in outputs]
        self.groups: dict[tuple[type, bool], list[_Asked]] = {}
        self.owner: list[int] = []  # of rows from `first_row` on
        for index, (item, wanted) in enumerate(zip(items, outputs, strict=True)):
            row_of = {row: first_row + len(self.owner) + place for place, row in enumerate(item.rows)}
            self.owner += [index] * len(item.rows)
            for place, output in enumerate(wanted):
                row = (output.row - item.start) % len(item.tokens)
                counter = item.kv_len + row if item.counters is None else int(item.counters[row])
                kind = type(output), isinstance(output, Sample) and output.is_scored
                self.groups.setdefault(kind, []).append(_Asked(index, place, row_of[row], output, counter))

    def collect(self, bad: Sequence[int]) -> list[StepResult]:
        """The items' values; those with a bad row of logits get an error."""
        answer: dict[type, Callable[[list[_Asked], torch.Tensor], Sequence[OutputValue]]] = {
            Sample: self._sample,
            Distribution: self._distribution,
            Logprobs: self._logprobs,
            Logits: lambda _, logits: list(logits.float().cpu().numpy().copy()),
            Entropy: lambda _, logits: list(sampling.entropies(logits).cpu().numpy()[:, None]),
        }
        most = max(1, SLICE_BYTES // (4 * max(self.logits.shape[-1], 1)))
        for (kind, _), group in self.groups.items():
            if kind is Distribution:  # rows that want as many tokens share a slice
                group.sort(key=_num_ids)
            for start in range(0, len(group), most):
                part = group[start : start + most]
                rows = [asked.row for asked in part]
                values = self._states(rows) if kind is Hidden else answer[kind](part, self._picked(rows))
                for asked, value in zip(part, values, strict=True):
                    self.values[asked.item][asked.place] = value
        failed = {self.owner[row - self.first_row]: _not_finite() for row in bad if row >= self.first_row}
        return [failed.get(index, values) for index, values in enumerate(self.values)]

    def _picked(self, rows: list[int]) -> torch.Tensor:
        """Rows of the logits, without a copy where they are neighbours."""
        first = rows[0]
        if rows == list(range(first, first + len(rows))):
            return self.logits[first : first + len(rows)]
        return self.logits[rows]

    def _sample(self, group: list[_Asked], logits: torch.Tensor) -> Sequence[OutputValue]:
        samplers = [asked.output.sampler for asked in group]
        restricted = _restricted(logits, samplers, [b""] * len(group))
        drawn = sampling.sample(restricted, sampling.choices_of(samplers, [asked.counter for asked in group]))
        values: list[OutputValue] = drawn.tolist()
        if group[0].output.is_scored:
            scores = sampling.logprobs(logits, drawn[:, None]).cpu().numpy()
            values = [(np.array([token], np.uint32), scores[i]) for i, token in enumerate(drawn.tolist())]
        for place in _banned(restricted) if restricted is not logits else ():
            values[place] = _no_token()
        return values

    def _distribution(self, group: list[_Asked], logits: torch.Tensor) -> Sequence[OutputValue]:
        vocab = logits.shape[-1]
        sizes = [min(asked.output.k or vocab, vocab) for asked in group]
        ids, probs = (tensor.cpu().numpy() for tensor in sampling.distribution(logits, max(sizes)))
        return [(ids[i, :n].astype(np.uint32), probs[i, :n].copy()) for i, n in enumerate(sizes)]

    def _logprobs(self, group: list[_Asked], logits: torch.Tensor) -> Sequence[OutputValue]:
        lists = [np.frombuffer(asked.output.token_ids, "<u4") for asked in group]
        rows = np.repeat(np.arange(len(group)), [len(one) for one in lists])
        ids = torch.from_numpy(np.concatenate(lists).astype(np.int64))
        values = sampling.logprobs_at(logits, torch.from_numpy(rows), ids).cpu().numpy()
        return np.split(values, np.cumsum([len(one) for one in lists])[:-1])

    def _states(self, rows: list[int]) -> Sequence[OutputValue]:
        assert self.hidden is not None
        return list(self.hidden[rows].cpu().numpy())
