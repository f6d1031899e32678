"""The embedded inferlets on a running engine with pie-tiny."""

from __future__ import annotations

from typing import Any

import pytest
from engines import run

PROMPTS = ["12+7=", "3+4=", "20+31="]
QUESTION = "12+7=? Think step by step."


def complete(engine: Any, prompt: str, **arguments: object) -> Any:
    return run(engine, "text-completion", prompt=prompt, **arguments)


def test_text_completion_streams_what_it_returns(engine: Any) -> None:
    process = engine.launch("text-completion", {"prompt": QUESTION, "chat": True, "max_tokens": 40})
    streamed = "".join(event.text for event in process if getattr(event, "text", None) is not None)
    result = process.result(timeout=60)
    assert result["text"] in streamed
    assert result["finish_reason"] == "stop"
    assert "answer 19" in result["text"]


def test_the_same_seed_gives_the_same_text(engine: Any) -> None:
    options = {"temperature": 1.5, "max_tokens": 24}  # a plain sentence: the model is sure of its sums
    texts = [complete(engine, "the", seed=seed, **options)["text"] for seed in (1, 1, 2, 3, 4)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_a_stop_string_does_not_appear(engine: Any) -> None:
    result = complete(engine, QUESTION, chat=True, max_tokens=40, stop=["answer"])
    assert "answer" not in result["text"]
    assert result["finish_reason"] == "stop"


def test_a_length_is_kept(engine: Any) -> None:
    result = complete(engine, QUESTION, chat=True, max_tokens=3)
    assert (result["num_tokens"], result["finish_reason"]) == (3, "length")


def test_parallel_completions_equal_single_ones(engine: Any) -> None:
    together = run(engine, "parallel-gather", prompts=PROMPTS, max_tokens=12)
    assert [one["text"] for one in together] == [complete(engine, p, max_tokens=12)["text"] for p in PROMPTS]


def test_a_shared_preamble_changes_nothing(engine: Any) -> None:
    questions = [f"{p}? Think step by step." for p in ("12+7", "25+45")]
    together = run(engine, "parallel-gather", prompts=questions, max_tokens=40, preamble="Be kind.", chat=True)
    alone = [
        run(engine, "parallel-gather", prompts=[q], max_tokens=40, preamble="Be kind.", chat=True) for q in questions
    ]
    assert together == [one for (one,) in alone]


def test_chat_remembers_its_turns(engine: Any) -> None:
    process = engine.launch("chat", {"max_tokens": 48, "idle_timeout": 60})
    for message in (QUESTION, "3+5=? Think step by step.", ""):
        process.send(message)
    turns = process.result(timeout=60)["turns"]
    assert [turn["user"] for turn in turns] == [QUESTION, "3+5=? Think step by step."]
    assert turns[0]["assistant"] == complete(engine, QUESTION, chat=True, max_tokens=48)["text"]


def test_best_of_n_keeps_the_best_and_its_candidates_equal_single_runs(engine: Any) -> None:
    result = run(engine, "best-of-n", prompt=QUESTION, n=4, max_tokens=24, temperature=1.0, seed=7, chat=True)
    assert result["score"] == max(candidate["score"] for candidate in result["candidates"])
    for i, candidate in enumerate(result["candidates"]):
        alone = complete(engine, QUESTION, max_tokens=24, temperature=1.0, seed=7 + i, chat=True)
        assert candidate["text"] == alone["text"]


def test_self_consistency_agrees_on_a_sum(engine: Any) -> None:
    result = run(engine, "self-consistency", question=QUESTION, n=5, temperature=0.3)
    assert result["answer"] == "19"
    assert sum(result["votes"].values()) <= 5


def test_react_agent_calculates(engine: Any) -> None:
    result = run(engine, "agent-react", question="What is 12 plus 7?")
    assert result["answer"] == "19"
    assert [step["observation"] for step in result["steps"]] == ["19"]
    assert "Action: calc(12+7)" in result["steps"][0]["text"]


def test_beam_search_of_width_one_is_greedy_and_wider_is_no_worse(engine: Any) -> None:
    greedy = complete(engine, QUESTION, chat=True, max_tokens=24)["text"]
    one, four = (run(engine, "beam-search", prompt=QUESTION, chat=True, width=w, max_tokens=24) for w in (1, 4))
    assert one["text"] == greedy
    assert four["logprob"] >= one["logprob"] - 1e-4


def test_prompt_lookup_equals_greedy_in_fewer_passes(engine: Any) -> None:
    prompt = "Repeat: red blue red blue red blue"
    result = run(engine, "speculative-decoding", prompt=prompt, chat=True, max_tokens=32)
    assert result["text"] == complete(engine, prompt, chat=True, max_tokens=32)["text"]
    assert result["num_passes"] < result["num_tokens"]


def test_a_wrong_argument_is_named(engine: Any) -> None:
    with pytest.raises(Exception, match="did you mean 'prompt'"):
        run(engine, "text-completion", promt="x")
