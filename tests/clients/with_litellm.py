"""litellm, which takes any server of OpenAI's API as `openai/MODEL` with `api_base`: `python with_litellm.py URL`."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.metadata import version
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no table of prices from the web

import litellm

SUM = [{"role": "user", "content": "12+7=? Think step by step."}]
ANSWER = "2+7+0=9; 1+0+0=1; answer 19"
HERE: dict[str, Any] = {"api_base": f"{sys.argv[1]}/v1", "api_key": "none"}

litellm.telemetry = False
done = litellm.completion(model="openai/pie-tiny", messages=SUM, temperature=0, **HERE)
assert done.choices[0].message.content == ANSWER
assert done.usage.total_tokens == 35
stream = litellm.completion(model="openai/pie-tiny", messages=SUM, temperature=0, stream=True, **HERE)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER
later = asyncio.run(litellm.acompletion(model="hosted_vllm/pie-tiny", messages=SUM, temperature=0, top_k=1, **HERE))
assert later.choices[0].message.content == ANSWER
text = litellm.text_completion(model="text-completion-openai/pie-tiny", prompt="12+7=", temperature=0, **HERE)
assert text.choices[0].text == "19"
vectors = litellm.embedding(model="openai/pie-tiny", input=["12+7="], **HERE)
assert len(vectors.data) == 1
try:
    litellm.completion(model="openai/nothing", messages=SUM, num_retries=0, **HERE)
except litellm.NotFoundError:
    pass
else:
    raise AssertionError("refused")
print("litellm", version("litellm"))
