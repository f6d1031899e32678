"""What all handler groups stand on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pieray.host.state import InstanceState

U32 = npt.NDArray[np.uint32]


class HandlerGroup:
    """Handlers of one interface, for one inferlet."""

    def __init__(self, state: InstanceState) -> None:
        self._state = state
