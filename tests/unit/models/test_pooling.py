"""How a folder says that a model makes one vector of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pieray.assets import model_folder
from pieray.errors import ModelError
from pieray.models.pooling import Pooling
from pieray.models.tokenizer import Tokenizer, TokenizerSpec


def pooling_of(folder: Path, config: dict[str, Any], *kinds: str) -> Pooling:
    paths = {"Pooling": "1_Pooling"}
    modules = [{"path": paths.get(kind, ""), "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return Pooling.from_folder(folder)


def test_a_folder_says_which_states_and_whether_they_have_length_1(tmp_path: Path) -> None:
    assert Pooling.from_folder(tmp_path) == Pooling("last", is_normalized=True)
    off = {"pooling_mode_max_tokens": False, "include_prompt": True}
    for mode, kind in (("lasttoken", "last"), ("mean_tokens", "mean"), ("cls_token", "first")):
        config = {**off, f"pooling_mode_{mode}": True}
        assert pooling_of(tmp_path, config, "Transformer", "Pooling", "Normalize") == Pooling(kind, is_normalized=True)
        assert pooling_of(tmp_path, config, "Transformer", "Pooling") == Pooling(kind, is_normalized=False)


def test_what_is_not_served_says_what_it_is(tmp_path: Path) -> None:
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    assert pooling_of(tmp_path, both, "Pooling").why == "1_Pooling: pooling by mean_tokens, max_tokens"
    dense = pooling_of(tmp_path, {"pooling_mode_mean_tokens": True}, "Transformer", "Pooling", "Dense")
    assert (dense.kind, dense.why) == ("", "modules.json: Dense behind the pooling")
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"modules\.json: not readable as JSON"):
        Pooling.from_folder(tmp_path)


def test_what_a_tokenizer_puts_behind_a_text_is_known() -> None:
    spec = TokenizerSpec.from_folder(model_folder("pie-tiny"))
    assert Tokenizer(spec).end_ids == []
    wanted = json.loads(spec.json)
    parts = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "end", "type_id": 0}}]
    wanted["post_processor"] = {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"end": {"id": "end", "ids": [1], "tokens": ["end"]}},
    }
    tokenizer = Tokenizer(TokenizerSpec(json.dumps(wanted).encode()))
    assert (tokenizer.bos_ids, tokenizer.end_ids) == ([], [1])


@pytest.mark.parametrize("odd", [[1], "mean", 3])
def test_a_config_of_pooling_that_is_no_object_is_refused(odd: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"1_Pooling/config\.json: expected an object, found"):
        pooling_of(tmp_path, odd, "Transformer", "Pooling")
