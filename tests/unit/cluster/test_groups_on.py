"""How many device groups each model has, by the GPUs that there are."""

from __future__ import annotations

from typing import Any

import pytest

from pieray.cluster.facts import groups_on
from pieray.config import Config
from pieray.mapping import from_mapping
from pieray.model_settings import ModelSettings


def share(model: ModelSettings) -> float:
    return 0.0 if model.device == "cpu" else model.gpu_share


@pytest.mark.parametrize(
    ("gpus", "model", "models", "expected"),
    [
        (0, {}, {}, {"": 1}),
        (0, {"replicas": 0}, {"b": {"replicas": 0}}, {"": 1, "b": 1}),
        (8, {}, {}, {"": 1}),
        (8, {"replicas": 0}, {}, {"": 8}),
        (8, {"replicas": 0}, {"b": {}}, {"": 7, "b": 1}),
        (8, {"replicas": 2}, {"b": {"replicas": 0}}, {"": 2, "b": 6}),
        (8, {"replicas": 0}, {"b": {"replicas": 0}}, {"": 7, "b": 1}),  # the first takes what is left
        (8, {"replicas": 0}, {"b": {"device": "cpu"}}, {"": 8, "b": 1}),
        (1, {"gpu_share": 0.5}, {"b": {"gpu_share": 0.5}}, {"": 1, "b": 1}),
        (1, {"gpu_share": 0.5}, {"b": {"gpu_share": 0.25, "replicas": 0}}, {"": 1, "b": 2}),
        (1, {"replicas": 3}, {"b": {"replicas": 0}}, {"": 3, "b": 1}),  # nodes may join: Ray waits for them
    ],
)
def test_replicas_that_are_left_open_take_what_no_other_model_does(
    gpus: int, model: dict[str, Any], models: dict[str, Any], expected: dict[str, int]
) -> None:
    named = {name: {"path": name, **settings} for name, settings in models.items()}
    config = from_mapping(Config, {"model": model, "models": named})
    assert groups_on(gpus, config, lambda one: share(one) if gpus else 0.0) == expected
