"""Outlines, as with a vLLM server and as with OpenAI: `python with_outlines.py URL`."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from typing import Literal

import openai
import outlines
from outlines.types import CFG, Regex
from pydantic import BaseModel

SUM = "12+7=? Think step by step."
ANSWER = "2+7+0=9; 1+0+0=1; answer 19"
WHO = "Extract JSON: In Vari lives Mavi, aged 89."


class Person(BaseModel):
    name: str
    age: int
    city: str


client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
model = outlines.from_vllm(client, "pie-tiny")
assert model(SUM, temperature=0) == ANSWER
assert "".join(model.stream(SUM, temperature=0)) == ANSWER
assert model(SUM, Literal["red", "blue"]) in ("red", "blue")
assert re.fullmatch("[0-9]{3}-[0-9]{4}", model(SUM, Regex("[0-9]{3}-[0-9]{4}")))
assert model(SUM, CFG('start: "ab" | "cd"')) in ("ab", "cd")
mavi = Person(name="Mavi", age=89, city="Vari")
assert Person.model_validate_json(model(WHO, Person, temperature=0, max_tokens=64)) == mavi
plain = outlines.from_openai(client, "pie-tiny")
assert Person.model_validate_json(plain(WHO, Person, temperature=0, max_tokens=64)) == mavi
print("outlines", version("outlines"))
