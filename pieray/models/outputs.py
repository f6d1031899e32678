"""From the logits of a step to what was asked of each item: samples, distributions, log-probabilities, states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pieray.arrays import F32, U32
from pieray.errors import InvalidRequest, PierayError
from pieray.messages import Distribution, Entropy, Hidden, Logits, Logprobs, Output, Sample
from pieray.models import sampler as sampling
from pieray.models.batch import ForwardItem
from pieray.models.drawn_by_programs import ProgramDraws, plain, turn_of
from pieray.models.draws import banned, no_token, not_finite, restricted
from pieray.models.tensor_programs import ProgramInstance

SLICE_BYTES = 64 << 20
"""Of float32 logits that are looked at in one go."""

#: an error in place of a value fails that output alone
OutputValue = int | tuple[U32, F32] | F32 | PierayError
#: what an item gets: a value per output, in order, or the error that failed this item alone
StepResult = list[OutputValue] | PierayError


def check_ids(output: Logprobs, vocab: int) -> None:
    ids = np.frombuffer(output.token_ids, "<u4")
    if len(ids) and int(ids.max()) >= vocab:
        raise InvalidRequest(f"token {int(ids.max())} is outside the vocabulary of {vocab}")


class _Asked(NamedTuple):
    """One output, and where its value goes."""

    item: int
    place: int
    row: int  # of the logits
    output: Any
    counter: int


def _num_ids(asked: _Asked) -> float:
    return asked.output.k or float("inf")


def _kind(
    output: Output, draws: Mapping[int, ProgramInstance], turns: dict[ProgramInstance, int]
) -> tuple[type, bool, bool, int]:
    """What outputs that are computed together have in common: what they are, whether they are scored, whether tensor
    programs have a part in them, and whose turn it is."""
    if not isinstance(output, Sample):
        return type(output), False, False, 0
    if not draws or not output.sampler.has_programs:
        return Sample, output.is_scored, False, 0
    return Sample, output.is_scored, True, turn_of(output.sampler, draws, turns)


class OutputValues:
    """From the logits of a step to each item's values: vectorised calls per kind of output, each over as many rows as
    fit in SLICE_BYTES of float32, so that no copy of all rows is ever made."""

    def __init__(
        self,
        items: Sequence[ForwardItem],
        outputs: Sequence[Sequence[Output]],
        logits: torch.Tensor,
        hidden: torch.Tensor | None,
        first_row: int,
        pending: dict[ProgramInstance, list[torch.Tensor]] | None = None,
    ) -> None:
        """`pending` gets the next states of programs that draws go through."""
        self.logits = logits
        self.hidden = hidden
        self.first_row = first_row
        self.pending = {} if pending is None else pending
        self.values: list[list[OutputValue]] = [[0] * len(wanted) for wanted in outputs]
        self.groups: dict[tuple[type, bool, bool, int], list[_Asked]] = {}
        self.draws = [item.draws for item in items]
        turns: dict[ProgramInstance, int] = {}
        self.owner: list[int] = []  # of rows from `first_row` on
        for index, (item, wanted) in enumerate(zip(items, outputs, strict=True)):
            row_of = {row: first_row + len(self.owner) + place for place, row in enumerate(item.rows)}
            self.owner += [index] * len(item.rows)
            for place, output in enumerate(wanted):
                row = (output.row - item.start) % len(item.tokens)
                counter = item.kv_len + row if item.counters is None else int(item.counters[row])
                kind = _kind(output, item.draws, turns)
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
        for (kind, _, has_programs, _), group in sorted(self.groups.items(), key=lambda one: one[0][3]):
            if kind is Distribution:  # rows that want as many tokens share a slice
                group.sort(key=_num_ids)
            for start in range(0, len(group), most):
                part = group[start : start + most]
                rows = [asked.row for asked in part]
                if has_programs:
                    values = self._sample_with_programs(part, self._picked(rows), frozenset(bad))
                else:
                    values = self._states(rows) if kind is Hidden else answer[kind](part, self._picked(rows))
                for asked, value in zip(part, values, strict=True):
                    self.values[asked.item][asked.place] = value
        failed = {self.owner[row - self.first_row]: not_finite() for row in bad if row >= self.first_row}
        return [failed.get(index, values) for index, values in enumerate(self.values)]

    def _picked(self, rows: list[int]) -> torch.Tensor:
        """Rows of the logits, without a copy where they are neighbours."""
        first = rows[0]
        if rows == list(range(first, first + len(rows))):
            return self.logits[first : first + len(rows)]
        return self.logits[rows]

    def _sample(self, group: list[_Asked], logits: torch.Tensor) -> Sequence[OutputValue]:
        samplers = [asked.output.sampler for asked in group]
        allowed = restricted(logits, samplers, [b""] * len(group))
        drawn = sampling.sample(allowed, sampling.choices_of(samplers, [asked.counter for asked in group]))
        values: list[OutputValue] = drawn.tolist()
        if group[0].output.is_scored:
            scores = sampling.logprobs(logits, drawn[:, None]).cpu().numpy()
            values = [(np.array([token], np.uint32), scores[i]) for i, token in enumerate(drawn.tolist())]
        for place in banned(allowed) if allowed is not logits else ():
            values[place] = no_token()
        return values

    def _sample_with_programs(
        self, group: list[_Asked], logits: torch.Tensor, bad: frozenset[int]
    ) -> Sequence[OutputValue]:
        samplers, counters = [asked.output.sampler for asked in group], [asked.counter for asked in group]
        programs = ProgramDraws(samplers, counters, [self.draws[asked.item] for asked in group], self.pending)
        allowed = programs.scored(restricted(programs.processed(logits), samplers, [b""] * len(group)))
        drawn = sampling.sample(allowed, sampling.choices_of([plain(one) for one in samplers], counters))
        values: list[OutputValue] = drawn.tolist()
        if group[0].output.is_scored:
            scores = sampling.logprobs(logits, drawn[:, None]).cpu().numpy()
            values = [(np.array([token], np.uint32), scores[i]) for i, token in enumerate(drawn.tolist())]
        errors = {place: no_token() for place in banned(allowed)} | programs.errors
        for place, error in errors.items():
            values[place] = error
        programs.drew(drawn, {*errors, *(place for place, asked in enumerate(group) if asked.row in bad)})
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
