"""Methods that look things up, judge prompts, and share what many prompts begin with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from library import Reference, questions, run_all, run_one
from programs import program

STORE = program(
    """
from inferlet import store

async def main(put=None, drop=""):
    for key, text in (put or {}).items():
        await store.put(key, text)
    for name in (await store.names(drop) if drop else []):
        await store.delete(name)
""",
    "librarian",
)


def test_answers_come_from_documents_that_anybody_of_the_tenant_has_stored(engine: Any) -> None:
    items = questions("extract", 8, seed=4)
    people = [(asked.removeprefix("Extract JSON: "), right) for asked, right, _ in items]
    put = {f"library-rag/{i}": text for i, (text, _) in enumerate(people)}
    engine.launch(STORE, {"put": put}, capabilities={"store": True}).result(timeout=60)
    try:
        for i, (_, right) in enumerate(people):
            facts = eval(right)
            asked = {"question": f"Where does {facts['name']} live?", "documents": {}, "folder": "library-rag"}
            found = run_one(engine, "rag", **asked)
            assert found["sources"] == [f"library-rag/{i}"]
            assert found["answer"] == facts["city"]
        nothing = run_one(engine, "rag", question="zebra?", documents={}, folder="library-rag")
        assert (nothing["answer"], nothing["sources"]) == (None, [])
    finally:
        engine.launch(STORE, {"drop": "library-rag/"}, capabilities={"store": True}).result(timeout=60)


@pytest.mark.library
def test_a_made_up_answer_finds_the_document_more_often_than_the_question(engine: Any) -> None:
    items = questions("add2", 24, seed=6)
    documents = [said.rpartition("; ")[0] for _, said, _ in items]  # the steps alone
    hits = {}
    for is_hypothetical in (True, False):
        inputs = [
            {"question": asked, "documents": documents, "is_hypothetical": is_hypothetical}
            for asked, _, _ in items[:12]
        ]
        hits[is_hypothetical] = sum(one["index"] == i for i, one in enumerate(run_all(engine, "hyde", inputs)))
    assert hits[True] >= 10, hits
    assert hits[True] >= hits[False] + 5, hits


def test_prompts_are_ranked_by_how_likely_they_make_the_answers(engine: Any, reference: Reference) -> None:
    prompts, examples = ["Sort: {question}", "{question}=", "{question}"], [["12+7", "19"], ["25+45", "70"]]
    found = run_one(engine, "prompt-evaluator", prompts=prompts, examples=examples)
    assert found["best"] == "{question}="
    for row in found["ranking"]:
        for (question, answer), score in zip(examples, row["scores"], strict=True):
            line, targets = reference.encode(row["prompt"].format(question=question)), reference.encode(answer)
            rows = reference.log_probs(line + targets)[len(line) - 1 : -1]
            assert score == pytest.approx(float(rows[np.arange(len(targets)), targets].sum()), abs=1e-2)
    scores = [row["score"] for row in found["ranking"]]
    assert scores == sorted(scores, reverse=True)


def test_what_prompts_share_is_computed_once_to_the_token(engine: Any, reference: Reference) -> None:
    shared = "91+8=99, 47+5=52, a lazy young robot, "
    prompts = [shared + end for end in ("12+7=", "12+9=", "25+45=", "25+4", "the red", "12+7=")]
    process = engine.launch("prefix-tree", {"prompts": prompts, "max_tokens": 6})
    found = process.result(timeout=60)
    plain = run_all(engine, "text-completion", [{"prompt": prompt, "max_tokens": 6} for prompt in prompts])
    assert found["texts"] == [one["text"] for one in plain]
    lines = [reference.encode(prompt) for prompt in prompts]
    tree = {tuple(line[: i + 1]) for line in lines for i in range(len(line))}
    assert found["tree"] == len(tree)
    drawn = sum(one["num_tokens"] - 1 + (one["finish_reason"] == "stop") for one in plain)
    again = 3  # prompts that end where others go on: each draws from the row of its last token, which runs once more
    usage = process.usage()
    assert usage["tokens_computed"] + usage["tokens_found"] == len(tree) + drawn + again
