"""Models that score a text, as reward models and classifiers do: transformers' `...ForSequenceClassification`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from pieray.errors import ModelError
from pieray.models.loader import Checkpoint

HEAD = "score.weight"


class ScoreHead:
    """A matrix, float32 [labels, hidden], that makes scores of the last token's state."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    @classmethod
    def from_folder(cls, folder: str | Path, hidden_size: int, device: torch.device) -> ScoreHead:
        """Raises ModelError if the checkpoint has no such head, or one of another kind."""
        with Checkpoint(folder) as checkpoint:
            stored = checkpoint.stored(HEAD)
            if stored.ndim != 2 or stored.shape[1] != hidden_size or not stored.is_floating_point():
                raise ModelError(
                    f"{folder}: {HEAD!r} is {str(stored.dtype).removeprefix('torch.')} {tuple(stored.shape)}; "
                    f"supported: floats [labels, {hidden_size}]"
                )
            return cls(stored.to(device, torch.float32, copy=True))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, labels] of states float32 [n, hidden], behind the final norm."""
        return F.linear(hidden, self.weight)
