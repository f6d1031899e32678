"""What is wrong with an engine's files is found before anything is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from seeing import make_seeing

import pieray
from pieray.assets import model_folder
from pieray.client.preflight import check_files
from pieray.cluster import ray_cluster as cluster
from pieray.config import load
from pieray.errors import ConfigError, ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    return Path(shutil.copytree(model_folder("pie-tiny"), tmp_path / "model"))


def test_what_is_whole_passes(folder: Path, tmp_path: Path) -> None:
    check_files(load())
    check_files(load({"model": {"path": str(folder)}, "registry_path": str(tmp_path / "new")}))


def test_models_that_run_through_transformers_are_let_through(tmp_path: Path) -> None:
    """The check knows what `way_of` knows: not native alone."""
    make_seeing("llava", tmp_path)
    check_files(load({"model": {"path": str(tmp_path)}}))


@pytest.mark.parametrize(
    ("file", "text"),
    [("config.json", "no such file"), ("tokenizer.json", "no such file"), ("*.safetensors", "pickles")],
)
def test_a_file_that_a_model_lacks_is_named(folder: Path, file: str, text: str) -> None:
    for path in folder.glob(file):
        path.unlink()
    with pytest.raises(ModelError, match=text):
        check_files(load({"model": {"path": str(folder)}}))


def test_a_model_that_cannot_be_served_is_found(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        check_files(load({"model": {"path": str(folder)}}))


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"model": {"adapters": {"a": "/no/such"}}}, ModelError, "adapter 'a': /no/such: no such file"),
        ({"model": {"adapters": {"a": "."}}}, ModelError, r"adapter_config\.json: no such file"),
        ({"model": {"adapters": {"a": 5}}}, ConfigError, "'a' is a file or folder; given 5"),
        ({"registry_path": __file__}, ConfigError, "registry_path is a folder"),
        ({"store_path": "."}, ConfigError, "store_path is a file"),
    ],
)
def test_a_path_that_is_wrong_is_named(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check_files(load(settings))


def test_start_looks_before_it_starts_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "is_local", lambda _: True)
    monkeypatch.setattr(cluster, "join", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(ModelError, match="/nonexistent"):
        pieray.start(model="/nonexistent")
    with pytest.raises(ConfigError, match="model.num_pages is at least 0; given -3"):
        pieray.start(model={"num_pages": -3})
