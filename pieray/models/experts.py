"""A mixture of experts as two grouped products: no loop over experts, nothing that waits for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)

from pieray.kernels.dispatch import LayerOps
from pieray.models.config import ExpertsConfig
from pieray.models.weights import ExpertWeights


def mix_experts(
    x: torch.Tensor, weights: ExpertWeights, config: ExpertsConfig, ops: LayerOps, activation: str
) -> torch.Tensor:
    """[T, hidden] of x [T, hidden]: the likeliest experts of each row, weighted; without the shared one.

    Rows are sorted by expert, each expert's run through its matrices together (Gale et al. 2022, MegaBlocks), and put
    back in order of experts for each row, so that a row's sum does not depend on the rows around it.
    """
    k = config.num_per_token
    likely, chosen = F.linear(x, weights.router).softmax(-1, dtype=torch.float32).topk(k)
    if config.are_weights_normalized:
        likely = likely / likely.sum(-1, keepdim=True)
    chosen = chosen.flatten()
    order = chosen.argsort(stable=True)
    ends = torch.bincount(chosen, minlength=config.num_experts) if not x.is_cuda else _counts(chosen, config)
    ends = ends.cumsum(0).to(torch.int32)
    wide = F.grouped_mm(x[order // k], weights.gate_up, offs=ends)
    mixed = F.grouped_mm(ops.gated(wide, activation), weights.down, offs=ends)
    back = torch.empty_like(mixed)
    back[order] = mixed
    return (back.view(len(x), k, x.shape[1]) * likely.to(x.dtype)[..., None]).sum(1)


def _counts(chosen: torch.Tensor, config: ExpertsConfig) -> torch.Tensor:
    """How often each expert is chosen; bincount would wait for the device."""
    return torch.zeros(config.num_experts, dtype=torch.int64, device=chosen.device).scatter_add_(
        0, chosen, torch.ones_like(chosen)
    )
