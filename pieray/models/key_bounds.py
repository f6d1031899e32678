"""The least and the greatest of each number of the keys of pages, per layer: kept once a program asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

if TYPE_CHECKING:
    from pieray.models.tensor_programs import ProgramInstance


class KeyBounds:
    """`bounds[layer]` is [num_pages, 2, num_kv_heads, head_dim], float32: least at 0, greatest at 1.

    A page's are computed when they are asked for, and again once something has been written to the page: whoever writes
    to the pool says so (`written`) for as long as there are `users`.
    """

    def __init__(self, layers: list[torch.Tensor]) -> None:
        self._layers = layers
        num_pages, _, num_heads, _, head_dim = layers[0].shape
        device = layers[0].device
        self._bounds = [torch.empty((num_pages, 2, num_heads, head_dim), device=device) for _ in layers]
        self._is_known = torch.zeros((len(layers), num_pages), dtype=torch.bool, device=device)
        self.users: WeakSet[ProgramInstance] = WeakSet()

    def written(self, pages: torch.Tensor) -> None:
        """Something is written to these pages (int64)."""
        self._is_known[:, pages] = False

    def of(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Least and greatest, [P, num_kv_heads, head_dim] each, of `pages` (int64 [P]) that are full."""
        unknown = pages[~self._is_known[layer, pages]]
        if len(unknown):
            keys = self._layers[layer][unknown, 0].float()
            self._bounds[layer][unknown] = torch.stack((keys.amin(2), keys.amax(2)), 1)
            self._is_known[layer, unknown] = True
        least, greatest = self._bounds[layer][pages].unbind(1)
        return least, greatest
