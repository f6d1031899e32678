"""How an InferletActor asks the Controller for inferlets, on behalf of its own."""

from __future__ import annotations

from typing import Any

from pieray.cluster import find_controller
from pieray.config import Config
from pieray.errors import EngineError
from pieray.messages import Launch, encode
from pieray.raycalls import ask_actor
from pieray.transport import Endpoint

ASK_S = 60.0


class ControllerLauncher:
    """A `pieray.host.children.Launcher`.  Thread-safe."""

    def __init__(self, config: Config) -> None:
        self._namespace = config.namespace
        self._controller: Any = None

    def launch(self, message: Launch) -> Endpoint:
        """Start an inferlet; the endpoint of its actor.  Raises what the Controller does, EngineError if it is gone."""
        return Endpoint.from_wire(self._ask("launch", encode([message])))

    def kill(self, instance_id: str, reason: str) -> None:
        self._ask("kill", instance_id, reason)

    def _ask(self, method: str, *args: Any) -> Any:
        if self._controller is None:
            self._controller = find_controller(self._namespace)
        if self._controller is None:
            raise EngineError("the Controller is gone: nothing can be launched")
        return ask_actor(self._controller, method, *args, timeout_s=ASK_S)
