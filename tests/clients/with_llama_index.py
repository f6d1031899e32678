"""LlamaIndex's OpenAILike: `python with_llama_index.py URL`."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

SUM = "12+7=? Think step by step."
ANSWER = "2+7+0=9; 1+0+0=1; answer 19"

llm = OpenAILike(
    model="pie-tiny",
    api_base=f"{sys.argv[1]}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
    context_window=1024,
    temperature=0,
    max_tokens=64,
)
assert llm.chat([ChatMessage(role="user", content=SUM)]).message.content == ANSWER
assert llm.complete(SUM).text == ANSWER
assert "".join(chunk.delta or "" for chunk in llm.stream_chat([ChatMessage(role="user", content=SUM)])) == ANSWER
assert asyncio.run(llm.achat([ChatMessage(role="user", content=SUM)])).message.content == ANSWER


def timer(minutes: int) -> str:
    """Set a timer."""
    return f"{minutes} minutes"


called = llm.chat_with_tools([FunctionTool.from_defaults(timer)], user_msg="Set a timer for 6 minutes.")
(call,) = llm.get_tool_calls_from_response(called)
assert (call.tool_name, call.tool_kwargs) == ("timer", {"minutes": 6})


class Person(BaseModel):
    name: str
    age: int
    city: str


found = llm.as_structured_llm(Person).complete("Extract JSON: In Vari lives Mavi, aged 89.")
assert found.raw == Person(name="Mavi", age=89, city="Vari"), found
plain = OpenAILike(
    model="pie-tiny", api_base=f"{sys.argv[1]}/v1", api_key="none", is_chat_model=False, temperature=0, max_tokens=8
)
assert plain.complete("12+7=").text == "19"
print("llama-index-llms-openai-like", version("llama-index-llms-openai-like"))
