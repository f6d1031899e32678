"""cluster.yaml against Ray's own schema and checks: nothing is started and no machine is reached."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER_YAML = Path(__file__).parents[3] / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CLUSTER_YAML.read_text(encoding="utf-8"))
    return loaded


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does before it touches a machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster(config: dict[str, Any]) -> None:
    prepared = validate(config)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_every_node_has_pieray_and_asks_for_the_token(config: dict[str, Any]) -> None:
    assert any("pieray" in command and "install" in command for command in config["setup_commands"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
    assert "~/.ray/auth_token" in config["file_mounts"]


@pytest.mark.parametrize(
    "broken",
    [
        {"head_start_ray_command": ["ray start --head"]},  # an unknown key
        {"max_workers": "two"},  # a wrong type
        {"head_node_type": "big", "available_node_types": {"small": {"resources": {}, "node_config": {}}}},
    ],
    ids=["unknown key", "wrong type", "unknown head node type"],
)
def test_ray_rejects_broken_variants(config: dict[str, Any], broken: dict[str, Any]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - Ray raises jsonschema's errors and its own
        validate({**config, **broken})
