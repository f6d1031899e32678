"""Puts the SDK on a fake host."""

from __future__ import annotations

import sys

from fake_host import FakeHost, interfaces

from pieray.guest import GUEST_ROOT

sys.path.insert(0, str(GUEST_ROOT))

from inferlet import _host, _raw


def install(host: FakeHost) -> FakeHost:
    """Serve the SDK from `host`, forgetting the one before."""
    _host.install(interfaces(host, _raw.Err))
    return host
