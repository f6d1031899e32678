"""One tree of settings: names, sources, errors."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from pieray.config import Config, Limits, from_environment, load
from pieray.errors import ConfigError
from pieray.mapping import from_mapping
from pieray.tenants import TenantSettings


def test_environment_and_overrides_lie_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIERAY_LIMITS_PAGES", "8")
    monkeypatch.setenv("PIERAY_MODEL_DTYPE", "bfloat16")
    monkeypatch.setenv("PIERAY_ACTOR_POOL", "3")
    config = load({"actor_pool": 2, "model": {"num-pages": 99}})
    assert (config.limits.pages, config.actor_pool, config.model.num_pages, config.model.dtype) == (
        8,
        2,
        99,
        "bfloat16",
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"limitz": {}}, "unknown setting limitz; did you mean limits"),
        ({"limits": {"page": 3}}, "limits.page; did you mean limits.pages"),
        ({"zzz": 1}, "known: actor_pool"),
        ({"actor_pool": "many"}, "actor_pool is int; given 'many'"),
        ({"actor_pool": 1.5}, "actor_pool is int; given 1.5"),
        ({"actor_pool": True}, "actor_pool is int; given True"),
        ({"actor_pool": float("inf")}, "actor_pool is int; given inf"),
        ({"detached": "perhaps"}, "detached is bool; given 'perhaps'"),
        ({"actor_pool": -1}, "actor_pool is at least 0; given -1"),
        ({"model": {"gpu_memory_fraction": 1.5}}, "model.gpu_memory_fraction is from 0 to 1; given 1.5"),
        ({"model": {"device": "gpu"}}, "model.device is auto, cpu, cuda or cuda:NUMBER; given 'gpu'"),
        ({"model": {"dtype": "int8"}}, "model.dtype is one of auto, float32, bfloat16, float16; given 'int8'"),
        (
            {"model": {"bf16_products": "fast"}},
            "model.bf16_products is one of auto, amx, avx512_bf16, float32; given 'fast'",
        ),
        ({"model": {"threads": -1}}, "model.threads is at least 0; given -1"),
        ({"executor": "magic"}, "executor is one of auto, fiber, thread; given 'magic'"),
        ({"limits": 3}, "limits is Limits; given 3"),
        ({"limits": {"wall_time_s": float("nan")}}, "wall_time_s is float"),
        ({"limits": {"pages": -1}}, "limits.pages is at least 0; given -1"),
        ({"tenants": {"lab": 3}}, "tenants.lab is a mapping of settings; given 3"),
        ({"tenants": {"lab": {"weigth": 3}}}, "unknown setting tenants.lab.weigth; did you mean tenants.lab.weight?"),
        ({"tenants": {"lab": {"weight": 0}}}, "tenants.lab.weight is above 0; given 0"),
        ({"tenants": {"*": {"priority": 101}}}, r"tenants.\*.priority is from -100 to 100; given 101"),
        ({"tenants": {"lab": {"pages": -1}}}, r"tenants.lab.pages is at least 0 \(no quota\); given -1"),
        ({"tenants": {"lab": {"inferlets": "many"}}}, "tenants.lab.inferlets is int; given 'many'"),
        ({"max_waiting_launches": 0}, "max_waiting_launches is at least 1; given 0"),
        ({"model": {"swap_memory_bytes": -2}}, "model.swap_memory_bytes is at least -1; given -2"),
        ({"namespace": 3}, "namespace is str; given 3"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        from_mapping(Config, values)


def test_the_environment_is_read_by_name_only() -> None:
    assert from_environment({"PIERAY_LIMITS_PAGES": "1", "PIERAY_NONSENSE": "2", "PATH": "3"}) == {
        "limits": {"pages": "1"}
    }


def test_limits_are_numbers_a_client_may_send() -> None:
    assert from_mapping(Limits, {"pages": 2.0, "wall_time_s": 1}).pages == 2


def test_each_tenant_has_its_own_settings_or_those_of_all_others() -> None:
    table = {"lab": {"weight": 2, "store_bytes": 100, "broker_bytes": "7"}, "*": {"inferlets": 3}}
    config = from_mapping(Config, dataclasses.asdict(load({"tenants": table, "limits": {"store_bytes": 50}})))
    assert config.tenant("lab") == TenantSettings(weight=2.0, store_bytes=100, broker_bytes=7)
    assert config.tenant("ann") == TenantSettings(inferlets=3)
    assert (config.tenant("lab").is_counted, config.tenant("ann").is_counted) == (False, True)
    limits = config.limits_of("lab")
    assert (limits.store_bytes, limits.broker_bytes, limits.pages) == (100, 7, config.limits.pages)
    assert config.limits_of("ann") is config.limits
    assert Config().tenant("lab") == TenantSettings()


def test_tenants_may_come_as_json() -> None:
    table = from_environment({"PIERAY_TENANTS": '{"lab": {"priority": -3}}'})
    assert from_mapping(Config, table).tenant("lab").priority == -3


def test_other_models_are_settings_by_name_or_paths() -> None:
    config = load(
        {"models": '{"small": "/models/s", "b": {"path": "pie-tiny", "num_pages": "7"}}', "model": {"path": "/x/big"}}
    )
    models = config.all_models()
    assert list(models) == ["", "small", "b"]
    assert (models["small"].path, models["small"].name, models["b"].num_pages) == ("/models/s", "small", 7)
    serving = config.serving("b")
    assert (serving.model.name, serving.model.num_pages) == ("b", 7)
    assert {name: one.path for name, one in serving.all_models().items()} == {
        "": "pie-tiny",
        "big": "/x/big",
        "small": "/models/s",
    }
    assert config.serving("") is config
    assert load(dataclasses.asdict(serving)) == serving  # as it travels to an actor


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ({"pie-tiny": "/x"}, "models.pie-tiny: the default model is named so too"),
        ({"a b": "/x"}, "the name of a model is from 1 to 100 letters, digits and ._:/-; given 'a b'"),
        ({"a": 5}, "models.a is a path, or a mapping of settings with one; given 5"),
        ({"a": {}}, "models.a is a path, or a mapping of settings with one"),
        ({"a": {"path": "/x", "num_page": 3}}, "unknown setting models.a.num_page; did you mean models.a.num_pages"),
        ({"a": {"path": "/x", "num_pages": -3}}, "models.a.num_pages is at least 0; given -3"),
        ({"a": {"path": "/x", "device": "tpu"}}, "models.a.device is auto, cpu, cuda or cuda:NUMBER; given 'tpu'"),
        ({"a": {"path": "/x", "replicas": 257}}, "models.a.replicas is at most 256; given 257"),
        ({"a": {"path": "/x", "name": "b"}}, "models.a.name is 'a', or not given; given 'b'"),
        ({"a": {"path": "/x", "adapters": {"l": "/y"}}}, "models.a.adapters: adapters are of the default model alone"),
        ({str(n): "/x" for n in range(16)}, "an engine serves at most 16 models; given 17"),
    ],
)
def test_other_models_that_cannot_be_are_refused(models: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        load({"models": models})


def test_a_default_model_whose_name_none_of_several_may_have_is_refused_before_anything_starts() -> None:
    alone = {"model": {"path": "/models/My Model"}}
    assert load(alone).model.served_name == "My Model"
    with pytest.raises(ConfigError, match="its folder's is 'My Model': give it a `name`"):
        load({**alone, "models": {"small": "/x"}})
    named = load({"model": {"path": "/models/My Model", "name": "mine"}, "models": {"small": "/x"}})
    assert list(named.serving("small").all_models()) == ["", "mine"]
    assert list(load({"model": {"path": "."}, "models": {"small": "/x"}}).all_models()) == ["", "small"]
