"""The transport contract over plain Ray actor calls, and what dies there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

HELPERS = Path(__file__).parents[1] / "unit" / "transport"
sys.path.append(str(HELPERS))
#: For the workers: where this module and the helpers are found.
ENV = {"env_vars": {"PYTHONPATH": f"{HELPERS}:{Path(__file__).parent}"}}

from transport_contract import TransportContract  # noqa: E402
from transport_peers import TOKEN, Client, Door, ScriptedService, wait_until  # noqa: E402

from pieray.errors import PeerLost  # noqa: E402
from pieray.messages import SendText  # noqa: E402
from pieray.transport import Endpoint  # noqa: E402
from pieray.transport.ray_server import RayEndpointMixin, RayListener  # noqa: E402


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    if ray.is_initialized():
        yield  # the session's
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", include_dashboard=False, num_cpus=2, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


class ListeningActor(RayEndpointMixin):
    """A threaded actor with a ScriptedService behind plain Ray calls."""

    def __init__(self) -> None:
        self.service = ScriptedService()
        self.transport_listener = RayListener(
            self.service, peer_id="batcher-0", incarnation=7, token=TOKEN, lost_after_s=2.0
        )

    def endpoint(self) -> tuple[Any, ...]:
        return self.transport_listener.endpoint.to_wire()

    def pid(self) -> int:
        return os.getpid()

    def num_connects(self) -> int:
        return self.service.num_connects

    def closed(self) -> list[str]:
        return self.service.closed


def start_actor(name: str, namespace: str = "transport") -> Any:
    options = {"name": name, "namespace": namespace, "num_cpus": 0, "max_concurrency": 64, "runtime_env": ENV}
    return ray.remote(ListeningActor).options(**options).remote()


def door_of(actor: Any) -> Door:
    return Door(Endpoint.from_wire(ray.get(actor.endpoint.remote(), timeout=30)))


@pytest.fixture(scope="module")
def shared(cluster: None) -> Iterator[Any]:
    actor = start_actor("batcher")
    yield actor
    ray.kill(actor)


@pytest.fixture
def door(shared: Any) -> Door:
    return door_of(shared)


@pytest.fixture
def doomed(cluster: None) -> Iterator[Any]:
    actor = start_actor("doomed")
    yield actor
    ray.kill(actor)


class TestRayCalls(TransportContract):
    num_connects = 20


@pytest.mark.usefixtures("cluster")
def test_killed_actor_ends_the_connection_and_its_calls(doomed: Any) -> None:
    client, errors = Client(), []
    conn = door_of(doomed).connect(client)
    client.echo(conn)
    client.calls.submit(conn, lambda ticket: SendText(ticket, "i", "sleep 30"), lambda _, error: errors.append(error))
    start = time.monotonic()
    os.kill(ray.get(doomed.pid.remote()), 9)
    assert client.is_closed.wait(10)
    assert time.monotonic() - start < 5
    assert [type(error) for error in errors] == [PeerLost]
    assert "ActorDiedError" in client.closed[0].message
    with pytest.raises(PeerLost):
        client.echo(conn)


def test_caller_that_stops_polling_is_lost(shared: Any) -> None:
    caller = ray.remote(num_cpus=0)(Caller).options(runtime_env=ENV).remote()
    ray.get(caller.connect.remote(door_of(shared).endpoint.to_wire()), timeout=30)
    start = time.monotonic()
    ray.kill(caller)
    assert wait_until(lambda: "killed-caller" in ray.get(shared.closed.remote()), 10)
    assert time.monotonic() - start < 6  # lost_after_s, after the poll under way


def test_actors_of_one_name_are_told_apart_by_namespace(cluster: None) -> None:
    actors = [start_actor("twin", namespace) for namespace in ("left", "right")]
    for actor in actors:
        client = Client()
        client.tell(door_of(actor).connect(client), "nothing")
        assert ray.get(actor.num_connects.remote()) == 1
        ray.kill(actor)


def test_unknown_actor_is_peer_lost(cluster: None) -> None:
    with pytest.raises(PeerLost, match="there is no actor 'nobody'"):
        Door(Endpoint("ray", "x", 1, actor="nobody", namespace="transport")).connect(Client())


class Caller:
    """A process of its own that connects."""

    def connect(self, endpoint: tuple[Any, ...]) -> None:
        self.client = Client()
        self.conn = Door(Endpoint.from_wire(endpoint)).connect(self.client, peer_id="killed-caller")
        self.client.echo(self.conn)
