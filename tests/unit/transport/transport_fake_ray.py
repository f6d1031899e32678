"""The Ray transport without Ray."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pieray.errors import DeadlineExceeded, PeerLost
from pieray.transport import Connection, Endpoint
from pieray.transport.ray_client import connect_peer
from pieray.transport.ray_server import RayEndpointMixin


class FakeActor(RayEndpointMixin):
    """A threaded Ray actor without Ray: a Peer whose calls run in a pool of threads."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(32, thread_name_prefix="fake-actor")

    def ask(self, method: str, *args: Any, timeout_s: float) -> Any:
        try:
            return self.pool.submit(getattr(self, method), *args).result(timeout_s)
        except RuntimeError as error:
            raise PeerLost("the fake actor is gone") from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {timeout_s} s") from error

    def tell(self, method: str, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):
            self.pool.submit(getattr(self, method), *args)

    def dial(self, endpoint: Endpoint, service: Any, **settings: Any) -> Connection:
        return connect_peer(self, endpoint, service, **settings)
