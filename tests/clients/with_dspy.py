"""DSPy: `python with_dspy.py URL`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no table of prices from the web

import dspy
import litellm

# what litellm asks before it sends a schema; without it DSPy asks for JSON of any shape
litellm.register_model(
    {"openai/pie-tiny": {"litellm_provider": "openai", "mode": "chat", "supports_response_schema": True}}
)
lm = dspy.LM(
    "openai/pie-tiny",
    engine="litellm",
    api_base=f"{sys.argv[1]}/v1",
    api_key="none",
    temperature=0,
    max_tokens=200,
    cache=False,
)
found = lm("12+7=? Think step by step.")
assert "answer 19" in str(found), found


class Parity(dspy.Signature):
    """Tell whether a number is even."""

    number: int = dspy.InputField()
    parity: Literal["even", "odd"] = dspy.OutputField()


dspy.configure(lm=lm, adapter=dspy.JSONAdapter())  # structured output: the format is kept even by a tiny model
said = dspy.Predict(Parity)(number=19)
assert said.parity in ("even", "odd"), said
print("dspy", version("dspy"))
