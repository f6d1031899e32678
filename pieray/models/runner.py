"""ModelRunner: a model on a device with its page pool; one call is one ragged step."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pieray.adapters import AdapterFile
from pieray.errors import DeviceLost, InvalidRequest, ModelError, PierayError, Unsupported
from pieray.models import batch, sampler
from pieray.models.batch import ForwardItem
from pieray.models.config import ModelConfig
from pieray.models.decode_graphs import GraphedDecoder
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.kv_pool import KvPool, TokenRange
from pieray.models.lora import LoraAdapter
from pieray.models.sampler import Bias, SamplingParams
from pieray.models.weights import load_weights

log = logging.getLogger(__name__)

SLICE_BYTES = 64 << 20
"""Of float32 logits that are looked at in one go."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Sample:
    """Draw one token after token `row` of the item (-1 = its last); answers an int.

    `counter` makes the draw of a seed unique: use the sequence length.  `bias` is distinct token ids and what is added
    to their logits; `allowed` is [vocab] bits, little-endian, 1 = may be drawn.  If nothing may be, the answer is
    InvalidRequest.
    """

    row: int = -1
    params: SamplingParams = field(default_factory=SamplingParams)
    counter: int = 0
    allowed: bytes | None = None
    bias: Bias | None = None


@dataclass(frozen=True, slots=True)
class ScoredSample(Sample):
    """The same; answers (ids uint32 [1], log p float32 [1]): of the token before bias, temperature and filters."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The k most likely next tokens, in order; answers (ids uint32 [k], probabilities float32 [k]); k = 0: all."""

    row: int = -1
    k: int = 0


@dataclass(frozen=True, slots=True)
class Logprobs:
    """log p of each of `token_ids` (uint32 [n]) as the next token; answers float32 [n]."""

    row: int = -1
    token_ids: npt.NDArray[np.uint32] | tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Logits:
    """The raw logits; answers float32 [vocab]."""

    row: int = -1


@dataclass(frozen=True, slots=True)
class Entropy:
    """Entropy of the next token, in nats; answers float32 [1]."""

    row: int = -1


@dataclass(frozen=True, slots=True)
class Hidden:
    """The last hidden state, behind the final norm; answers float32 [hidden]."""

    row: int = -1


OutputRequest = Sample | Distribution | Logprobs | Logits | Entropy | Hidden
F32 = npt.NDArray[np.float32]
#: an error in place of a value fails that output alone
OutputValue = int | tuple[npt.NDArray[np.uint32], F32] | F32 | PierayError
#: what an item gets: a value per request, in order, or the error that failed this item alone
StepResult = list[OutputValue] | PierayError


