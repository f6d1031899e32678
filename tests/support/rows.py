"""For runners that know items alone: rows of a step as items of one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pieray.errors import PierayError
from pieray.messages import GREEDY, Sample
from pieray.models.batch import DecodeRows, ForwardItem
from pieray.models.draws import Drawn


class RowsAsItems:
    """Gives a runner `decode` for its `step`."""

    step: Any

    def decode(self, rows: DecodeRows, items: Sequence[Any], outputs: Sequence[Sequence[Any]]) -> tuple[Drawn, Any]:
        singles = [_item(rows, row) for row in range(len(rows))]
        wanted = [[_sample(rows, row)] for row in range(len(rows))]
        results = self.step([*singles, *items], [*wanted, *outputs])
        drawn = Drawn(np.zeros(len(rows), np.int64), np.zeros(len(rows.scored), np.float32), {})
        scored = {row: place for place, row in enumerate(rows.scored.tolist())}
        for row, result in enumerate(results[: len(rows)]):
            value = result if isinstance(result, PierayError) else result[0]
            if isinstance(value, PierayError):
                drawn.errors[row] = value
            elif row in scored:
                drawn.tokens[row], drawn.scores[scored[row]] = value[0][0], value[1][0]
            else:
                drawn.tokens[row] = value
        return drawn, results[len(rows) :]


def _item(rows: DecodeRows, row: int) -> ForwardItem:
    adapter = next((one for one, first, last in rows.adapters if first <= row < last), None)
    counter = np.array([rows.choices["counter"][row]], np.uint32)
    return ForwardItem(
        rows.pages[row],
        int(rows.kv_lens[row]),
        rows.tokens[row : row + 1],
        rows.positions[row : row + 1].astype(np.uint32),
        adapter=adapter,
        counters=counter,
    )


def _sample(rows: DecodeRows, row: int) -> Sample:
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
    choice = {name: rows.choices[name][row].item() for name in names}
    sampler = replace(rows.samplers.get(row, GREEDY), **choice)
    if (mask := rows.masks.get(row)) is not None:
        both = np.frombuffer(mask, np.uint8) & np.frombuffer(sampler.allowed or mask, np.uint8)
        sampler = replace(sampler, allowed=both.tobytes())
    return Sample(0, sampler, is_scored=row in rows.scored)
