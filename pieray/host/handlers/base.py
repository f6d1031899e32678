"""What all handler groups stand on."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from pieray.errors import QuotaExceeded
from pieray.host.models import ServedModel
from pieray.host.state import InstanceState
from pieray.wasm.parks import Answer

WORK_WAIT_S = 60.0
"""For a thread to come free."""

U32 = npt.NDArray[np.uint32]


class HandlerGroup:
    """Handlers of one interface, for one inferlet."""

    def __init__(self, state: InstanceState) -> None:
        self._state = state

    def _check_text_size(self, text: str) -> None:
        """Raise QuotaExceeded for more text than one call may have worked on."""
        limit, size = self._state.limits.tokenize_bytes, len(text)
        if size > limit:
            raise QuotaExceeded(f"tokenize_bytes: the limit is {limit} in one call; given {size}")

    def _work(self, work: Callable[[], Any]) -> Future[Answer]:
        """Have a thread of the actor's do it: the guest waits, the others do not."""
        state = self._state

        def timed() -> Answer:
            began = time.thread_time()
            value = work()
            return Answer(value, time.thread_time() - began)

        return state.services.threads.submit(
            timed, tenant=state.launch.tenant, owner=state.instance_id, wait_s=WORK_WAIT_S
        )

    def _work_on_text(
        self, operation: str, model: ServedModel, *arguments: object, read: Callable[[Any], Any] = lambda value: value
    ) -> Future[Answer]:
        """Have `TextWorkers` do it: the guest waits, the others of this actor do not."""
        state = self._state
        return state.services.texts.submit(
            state.models.all,
            operation,
            model,
            *arguments,
            read=read,
            tenant=state.launch.tenant,
            owner=state.instance_id,
        )
