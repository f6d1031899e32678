"""A local Ray that takes too long to start is tried once more."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from pieray.cluster import ray_cluster as cluster
from pieray.errors import EngineError

SLOW = Exception("The current node timed out during startup. This could happen because ...")


@pytest.mark.parametrize(
    ("fails", "num_tries", "error"),
    [([], 1, None), ([SLOW], 2, None), ([SLOW, SLOW], 2, EngineError), ([ValueError("num_cpus")], 1, ValueError)],
)
def test_a_slow_start_is_tried_twice(
    fails: list[Exception], num_tries: int, error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[dict[str, Any]] = []
    said: list[str] = []

    def init(**options: Any) -> None:
        tries.append(options)
        if len(tries) <= len(fails):
            raise fails[len(tries) - 1]

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    if error is None:
        assert cluster.join("local", said.append)
    else:
        with pytest.raises(error):
            cluster.join("local", said.append)
    assert len(tries) == len(said) == num_tries
