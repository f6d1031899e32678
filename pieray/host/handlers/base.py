"""What all handler groups stand on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pieray.errors import QuotaExceeded
from pieray.host.state import InstanceState

U32 = npt.NDArray[np.uint32]


class HandlerGroup:
    """Handlers of one interface, for one inferlet."""

    def __init__(self, state: InstanceState) -> None:
        self._state = state

    def _check_text_size(self, text: str) -> None:
        """Raise QuotaExceeded for more text than one call may have worked on, on the thread of all guests."""
        limit, size = self._state.limits.tokenize_bytes, len(text)
        if size > limit:
            raise QuotaExceeded(f"tokenize_bytes: the limit is {limit} in one call; given {size}")
