"""Under which names `pieray serve` offers what an engine serves."""

from __future__ import annotations

import pytest

from pieray.cli.serve import served_names
from pieray.errors import ConfigError

MODELS = [{"name": "pie-tiny"}, {"name": "small"}]


def test_the_default_model_may_be_called_otherwise_and_the_others_keep_their_names() -> None:
    assert served_names(MODELS, None) == ("pie-tiny", ["small"])
    assert served_names(MODELS, "mine") == ("mine", ["small"])
    assert served_names(MODELS[:1], None) == ("pie-tiny", [])


def test_a_name_that_another_model_has_would_hide_one_of_them() -> None:
    with pytest.raises(ConfigError, match="small"):
        served_names(MODELS, "small")