class ModelRunner:
    """Owns decoder, pool and device; not thread-safe: one thread steps it.

    All that computes raises DeviceLost once the device is dead, as it is after a failed assertion or an illegal access
    in a kernel: nothing can be computed in this process any more.
    """

    def __init__(self, config: ModelConfig, decoder: Decoder | GraphedDecoder | CpuDecoder, pool: KvPool) -> None:
        self.config = config
        self.decoder = decoder
        self.pool = pool
        self.default_seed = secrets.randbits(63)

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
    ) -> ModelRunner:
        """Load the model folder `path`; ModelError if it cannot be served.

        `dtype` None takes the config's; `num_pages` None takes what fits in `kv_bytes`.  `threads` are those of torch
        in this whole process (CPU only).  `cuda_graphs` replays decode steps as graphs (CUDA only).
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
        return cls(config, decoder, pool)

    def step(self, items: Sequence[ForwardItem], outputs: Sequence[Sequence[OutputRequest]]) -> list[StepResult]:
        """Compute all items in one ragged batch; `outputs[i]` are those wanted of `items[i]`.

        Never raises for an item: one that is invalid, not finite or fails to compute gets a PierayError in its place,
        and the others are computed as if it had not been there.  `items[i].rows` is overwritten.
        Raises DeviceLost.
        """
        results: list[StepResult] = [[] for _ in items]
        good = []
        are_valid = batch.are_valid(items, self.config, self.pool)
        for index, (item, wanted) in enumerate(zip(items, outputs, strict=True)):
            try:
                self._prepare(item, wanted)
                if not are_valid:
                    batch.validate_item(item, self.config, self.pool)
                good.append(index)
            except InvalidRequest as error:
                results[index] = error
        good.sort(key=lambda i: 0 if (adapter := items[i].adapter) is None else adapter.serial)
        for index, result in zip(
            good, self._compute([items[i] for i in good], [outputs[i] for i in good]), strict=True
        ):
            results[index] = result
        return results

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

    def _prepare(self, item: ForwardItem, wanted: Sequence[OutputRequest]) -> None:
        num_tokens, vocab = len(item.tokens), self.config.vocab_size
        for request in wanted:
            if not -num_tokens <= request.row < num_tokens:
                raise InvalidRequest(f"row {request.row} is outside of {num_tokens} tokens")
            if isinstance(request, Sample):
                _check_sample(request, vocab)
            elif isinstance(request, Logprobs):
                _check_ids(request, vocab)
            elif isinstance(request, Distribution) and request.k < 0:
                raise InvalidRequest(f"k is {request.k}; it must be 0 (all) or more")
        item.rows = sorted({request.row % num_tokens for request in wanted})

    def _compute(self, items: Sequence[ForwardItem], outputs: Sequence[Sequence[OutputRequest]]) -> list[StepResult]:
        if not items:
            return []
        try:
            with self._device():
                return self._run(items, outputs)
        except (RuntimeError, MemoryError) as error:
            if len(items) == 1:
                return [ModelError(f"the step failed: {error}")]
            log.warning("a step of %d items failed, trying each alone: %s", len(items), error)
            return [self._compute([item], [wanted])[0] for item, wanted in zip(items, outputs, strict=True)]

    def _run(self, items: Sequence[ForwardItem], outputs: Sequence[Sequence[OutputRequest]]) -> list[StepResult]:
        ragged = batch.build_batch(items, self.pool.page_size, self.decoder.device)
        if any(isinstance(request, Hidden) for wanted in outputs for request in wanted):
            shape = len(ragged.rows), self.config.hidden_size
            ragged.hidden = torch.empty(shape, dtype=torch.float32, device=self.decoder.device)
        logits = self.decoder.forward(ragged, self.pool)
        values = _Answers(items, outputs, logits, ragged.hidden, self.default_seed).collect()
        if logits.is_cuda and not len(ragged.rows):  # nothing has waited for the device: the next step's time would
            torch.cuda.synchronize(logits.device)  # be this one's too
        return values


def _check_sample(request: Sample, vocab: int) -> None:
    request.params.check()
    num_bytes = (vocab + 7) // 8
    if request.allowed is not None and len(request.allowed) != num_bytes:
        raise InvalidRequest(f"a mask of {vocab} tokens takes {num_bytes} bytes, given {len(request.allowed)}")
    if request.bias is not None:
        ids, values = request.bias
        if len(ids) != len(values) or int(ids.max(initial=0)) >= vocab or not (values < np.inf).all():
            raise InvalidRequest(f"a bias is a value below infinity for each token id below {vocab}")


def _check_ids(request: Logprobs, vocab: int) -> None:
    ids = np.asarray(request.token_ids, np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise InvalidRequest(f"token {wrong} is outside the vocabulary of {vocab}")


def _num_ids(one: tuple[int, int, int, OutputRequest]) -> float:
    request = one[3]
    return request.k or float("inf") if isinstance(request, Distribution) else 0


class _Answers:
    """From the logits of a step to each item's values: vectorised calls per kind of request, each over as many rows as
    fit in SLICE_BYTES of float32, so that no copy of all rows is ever made."""

    def __init__(
        self,
        items: Sequence[ForwardItem],
        outputs: Sequence[Sequence[OutputRequest]],
        logits: torch.Tensor,
        hidden: torch.Tensor | None,
        default_seed: int,
    ) -> None:
        self.logits = logits
        self.hidden = hidden
        self.default_seed = default_seed
        self.values: list[list[OutputValue]] = [[0] * len(wanted) for wanted in outputs]
        self.groups: dict[type, list[tuple[int, int, int, OutputRequest]]] = {}
        self.owner: list[int] = []
        for index, (item, wanted) in enumerate(zip(items, outputs, strict=True)):
            row_of = {row: len(self.owner) + place for place, row in enumerate(item.rows)}
            self.owner += [index] * len(item.rows)
            for place, request in enumerate(wanted):
                where = (index, place, row_of[request.row % len(item.tokens)], request)
                self.groups.setdefault(type(request), []).append(where)

    def collect(self) -> list[StepResult]:
        bad = self._not_finite()
        answer: dict[type, Callable[..., Sequence[OutputValue]]] = {
            Sample: self._sample,
            ScoredSample: self._scored_sample,
            Distribution: self._distribution,
            Logprobs: self._logprobs,
            Logits: self._logits,
            Entropy: self._entropy,
        }
        most = max(1, SLICE_BYTES // (4 * max(self.logits.shape[-1], 1)))
        for kind, group in self.groups.items():
            if kind is Distribution:  # rows that want as many tokens share a slice
                group.sort(key=_num_ids)
            for start in range(0, len(group), most):
                part = group[start : start + most]
                rows = [row for _, _, row, _ in part]
                if kind is Hidden:
                    values: Sequence[OutputValue] = self._states(rows)
                else:
                    values = answer[kind](self._picked(rows), [one[3] for one in part])
                for (index, place, _, _), value in zip(part, values, strict=True):
                    self.values[index][place] = value
        return [bad.get(index, values) for index, values in enumerate(self.values)]

    def _picked(self, rows: list[int]) -> torch.Tensor:
        """Rows of the logits, without a copy where they are neighbours."""
        first = rows[0]
        if rows == list(range(first, first + len(rows))):
            return self.logits[first : first + len(rows)]
        return self.logits[rows]

    def _not_finite(self) -> dict[int, PierayError]:
        """Items with a row that is not finite; such rows are zeroed, so that no sampler trips over them."""
        if not len(self.logits):
            return {}
        is_finite = self.logits.amax(-1).isfinite()
        if bool(is_finite.all()):
            return {}
        rows = (~is_finite).nonzero()[:, 0].tolist()
        self.logits = self.logits.masked_fill(~is_finite[:, None], 0)
        return {self.owner[row]: ModelError("the logits of this item are not finite") for row in rows}

    def _sample(self, logits: torch.Tensor, group: Sequence[Sample]) -> Sequence[OutputValue]:
        biased = sampler.add_bias(logits, [request.bias for request in group])
        masked = sampler.mask_tokens(biased, [request.allowed for request in group])
        params, counters = [request.params for request in group], [request.counter for request in group]
        tokens: list[OutputValue] = sampler.sample(masked, params, counters, self.default_seed).tolist()
        if masked is not logits:
            for row in (masked.amax(-1) == -torch.inf).nonzero()[:, 0].tolist():
                tokens[row] = InvalidRequest("the sampler allows no token: all are banned by its bias or its mask")
        return tokens

    def _scored_sample(self, logits: torch.Tensor, group: Sequence[Sample]) -> Sequence[OutputValue]:
        drawn = self._sample(logits, group)
        ids = torch.tensor([[token if isinstance(token, int) else 0] for token in drawn], device=logits.device)
        scores = sampler.logprobs(logits, ids).cpu().numpy()
        return [
            (np.array([token], np.uint32), scores[i]) if isinstance(token, int) else token
            for i, token in enumerate(drawn)
        ]

    def _distribution(self, logits: torch.Tensor, group: Sequence[Distribution]) -> Sequence[OutputValue]:
        vocab = logits.shape[-1]
        sizes = [min(request.k or vocab, vocab) for request in group]
        ids, probs = (tensor.cpu().numpy() for tensor in sampler.distribution(logits, max(sizes)))
        return [(ids[i, :n].astype(np.uint32), probs[i, :n].copy()) for i, n in enumerate(sizes)]

    def _logprobs(self, logits: torch.Tensor, group: Sequence[Logprobs]) -> Sequence[OutputValue]:
        sizes = [len(request.token_ids) for request in group]
        ids = np.concatenate([np.asarray(request.token_ids, np.int64) for request in group])
        rows = np.repeat(np.arange(len(group)), sizes)
        values = sampler.logprobs_at(logits, torch.from_numpy(rows), torch.from_numpy(ids)).cpu().numpy()
        return np.split(values, np.cumsum(sizes)[:-1])

    def _entropy(self, logits: torch.Tensor, _group: Sequence[Entropy]) -> Sequence[OutputValue]:
        return list(sampler.entropies(logits).cpu().numpy()[:, None])

    def _states(self, rows: list[int]) -> Sequence[OutputValue]:
        assert self.hidden is not None
        return list(self.hidden[rows].cpu().numpy())

    def _logits(self, logits: torch.Tensor, _group: Sequence[Logits]) -> Sequence[OutputValue]:
        return list(logits.float().cpu().numpy().copy())
