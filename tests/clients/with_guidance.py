"""guidance's client of vLLM servers, whose grammars are enforced by the server: `python with_guidance.py URL`."""

from __future__ import annotations

import sys
from importlib.metadata import version

from guidance import assistant, gen, select, user
from guidance.models.experimental import VLLMModel

lm = VLLMModel("pie-tiny", base_url=f"{sys.argv[1]}/v1", api_key="none", echo=False)
with user():
    lm += "12+7=? Think step by step."
with assistant():
    lm += gen(name="free", max_tokens=40, temperature=0)
assert "answer 19" in lm["free"], lm["free"]
with user():
    lm += "Is it even?"
with assistant():
    lm += "It is " + select(["even", "odd"], name="kind") + ", as " + gen(name="number", regex="[0-9]{2}")
assert lm["kind"] in ("even", "odd")
assert len(lm["number"]) == 2
assert lm["number"].isdigit()
print("guidance", version("guidance"))
