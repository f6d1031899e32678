"""Work for a handler that takes longer than the guests of an actor should wait for each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pieray.errors import QuotaExceeded
from pieray.host.identity import Identity
from pieray.host.models import ModelDirectory, ServedModel
from pieray.host.services import Services
from pieray.wasm.parks import Answer

WAIT_S = 60.0
"""For a thread to come free."""


class SlowWork:
    """Done on threads and in processes of the actor: the guest waits, the others do not."""

    def __init__(self, identity: Identity, services: Services, models: ModelDirectory) -> None:
        self._identity = identity
        self._services = services
        self._models = models

    def check_text(self, text: str) -> None:
        """Raise QuotaExceeded for more text than one call may have worked on."""
        limit, size = self._identity.limits.tokenize_bytes, len(text)
        if size > limit:
            raise QuotaExceeded(f"tokenize_bytes: the limit is {limit} in one call; given {size}")

    def check_tokens(self, count: int, num_bytes: int) -> None:
        """The same for tokens, each of which counts as `num_bytes` of text."""
        limit = self._identity.limits.tokenize_bytes
        if count * num_bytes > limit:
            raise QuotaExceeded(
                f"tokenize_bytes: the limit is {limit} in one call, {limit // num_bytes} tokens; given {count}"
            )

    def do(self, work: Callable[[], Any]) -> Future[Answer]:
        """Have a thread of the actor's do it."""

        def timed() -> Answer:
            began = time.thread_time()
            value = work()
            return Answer(value, time.thread_time() - began)

        identity = self._identity
        return self._services.threads.submit(timed, tenant=identity.tenant, owner=identity.instance_id, wait_s=WAIT_S)

    def on_text(
        self, operation: str, model: ServedModel, *arguments: object, read: Callable[[Any], Any] = lambda value: value
    ) -> Future[Answer]:
        """Have `TextWorkers` do it."""
        identity = self._identity
        return self._services.texts.submit(
            self._models.all,
            operation,
            model,
            *arguments,
            read=read,
            tenant=identity.tenant,
            owner=identity.instance_id,
        )
