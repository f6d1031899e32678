from __future__ import annotations

import pytest
from wasm_fakes import GUESTS_C, Device

from pieray.wasm.host import WasmHost


@pytest.fixture(scope="module", params=["fiber", "thread"])
def host(request):
    """One host for a module's tests, per executor; no guest may be left behind."""
    host = WasmHost(request.param)
    yield host
    assert host.num_guests == 0
    host.close()


@pytest.fixture(params=["fiber", "thread"])
def fresh_host(request):
    host = WasmHost(request.param)
    yield host
    host.close()


@pytest.fixture
def misbehave(host):
    return host.load(GUESTS_C / "misbehave.wasm", "misbehave")


@pytest.fixture
def completion(host):
    return host.load(GUESTS_C / "completion.wasm", "completion")


@pytest.fixture
def device():
    device = Device()
    yield device
    device.close()
