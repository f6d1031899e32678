"""How an InferletActor asks the Controller for inferlets, on behalf of its own."""

from __future__ import annotations

import threading

from pieray.client.controller_calls import ControllerCalls
from pieray.client.controller_link import LaunchPath
from pieray.cluster.ray_calls import asker
from pieray.cluster.ray_cluster import find_controller
from pieray.config import Config
from pieray.errors import EngineError, NoAnswer
from pieray.messages import Launch, encode
from pieray.transport import Endpoint

ASK_S = 60.0


class ControllerLauncher:
    """A `pieray.host.children.service.Launcher`.  Thread-safe."""

    def __init__(self, config: Config, token: str) -> None:
        self._namespace = config.namespace
        self._wait_s = config.launch_wait_s
        self._token = token
        self._controller: ControllerCalls | None = None
        self._launching: LaunchPath | None = None
        self._lock = threading.Lock()

    def launch(self, message: Launch) -> Endpoint:
        """Start an inferlet; the endpoint of its actor.  Raises what the Controller does, Overloaded where there is no
        place for it, EngineError if it is gone."""
        controller = self._calls()
        try:
            assert self._launching is not None
            return Endpoint.from_wire(self._launching.calls().launch(encode([message]), self._wait_s))
        except NoAnswer:
            controller.tell("kill", message.instance_id, "its parent gave it up")
            raise

    def kill(self, instance_id: str, reason: str) -> None:
        self._calls().ask("kill", instance_id, reason, timeout_s=ASK_S)

    def _calls(self) -> ControllerCalls:
        with self._lock:
            if self._controller is None:
                found = find_controller(self._namespace)
                if found is None:
                    raise EngineError("the Controller is gone: nothing can be launched")
                self._controller = ControllerCalls(asker(found))
                self._launching = LaunchPath(self._controller, self._token)
            return self._controller
