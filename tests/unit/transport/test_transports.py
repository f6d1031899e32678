"""The contract, over every transport that needs no Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transport_contract import TransportContract
from transport_fake_ray import FakeActor
from transport_peers import TOKEN, Door, ScriptedService

from pieray.transport import serve
from pieray.transport.ray_server import RayListener


@pytest.fixture(params=["inproc", "unix", "tcp", "calls"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    who = {"peer_id": "batcher-0", "incarnation": 7, "token": TOKEN}
    if request.param == "calls":
        actor = FakeActor()
        actor.transport_listener = RayListener(ScriptedService(), actor="batcher", lost_after_s=4.0, **who)
        yield Door(actor.transport_listener.endpoint, actor.dial)
        actor.transport_listener.close()
        actor.pool.shutdown(wait=False, cancel_futures=True)
        return
    kind = "inproc" if request.param == "inproc" else "socket"
    listener = serve(ScriptedService(), kind=kind, runtime_dir=str(tmp_path), **who)
    without = {"inproc": {}, "unix": {"port": 0}, "tcp": {"unix_path": ""}}[request.param]
    yield Door(replace(listener.endpoint, **without))
    listener.close()


class TestEveryTransport(TransportContract):
    pass
