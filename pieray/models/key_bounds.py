"""The least and the greatest of each number of the keys of pages, per layer: kept once a program asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

if TYPE_CHECKING:
    from pieray.models.tensor_programs import ProgramInstance


class KeyBounds:
    """For each layer [num_pages, num_kv_heads, 2, head_dim], float32: least at 0, greatest at 1.

    A page's are computed when they are asked for, and again once something has been written to the page: whoever writes
    to the pool says so (`written`) for as long as there are `users`.
    """

    def __init__(self, layers: list[torch.Tensor]) -> None:
        self._layers = layers
        num_pages, _, num_heads, _, head_dim = layers[0].shape
        device = layers[0].device
        self._bounds = [torch.empty((num_pages, num_heads, 2, head_dim), device=device) for _ in layers]
        self._is_known = torch.zeros((len(layers), num_pages), dtype=torch.bool, device=device)
        self.users: WeakSet[ProgramInstance] = WeakSet()

    def written(self, pages: torch.Tensor) -> None:
        """Something is written to these pages (int64)."""
        self._is_known[:, pages] = False

    def of(self, layer: int, pages: torch.Tensor, num_last: int) -> torch.Tensor:
        """[P, num_kv_heads, 2, head_dim] of `pages` (int64 [P]), of which the last one has `num_last` keys, the others
        are full."""
        known = self._is_known[layer, pages]
        known[-1] = True  # it is looked at below, each time
        if not bool(known.all()):
            unknown = pages[~known]
            self._bounds[layer][unknown] = _bounds(self._layers[layer][unknown, 0])
            self._is_known[layer, unknown] = True
        found = self._bounds[layer][pages]
        found[-1] = _bounds(self._layers[layer][pages[-1], 0, :, :num_last])
        return found


def _bounds(keys: torch.Tensor) -> torch.Tensor:
    """Of keys [.., num_kv_heads, slots, head_dim]."""
    return torch.stack(keys.float().aminmax(dim=-2), -2)
