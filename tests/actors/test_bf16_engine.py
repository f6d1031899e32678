"""An engine in bfloat16, with and without the processor's own products: a text is the same alone and in a crowd."""

from __future__ import annotations

import secrets
from itertools import starmap
from typing import Any

import pytest
from engines import assert_pages_return
from programs import GENERATE

import pieray
from pieray.errors import ModelError
from pieray.kernels.decoder_step_cpu import PAIR_KINDS, pair_kinds

PROMPTS = [f"{a}+{b}=" for a in range(10, 14) for b in range(21, 25)]


@pytest.mark.slow
@pytest.mark.parametrize("products", [*PAIR_KINDS, "float32"])
def test_texts_in_bfloat16_are_the_same_alone_and_in_a_crowd(products: str) -> None:
    if products not in (*pair_kinds(), "float32"):
        pytest.skip(f"this processor has no {products}")
    model = {"dtype": "bfloat16", "bf16_products": products, "device": "cpu"}
    with pieray.start(model, namespace=f"bf16-{secrets.token_hex(3)}", prefix_cache=False) as engine:

        def launch(place: int, prompt: str) -> Any:
            drawn = {"temperature": 1.0, "seed": place} if place % 2 else {}
            return engine.launch(GENERATE, prompt=prompt, **drawn)

        alone = [launch(*one).result(timeout=60) for one in enumerate(PROMPTS)]
        crowd = list(starmap(launch, enumerate(PROMPTS)))
        assert [process.result(timeout=60) for process in crowd] == alone
        assert len({tuple(ids) for ids in alone}) > 8
        assert_pages_return(engine)


@pytest.mark.slow
def test_an_engine_says_which_products_its_processor_lacks() -> None:
    missing = next((name for name in PAIR_KINDS if name not in pair_kinds()), None)
    if missing is None:
        pytest.skip("this processor has them all")
    model = {"dtype": "bfloat16", "bf16_products": missing, "device": "cpu"}
    with pytest.raises(ModelError, match=f"bf16_products '{missing}': this processor has"):
        pieray.start(model, namespace=f"bf16-{secrets.token_hex(3)}")
