"""Retrieval over the tenant's store: rank its documents for a question, and answer from the best."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from inferlet import Context, store

DOCUMENTS = {
    "1": "In Vari lives Mavi, aged 89.",
    "2": "My friend Kemi from Bane is 31.",
    "3": "Sora is 12 years old and lives in Lumo.",
    "4": "The river is long and the king is happy.",
}
FIELDS = {"where": "city", "old": "age", "who": "name"}


@dataclass
class Person:
    """What the reader finds in a document."""

    name: str
    age: int
    city: str


async def main(
    question: str = "Where does Kemi live?",
    documents: dict[str, str] | None = None,
    folder: str = "rag",
    k: int = 1,
    max_tokens: int = 64,
) -> dict[str, Any]:
    """`documents` are put into the store first; what others of the tenant have put below `folder` is found too."""
    for name, text in (DOCUMENTS if documents is None else documents).items():
        await store.put(f"{folder}/{name}", text)
    texts = {name: await store.get(name) for name in await store.names(f"{folder}/")}
    found = ranked(question, texts)[:k]
    answers = [await read(question, texts[name], max_tokens) for name in found]
    return {"answer": answers[0] if answers else None, "answers": answers, "sources": found}


def ranked(question: str, texts: dict[str, str], k1: float = 1.5, b: float = 0.75) -> list[str]:
    """Names of documents that share a word with the question, by BM25."""
    counts = {name: Counter(words(text)) for name, text in texts.items()}
    mean = sum(count.total() for count in counts.values()) / (len(counts) or 1)
    scores = dict.fromkeys(counts, 0.0)
    for word in set(words(question)):
        holders = sum(word in count for count in counts.values())
        rarity = math.log(1 + (len(counts) - holders + 0.5) / (holders + 0.5))
        for name, count in counts.items():
            scores[name] += rarity * count[word] * (k1 + 1) / (count[word] + k1 * (1 - b + b * count.total() / mean))
    return sorted((name for name, score in scores.items() if score > 0), key=lambda name: -scores[name])


async def read(question: str, text: str, max_tokens: int) -> str:
    """The answer in a document: the embedded model reads out persons, the question's words say what of them."""
    async with Context() as ctx:
        person = await ctx.user(f"Extract JSON: {text}").collect_json(Person, max_tokens)
    field = next((field for word, field in FIELDS.items() if word in words(question)), "name")
    return str(getattr(person, field))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
