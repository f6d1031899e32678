"""What tensor programs do to the draws of a step: logits before, scores in place of filters, states behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from pieray.errors import InvalidRequest, PierayError
from pieray.messages import Sampler
from pieray.models.sampler import choices_of, uniforms
from pieray.models.tensor_programs import Compiled, Given, ProgramInstance, Values

Instances: TypeAlias = Mapping[int, ProgramInstance]
"""By the number that samplers have for them."""
Pending: TypeAlias = dict[ProgramInstance, list[torch.Tensor]]
"""Next states, of a step that has not gone well yet."""


def turn_of(sampler: Sampler, draws: Instances, turns: dict[ProgramInstance, int]) -> int:
    """Draws of a step that share a program with states take turns, in order: the first has turn 0."""
    found = [draws[number] for number in (sampler.processor, sampler.program) if number]
    found = [one for one in found if one.states]
    turn = max((turns.get(one, 0) for one in found), default=0)
    turns.update(dict.fromkeys(found, turn + 1))
    return turn


def plain(sampler: Sampler) -> Sampler:
    """How a token is drawn from what a program of stage `draw` gives: as it is, or the greatest."""
    if not sampler.program:
        return sampler
    temperature = 1.0 if sampler.temperature else 0.0
    return replace(sampler, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)


@dataclass(slots=True)
class _Part:
    """Draws that share a program."""

    code: Compiled
    places: list[int]
    owners: list[ProgramInstance]
    given: Given
    values: Values


class ProgramDraws:
    """The draws of one group in a step.  States change with `commit` alone, so that a step that fails changes none.

    `instances[i]` are those that draw i may name, `counters` and `samplers` as for any draw.  `pending` holds states of
    draws before these in the same step.
    """

    def __init__(
        self,
        samplers: Sequence[Sampler],
        counters: Sequence[int],
        instances: Sequence[Instances],
        pending: dict[ProgramInstance, list[torch.Tensor]],
    ) -> None:
        self.samplers = samplers
        self.counters = counters
        self.errors: dict[int, PierayError] = {}
        self._instances = instances
        self._pending = pending
        self._parts: list[_Part] = []

    def processed(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits, float32, behind the programs of stage `logits`."""
        return self._run(logits, lambda sampler: sampler.processor)

    def scored(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits behind those of stage `draw`."""
        return self._run(logits, lambda sampler: sampler.program)

    def _run(self, logits: torch.Tensor, number_of: Callable[[Sampler], int]) -> torch.Tensor:
        by_code: dict[Compiled, list[int]] = {}
        for place, sampler in enumerate(self.samplers):
            if number := number_of(sampler):
                by_code.setdefault(self._instances[place][number].code, []).append(place)
        if not by_code:
            return logits
        changed = logits.float().clone()
        for code, places in by_code.items():
            for start in range(0, len(places), code.num_together):
                self._run_part(code, places[start : start + code.num_together], changed, number_of)
        return changed

    def _run_part(
        self, code: Compiled, places: list[int], logits: torch.Tensor, number_of: Callable[[Sampler], int]
    ) -> None:
        found = [self._instances[place][number_of(self.samplers[place])] for place in places]
        states = [self._pending.get(one, one.states) for one in found]
        columns = [torch.stack(list(column)) for column in zip(*states, strict=True)]
        inputs = {
            "logits": logits[places],
            "position": torch.tensor([self.counters[place] for place in places], device=logits.device),
        }
        if "uniform" in code.program.inputs:
            choices = choices_of([self.samplers[p] for p in places], [self.counters[p] for p in places])
            draws = uniforms(choices["seed"], choices["counter"])
            inputs["uniform"] = torch.from_numpy(draws).float().to(logits.device)
        given = Given(inputs, columns)
        result, values = code.result(given)
        assert result is not None, "stages of draws have results"
        is_bad = (result.isnan() | (result == torch.inf)).any(-1)
        for row in is_bad.nonzero()[:, 0].tolist():
            self.errors[places[row]] = InvalidRequest("the tensor program gave NaN or +inf for a token")
        logits[places] = result.masked_fill(is_bad[:, None], 0.0)
        for one in found:
            one.counts["rows"] += 1
        if columns:
            self._parts.append(_Part(code, places, found, given, values))

    def drew(self, tokens: torch.Tensor, failed: set[int]) -> None:
        """The draws gave these tokens [C]; states of the others than `failed` go on from there."""
        for part in self._parts:
            part.given.inputs = {**part.given.inputs, "token": tokens[part.places]}
            for column, states in enumerate(part.code.updated(part.given, part.values)):
                for index, (place, owner) in enumerate(zip(part.places, part.owners, strict=True)):
                    if place not in failed:
                        self._pending.setdefault(owner, list(owner.states))[column] = states[index].contiguous()


def commit(pending: dict[ProgramInstance, list[torch.Tensor]]) -> None:
    """The step has gone well: states are what they have become."""
    for instance, states in pending.items():
        instance.states = [one.nan_to_num(0.0).clone() for one in states]
