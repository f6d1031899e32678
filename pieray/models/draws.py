"""What the rows of a step draw from their logits, and what of it fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pieray.arrays import F32, I64
from pieray.errors import InvalidRequest, ModelError, PierayError
from pieray.kernels.decode_rows_cpu import zero_bad_rows
from pieray.kernels.sample_cpu import is_supported
from pieray.messages import GREEDY, Sampler
from pieray.models import sampler as sampling
from pieray.models.batch import DecodeRows
from pieray.models.drawn_by_programs import Pending, ProgramDraws, commit, plain, turn_of
from pieray.models.sampler import Bias
from pieray.models.tensor_programs import ProgramInstance

NO_SCORES = np.zeros(0, np.float32)


@dataclass(slots=True)
class Drawn:
    """What the rows of a step have drawn."""

    tokens: I64  # [R]; of rows that failed, anything
    scores: F32  # [S], log p of the tokens of `DecodeRows.scored`, before bias, temperature and filters
    errors: dict[int, PierayError]  # rows that failed alone


def spread(part: Drawn, kept: I64, rows: DecodeRows, errors: dict[int, PierayError]) -> Drawn:
    """What some of the rows have drawn, as if of all."""
    whole = Drawn(np.zeros(len(rows), np.int64), np.zeros(len(rows.scored), np.float32), {})
    whole.tokens[kept] = part.tokens
    whole.scores[np.isin(rows.scored, kept)] = part.scores
    whole.errors = errors | {int(kept[row]): error for row, error in part.errors.items()}
    return whole


def finite(logits: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The logits, and rows that are not finite; such rows are zeroed, so that no sampler trips over them."""
    if is_supported(logits):
        return logits, zero_bad_rows(logits)
    is_finite = logits.amax(-1).isfinite() if len(logits) else logits.new_ones(0, dtype=torch.bool)
    if bool(is_finite.all()):
        return logits, []
    return logits.masked_fill(~is_finite[:, None], 0), (~is_finite).nonzero()[:, 0].tolist()


def not_finite() -> PierayError:
    return ModelError("the logits of this item are not finite")


def check_sampler(sampler: Sampler, vocab: int) -> None:
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


def restricted(logits: torch.Tensor, samplers: Sequence[Sampler], masks: Sequence[bytes]) -> torch.Tensor:
    """The logits behind each row's bias, its sampler's mask and one more (b"": all allowed)."""
    biased = sampling.add_bias(logits, [_bias(one) if one.bias_tokens else None for one in samplers])
    allowed = [one.allowed or mask or None for one, mask in zip(samplers, masks, strict=True)]
    masked = sampling.mask_tokens(biased, allowed)
    both = [mask if one.allowed and mask else None for one, mask in zip(samplers, masks, strict=True)]
    return sampling.mask_tokens(masked, both)


def banned(logits: torch.Tensor) -> list[int]:
    """Rows in which nothing may be drawn."""
    rows: list[int] = (logits.amax(-1) == -torch.inf).nonzero()[:, 0].tolist()
    return rows


def no_token() -> PierayError:
    return InvalidRequest("the sampler allows no token: all are banned by its bias or its mask")


def draw_rows(
    rows: DecodeRows, logits: torch.Tensor, special: list[int], tokens: torch.Tensor, pending: Pending | None = None
) -> Drawn:
    """The `tokens` drawn from plain logits, with those of the `special` rows drawn now, and the scores of all.

    `pending`: next states of tensor programs, of rows here too: whoever gives it commits them; None: that is done here.
    """
    errors: dict[int, PierayError] = {}
    if rows.draws:
        found: Pending = {} if pending is None else pending
        for turn in turns_of(rows):
            errors |= _draw_with_programs(rows, logits, turn, tokens, found)
        if pending is None:
            commit(found)
        special = [row for row in special if row not in rows.draws]
    if special:
        places = np.array(special)
        samplers = [rows.samplers.get(row, GREEDY) for row in special]
        allowed = restricted(logits[places], samplers, [rows.masks.get(row, b"") for row in special])
        tokens[places] = sampling.sample(allowed, rows.choices[places])
        errors |= {special[place]: no_token() for place in banned(allowed)}
    scores = NO_SCORES
    if len(rows.scored):
        scores = sampling.logprobs(logits[rows.scored], tokens[rows.scored, None])[:, 0].cpu().numpy()
    return Drawn(tokens.cpu().numpy(), scores, errors)


def turns_of(rows: DecodeRows) -> list[list[int]]:
    """Rows with tensor programs, those that share one with states in turns."""
    turns: dict[ProgramInstance, int] = {}
    found: dict[int, list[int]] = {}
    for row, draws in rows.draws.items():
        found.setdefault(turn_of(rows.samplers[row], draws, turns), []).append(row)
    return [found[turn] for turn in sorted(found)]


def _draw_with_programs(
    rows: DecodeRows, logits: torch.Tensor, places: list[int], tokens: torch.Tensor, pending: Pending
) -> dict[int, PierayError]:
    """Draw for rows with tensor programs; the errors of those that fail."""
    samplers = [rows.samplers[row] for row in places]
    counters = rows.choices["counter"][places].tolist()
    programs = ProgramDraws(samplers, counters, [rows.draws[row] for row in places], pending)
    given = logits[torch.tensor(places, device=logits.device)]
    allowed = restricted(programs.processed(given), samplers, [rows.masks.get(row, b"") for row in places])
    allowed = programs.scored(allowed)
    drawn = sampling.sample(allowed, sampling.choices_of([plain(one) for one in samplers], counters))
    errors = {place: no_token() for place in banned(allowed)} | programs.errors
    programs.drew(drawn, set(errors))
    tokens[torch.tensor(places, device=tokens.device)] = drawn
    return {places[place]: error for place, error in errors.items()}


def draw_plain(rows: DecodeRows, logits: torch.Tensor, special: list[int]) -> torch.Tensor:
    """Draws from plain logits, for all rows but the `special` ones: int64 [R]."""
    if not special:
        return sampling.sample(logits, rows.choices)
    plain = np.setdiff1d(np.arange(len(rows)), special)
    tokens = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
    if len(plain):
        tokens[plain] = sampling.sample(logits, rows.choices[plain], plain)
    return tokens
