"""LangChain's ChatOpenAI, OpenAI and OpenAIEmbeddings, with another `base_url`: `python with_langchain.py URL`."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

BASE = f"{sys.argv[1]}/v1"
SUM = "12+7=? Think step by step."
ANSWER = "2+7+0=9; 1+0+0=1; answer 19"

llm = ChatOpenAI(model="pie-tiny", base_url=BASE, api_key="none", temperature=0, max_tokens=64)  # type: ignore[arg-type]
done = llm.invoke(SUM)
assert done.content == ANSWER
assert done.usage_metadata is not None
assert done.usage_metadata["output_tokens"] == 22
assert llm.invoke([SystemMessage("Be brief."), HumanMessage(SUM)]).content
assert "".join(str(chunk.content) for chunk in llm.stream(SUM)) == ANSWER
assert [one.content for one in llm.batch([SUM, SUM])] == [ANSWER, ANSWER]
chain = ChatPromptTemplate.from_messages([("user", "{a}+{b}=? Think step by step.")]) | llm
assert asyncio.run(chain.ainvoke({"a": 12, "b": 7})).content == ANSWER


@tool
def timer(minutes: int) -> str:
    """Set a timer."""
    return f"{minutes} minutes"


messages: list[Any] = [HumanMessage("Set a timer for 6 minutes.")]
bound = llm.bind_tools([timer])
called = bound.invoke(messages)
assert isinstance(called, AIMessage)
assert [(call["name"], call["args"]) for call in called.tool_calls] == [("timer", {"minutes": 6})]
messages += [called, ToolMessage("done", tool_call_id=called.tool_calls[0]["id"])]
assert bound.invoke(messages).content == "The result: done."


class Person(BaseModel):
    name: str
    age: int
    city: str


for method in ("json_schema", "function_calling"):
    found = llm.with_structured_output(Person, method=method).invoke("Extract JSON: In Vari lives Mavi, aged 89.")
    assert isinstance(found, Person), (method, found)
assert llm.with_structured_output(Person).invoke("Extract JSON: In Vari lives Mavi, aged 89.") == Person(
    name="Mavi", age=89, city="Vari"
)
responses = ChatOpenAI(
    model="pie-tiny",
    base_url=BASE,
    api_key="none",  # type: ignore[arg-type]
    temperature=0,
    use_responses_api=True,
)
assert responses.invoke(SUM).text == ANSWER
plain = OpenAI(model="pie-tiny", base_url=BASE, api_key="none", temperature=0)  # type: ignore[arg-type]
assert plain.invoke("12+7=") == "19"
embeddings = OpenAIEmbeddings(
    model="pie-tiny",
    base_url=BASE,
    api_key="none",  # type: ignore[arg-type]
    check_embedding_ctx_length=False,  # else it sends the tokens of OpenAI's own tokenizer
)
assert len(embeddings.embed_documents(["12+7=", "12+8="])) == 2
print("langchain-openai", version("langchain-openai"))
