"""A mixture of experts as two grouped products: no loop over experts, nothing that waits for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from pieray.errors import ModelError
from pieray.kernels.dispatch import LayerOps
from pieray.models.config import ExpertsConfig, ModelConfig
from pieray.models.weights import ExpertWeights

ROW_BYTES = 16


def check_widths(config: ModelConfig, dtype: torch.dtype) -> None:
    """Raise ModelError if rows of the experts' matrices do not begin at multiples of ROW_BYTES, as grouped products
    want it."""
    if config.experts is None:
        return
    least = ROW_BYTES // dtype.itemsize
    for name, width in (("hidden_size", config.hidden_size), ("the width of an expert", config.experts.width)):
        if width % least:
            raise ModelError(
                f"{config.architecture}: {name} is {width}; supported in {str(dtype).removeprefix('torch.')}: "
                f"multiples of {least}"
            )


def mix_experts(
    x: torch.Tensor, weights: ExpertWeights, config: ExpertsConfig, ops: LayerOps, activation: str
) -> torch.Tensor:
    """[T, hidden] of x [T, hidden]: the likeliest experts of each row, weighted; without the shared one.

    Rows are sorted by expert, each expert's run through its matrices together (Gale et al. 2022, MegaBlocks), and put
    back in order of experts for each row, so that a row's sum is taken in the same order whatever rows are around it.
    The products that are summed may round otherwise in another batch: bits of a row are promised of the C step alone,
    which has no experts.
    """
    k = config.num_per_token
    likely, chosen = F.linear(x, weights.router).softmax(-1, dtype=torch.float32).topk(k)
    if config.are_weights_normalized:
        likely = likely / likely.sum(-1, keepdim=True)
    chosen = chosen.flatten()
    order = chosen.argsort(stable=True)
    counts = torch.zeros(config.num_experts, dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))  # bincount would wait for a GPU
    ends = counts.cumsum(0, dtype=torch.int32)
    wide = F.grouped_mm(x[order // k], weights.gate_up.transpose(1, 2), offs=ends)
    mixed = F.grouped_mm(ops.gated(wide, activation), weights.down.transpose(1, 2), offs=ends)
    back = torch.empty_like(mixed)
    back[order] = mixed
    return (back.view(len(x), k, x.shape[1]) * likely.to(x.dtype)[..., None]).sum(1)
