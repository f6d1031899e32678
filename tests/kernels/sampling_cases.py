"""The draws that the Triton sampler is checked over, on whatever device runs it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pieray.kernels.meta import DrawColumns
from pieray.kernels.sample_triton import sample_rows
from pieray.messages import Sampler
from pieray.models.sampler import choices_of, draw_columns, sample_torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SAMPLERS = (
    Sampler(),
    Sampler(0.7, seed=1),
    Sampler(1.0, top_k=1, seed=2),
    Sampler(1.0, top_k=7, seed=3),
    Sampler(1.0, top_k=1 << 40, seed=4),
    Sampler(1.0, top_p=0.0, seed=5),
    Sampler(1.0, top_p=0.6, seed=6),
    Sampler(2.0, top_p=0.97, seed=7),
    Sampler(1.0, min_p=0.1, seed=8),
    Sampler(1.0, min_p=1.0, seed=9),
    Sampler(1.5, top_k=9, top_p=0.8, min_p=0.05, seed=10),
    Sampler(1e-30, seed=11),
)


def draws(device: torch.device, vocabs: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """(case, how many of its draws are not those of the reference, how many there are).

    Logits of one dtype with ties, rows in which all but one token is banned, rows that are picked out of others, and
    rows that are not finite.
    """
    for vocab in vocabs:
        for dtype in DTYPES:
            rng = np.random.default_rng(vocab)
            logits = torch.from_numpy(rng.standard_normal((2 * len(SAMPLERS), vocab), dtype=np.float32) * 3)
            logits[::5] = logits[::5].round()
            logits[::7, 1:] = -torch.inf
            logits = logits.to(device, dtype)
            rows = np.arange(len(logits))[::-1][: len(SAMPLERS)].copy()
            choices = choices_of(SAMPLERS, range(len(SAMPLERS)))
            got, is_bad = _drawn(logits, choices, rows)
            want = sample_torch(logits.cpu()[rows], choices)
            wrong = int((got.cpu() != want).sum()) + int((is_bad != 0).sum())
            yield f"vocab {vocab} {str(dtype)[6:]}", wrong, len(rows)
            logits[0, -1], logits[1, 0], logits[2] = torch.nan, torch.inf, -torch.inf
            _, is_bad = _drawn(logits[: len(SAMPLERS)], choices, None)
            bad = is_bad.cpu().tolist()
            yield (
                f"not finite, vocab {vocab} {str(dtype)[6:]}",
                int(bad[:3] != [1, 1, 1]) + sum(one != 0 for one in bad[3:]),
                len(bad),
            )


def _drawn(
    logits: torch.Tensor, choices: np.ndarray[tuple[int, ...], np.dtype[np.void]], rows: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor]:
    device = logits.device
    columns = {name: torch.from_numpy(values.copy()).to(device) for name, values in draw_columns(choices).items()}
    tokens = torch.full((len(choices),), -1, dtype=torch.int64, device=device)
    is_bad = torch.full((len(choices),), -1, dtype=torch.int32, device=device)
    places = None if rows is None else torch.from_numpy(rows).to(device)
    sample_rows(logits, DrawColumns(**columns), places, tokens, is_bad)
    return tokens, is_bad
