"""Methods that draw several texts and keep some: what they keep is the best by their measure, and better than one."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from library import Reference, questions, run_all, run_one, total


@pytest.mark.parametrize(("width", "prompt"), [(2, "the"), (4, "a big doctor")])
def test_beam_search_equals_a_brute_force_beam(engine: Any, reference: Reference, width: int, prompt: str) -> None:
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    start, length = reference.encode(prompt), 10
    for _ in range(length):
        grown = []
        for score, said in beams:
            row = reference.log_probs(start + said)[-1]
            grown += [(score + row[token], [*said, int(token)]) for token in range(len(row))]
        best = sorted(grown, reverse=True)[:width]
        finished += [(score, said[:-1]) for score, said in best if said[-1] == reference.stop]
        beams = [one for one in best if one[1][-1] != reference.stop]
        if not beams or max((score for score, _ in finished), default=-np.inf) >= beams[0][0]:
            break
    ranked = sorted(finished + beams, reverse=True)[:width]
    found = run_one(engine, "beam-search", prompt=prompt, width=width, max_tokens=length)["beams"]
    assert [one["text"] for one in found] == [reference.decode(said) for _, said in ranked]
    assert [one["logprob"] for one in found] == pytest.approx([score for score, _ in ranked], abs=1e-3)


def test_a_tree_of_thoughts_is_right_where_one_line_of_thought_goes_wrong(engine: Any) -> None:
    asked = [question for question, _, _ in questions("add3", 16)]
    heat = 2.4
    options = {"chat": True, "temperature": heat, "max_tokens": 64, "seed": 1}
    lines = run_all(engine, "text-completion", [{"prompt": question, **options} for question in asked])
    trees = run_all(engine, "tree-of-thought", [{"question": question, "temperature": heat} for question in asked])
    alone = sum(
        one["text"].rpartition("answer ")[2] == total(question) for one, question in zip(lines, asked, strict=True)
    )
    found = sum(one["answer"] == total(question) for one, question in zip(trees, asked, strict=True))
    assert found >= alone + 4, f"{found} with the tree, {alone} without, of {len(asked)}"
    assert found >= 11
    for one in trees:
        scores = [branch["score"] for branch in one["branches"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) <= 2


def test_a_graph_of_thoughts_sorts_what_one_pass_does_not(engine: Any) -> None:
    items = questions("sort_long", 12)
    once = run_all(engine, "text-completion", [{"prompt": asked, "chat": True} for asked, _, _ in items])
    graphs = run_all(engine, "graph-of-thought", [{"numbers": asked.removeprefix("Sort: ")} for asked, _, _ in items])
    alone = sum(one["text"] == right for one, (_, right, _) in zip(once, items, strict=True))
    found = sum(one["sorted"] == right for one, (_, right, _) in zip(graphs, items, strict=True))
    assert found >= 10, f"{found} with the graph, {alone} in one pass, of {len(items)}"
    assert alone <= 2
    assert all(
        (one["num_errors"] == 0) == (one["sorted"] == right) for one, (_, right, _) in zip(graphs, items, strict=True)
    )


def test_recursion_answers_nested_sums_each_in_a_context_of_its_own(engine: Any) -> None:
    pairs = [tuple(asked.partition("=")[0].split("+")) for asked, _, _ in questions("add2", 24)]
    nested = [
        f"(({a}+{b})+({c}+{d}))+({e}+{f})"
        for (a, b), (c, d), (e, f) in zip(pairs[::3], pairs[1::3], pairs[2::3], strict=True)
    ]
    found = run_all(engine, "recursion-of-thought", [{"question": question} for question in nested])
    right = sum(one["answer"] == eval(question) for one, question in zip(found, nested, strict=True))
    once = run_all(engine, "text-completion", [{"prompt": f"{question}=?", "chat": True} for question in nested])
    alone = sum(one["text"] == str(eval(question)) for one, question in zip(once, nested, strict=True))
    assert right >= len(nested) - 1, f"{right} by recursion, {alone} at once, of {len(nested)}"
    assert alone == 0
    assert all(one["num_contexts"] == 5 and {row["depth"] for row in one["asked"]} == {0, 1, 2} for one in found)


def test_a_skeleton_is_expanded_point_by_point_as_if_each_were_asked_alone(engine: Any) -> None:
    found = run_one(engine, "skeleton-of-thought", question="Sort: 7 3 5 1")
    assert found["points"] == ["1", "3", "5", "7"]
    asked = [{"prompt": f"{point}+{point}=? Think step by step.", "chat": True} for point in found["points"]]
    assert found["expanded"] == [one["text"] for one in run_all(engine, "text-completion", asked)]
    assert [text.rpartition(" ")[2] for text in found["expanded"]] == ["2", "6", "10", "14"]


@pytest.mark.library
def test_a_tree_search_gains_more_than_as_many_draws(engine: Any) -> None:
    wanted = (["river", "happy"], ["doctor", "young"], ["king", "red"], ["tree", "lazy"])
    rollouts = 128
    searched = run_all(engine, "mcts", [{"wanted": words, "rollouts": rollouts} for words in wanted])
    options = {"prompt": "the small cat", "n": rollouts, "temperature": 1.0, "max_tokens": 24, "chat": False}
    drawn = run_one(engine, "best-of-n", **options)["candidates"]
    texts = ["the small cat" + one["text"] for one in drawn]
    rewards = [
        [
            sum(word in text.rstrip(".").split() for word in words) / len(words) * (text.count(".") == 1)
            for text in texts
        ]
        for words in wanted
    ]
    gained, alone = np.mean([one["mean_reward"] for one in searched]), np.mean(rewards)
    assert gained > 1.5 * alone, f"mean reward {gained:.3f} with the search, {alone:.3f} without"
    assert sum(one["reward"] for one in searched) >= sum(max(row) for row in rewards)
    assert all(one["rollouts"] == rollouts for one in searched)


def words_of(text: str) -> Counter[str]:
    words = text.split()
    return Counter(words) + Counter(f"{a} {b}" for a, b in itertools.pairwise(words))


def test_the_minimum_risk_is_the_highest_mean_agreement(engine: Any) -> None:
    items = questions("repeat", 6, seed=2)
    inputs = [{"prompt": asked, "n": 8, "temperature": 2.0, "seed": 3} for asked, _, _ in items]
    right = single = 0.0
    for one, (_, answer, _) in zip(run_all(engine, "minimum-bayes-risk", inputs), items, strict=True):
        bags = [words_of(text) for text in one["texts"]]
        gains = [
            [2 * (a & b).total() / max(a.total() + b.total(), 1) for j, b in enumerate(bags) if i != j]
            for i, a in enumerate(bags)
        ]
        means = [float(np.mean(row)) for row in gains]
        assert one["utilities"] == pytest.approx(means)
        assert one["text"] == one["texts"][int(np.argmax(means))]
        right += one["text"] == answer
        single += float(np.mean([text == answer for text in one["texts"]]))
    assert right > single, f"{right} right by agreement, {single:.1f} of single draws"


@pytest.mark.library
def test_a_vote_is_right_more_often_than_a_draw(engine: Any) -> None:
    asked = [question for question, _, _ in questions("add3", 12, seed=5)]
    inputs = [{"question": question, "n": 7, "temperature": 1.6} for question in asked]
    found = run_all(engine, "self-consistency", inputs)
    right = sum(one["answer"] == total(question) for one, question in zip(found, asked, strict=True))
    single = sum(one["votes"].get(total(question), 0) / 7 for one, question in zip(found, asked, strict=True))
    assert right > single, (right, single)
    for one in found:
        assert one["votes"] == {} or one["votes"][one["answer"]] == max(one["votes"].values())


@pytest.mark.library
def test_a_long_document_is_mapped_and_reduced(engine: Any) -> None:
    items = questions("sort_long", 8, seed=3)
    inputs = [{"document": asked.removeprefix("Sort: ")} for asked, _, _ in items]
    found = run_all(engine, "document-map-reduce", inputs)
    once = run_all(engine, "text-completion", [{"prompt": asked, "chat": True} for asked, _, _ in items])
    mapped = sum(one["answer"] == right for one, (_, right, _) in zip(found, items, strict=True))
    alone = sum(one["text"] == right for one, (_, right, _) in zip(once, items, strict=True))
    assert mapped >= alone + 4, f"{mapped} mapped and reduced, {alone} in one pass, of {len(items)}"
    assert all([len(level) for level in one["levels"]] == [2, 1] for one in found)
