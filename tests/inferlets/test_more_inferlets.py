"""Inferlets on single parts of the programming model, on a running engine with pie-tiny."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from engines import assert_pages_return
from programs import program

import pieray
from pieray.errors import InvalidRequest

THINK = "12+7=? Think step by step."

LOGITS = program(
    """
from inferlet import forward, kv, model, queue

async def main(prompt, choice):
    # All logits after each token but the last.
    tokens, targets = model.tokenize(prompt), model.tokenize(choice)
    line, pages = queue.create(), kv.alloc(8)
    run = forward.forward(line, pages, 0, tokens + targets[:-1])
    asked = [run.logits(len(tokens) - 1 + i) for i in range(len(targets))]
    return [[await one for one in asked], targets]
""",
    "logits",
)

BACKTRACK = program(
    """
from inferlet import Context, Sampler, forward, kv, model, queue

async def main(prompt, avoid, max_tokens):
    # The definition: one pass for each token, and a step back where a word of `avoid` has come to stand.
    prompt, drawn, banned = Context().user(prompt).cue().tokens, [], {}
    line, count, stops = queue.create(), 0, model.stop_tokens()
    while len(drawn) < max_tokens and not (drawn and drawn[-1] in stops):
        pages = kv.alloc(32)
        bias = {token: float("-inf") for token in banned.get(len(drawn), ())}
        run = forward.forward(line, pages, 0, prompt + drawn)
        drawn += await run.sample(sampler=Sampler(temperature=0.0, logit_bias=bias))
        kv.free(pages)
        text = model.detokenize(drawn, skip_special=True)
        for word in avoid:
            if word in text:
                sizes = [len(model.detokenize(drawn[:n + 1])) for n in range(len(drawn))]
                place = next(n for n, size in enumerate(sizes) if size > text.index(word))
                banned = {at: ids for at, ids in banned.items() if at <= place}
                banned.setdefault(place, []).append(drawn[place])
                drawn, count = drawn[:place], count + 1
                break
    return [model.detokenize(drawn, skip_special=True), count]
""",
    "backtrack-slowly",
)

DELETE = program(
    """
from inferlet import Context

async def main(snapshot):
    await Context.delete(snapshot)
""",
    "delete",
)


def run(engine: Any, name: Any, **arguments: object) -> Any:
    return engine.launch(name, arguments).result(timeout=60)


def complete(engine: Any, prompt: str, **arguments: object) -> str:
    text: str = run(engine, "text-completion", prompt=prompt, **arguments)["text"]
    return text


# -- choose: scores without generating


@pytest.mark.parametrize(("prompt", "index"), [("12+7=", 1), ("11+7=", 0), ("13+7=", 2)])
def test_choose_takes_the_right_sum(engine: Any, prompt: str, index: int) -> None:
    choices = ["18", "19", "20"]
    assert run(engine, "choose", prompt=prompt, choices=choices)["choice"] == choices[index]


def test_scores_are_the_logarithms_of_the_softmax(engine: Any) -> None:
    choices = ["19", "3 1 2", "blue and red"]
    sums = run(engine, "choose", prompt="12+7=", choices=choices, by="sum")["scores"]
    means = run(engine, "choose", prompt="12+7=", choices=choices)["scores"]
    for choice, total, mean in zip(choices, sums, means, strict=True):
        logits, targets = run(engine, LOGITS, prompt="12+7=", choice=choice)
        rows = np.array(logits, dtype=np.float64)
        scores = [row[target] - np.log(np.exp(row).sum()) for row, target in zip(rows, targets, strict=True)]
        assert total == pytest.approx(sum(scores), abs=1e-3)
        assert mean == pytest.approx(sum(scores) / len(scores), abs=1e-3)


def test_choose_names_what_is_wrong(engine: Any) -> None:
    with pytest.raises(InvalidRequest, match="no choice is empty"):
        run(engine, "choose", prompt="1", choices=["a", ""])


# -- priorities: queues


def test_the_urgent_prompt_is_ready_first_though_it_came_last(ray_cluster: None) -> None:
    prompts = [f"{start}+{'the quick brown fox ' * 12}=" for start in range(3)]
    with pieray.start(namespace="tests-priorities", model={"max_batch_tokens": 32}) as engine:
        ranked = run(engine, "priorities", prompts=prompts, priorities=[0, 5, 10])
        plain = run(engine, "priorities", prompts=prompts, priorities=[0, 0, 0])
        assert_pages_return(engine)
        expected = [complete(engine, prompt, max_tokens=1) for prompt in prompts]
    assert ranked["order"][0] == 2  # the first may have begun before the others came: it may be second
    assert plain["order"] == [0, 1, 2]
    assert ranked["next"] == plain["next"] == expected


# -- backtrack: a decode plan that is paused, cut and changed


@pytest.mark.parametrize("avoid", [["answer"], ["answer", "1"], ["the", "is", "19"]])
def test_what_is_avoided_is_taken_back(engine: Any, avoid: list[str]) -> None:
    plain = complete(engine, THINK, chat=True, max_tokens=40)
    result = run(engine, "backtrack", prompt=THINK, avoid=avoid, max_tokens=40, max_rewrites=100, chat=True)
    text, count = run(engine, BACKTRACK, prompt=THINK, avoid=avoid, max_tokens=40)
    assert any(word in plain for word in avoid)
    assert not any(word in result["text"] for word in avoid)
    assert (result["text"], len(result["rewrites"])) == (text, count)


def test_nothing_to_avoid_changes_nothing_and_rewrites_are_bounded(engine: Any) -> None:
    plain = complete(engine, THINK, chat=True, max_tokens=40)
    result = run(engine, "backtrack", prompt=THINK, avoid=["zebra"], max_tokens=40, chat=True)
    assert (result["text"], result["rewrites"], result["finish_reason"]) == (plain, [], "stop")
    result = run(engine, "backtrack", prompt=THINK, avoid=["answer"], max_rewrites=0, max_tokens=40, chat=True)
    assert result["finish_reason"] == "avoided"


# -- soft-prompt: embeddings


def test_a_soft_prompt_is_one_prompt_at_zero_and_the_other_at_one(engine: Any) -> None:
    a, b = "12+7=", "15+8="
    ends = [run(engine, "soft-prompt", a=a, b=b, weight=weight, max_tokens=8)["text"] for weight in (0, 1)]
    assert ends == [complete(engine, prompt, max_tokens=8) for prompt in (a, b)]
    assert ends[0] != ends[1]


def test_a_mix_is_what_transformers_makes_of_it(engine: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pieray.assets import model_folder

    folder = model_folder("pie-tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = model.get_input_embeddings()
    for weight in (0.3, 0.7, 2.0):
        one, other = (table(torch.tensor([tokenizer(text)["input_ids"]])) for text in ("12+7=", "35+8="))
        with torch.no_grad():
            first = int(model(inputs_embeds=(1 - weight) * one + weight * other).logits[0, -1].argmax())
        result = run(engine, "soft-prompt", a="12+7=", b="35+8=", weight=weight, max_tokens=1)
        assert result["text"] == tokenizer.decode([first])


# -- seeded-draws: randomness and limits


def test_a_seed_repeats_what_is_random_and_without_one_it_is(engine: Any) -> None:
    draw = {"prompt": "the", "n": 6, "temperature": 1.5}
    first, again, other = (run(engine, "seeded-draws", seed=seed, **draw) for seed in (7, 7, 8))
    fresh = [run(engine, "seeded-draws", **draw)["texts"] for _ in range(2)]
    assert (first["texts"], first["pick"]) == (again["texts"], again["pick"])
    assert len(set(first["texts"])) > 1
    assert first["pick"] in first["texts"]
    assert len({tuple(texts) for texts in (first["texts"], other["texts"], *fresh)}) == 4


def test_draws_stay_within_the_limit_of_pages(engine: Any) -> None:
    wide = run(engine, "seeded-draws", prompt="the", n=6, seed=7)
    narrow = engine.launch("seeded-draws", {"prompt": "the", "n": 6, "seed": 7}, limits={"pages": 8}).result(timeout=60)
    assert wide["width"] == 6
    assert 1 <= narrow["width"] < 6
    assert narrow["texts"] == wide["texts"]


# -- approval: a person in the loop, snapshots and the store


def talk(engine: Any, thread: str, answers: list[str], **arguments: object) -> tuple[Any, list[str]]:
    """The result, and the drafts that were shown, each answered with the next of `answers` while there are some."""
    process = engine.launch("approval", {"thread": thread, "idle_timeout": 30 if answers else 0.1, **arguments})
    left, drafts = list(answers), []
    guard = threading.Timer(60, process.kill)
    guard.start()
    for event in process.events():
        if event.kind == "data":
            told = json.loads(event.text)
            assert told["name"] == "approve"
            drafts.append(told["value"]["draft"])
            if left:
                process.send(left.pop(0))
    guard.cancel()
    return process.result(timeout=60), drafts


def test_a_person_approves_in_a_later_run(engine: Any) -> None:
    waiting, shown = talk(engine, "later", [], prompt=THINK)
    approved, shown_again = talk(engine, "later", ["yes"])
    fresh, _ = talk(engine, "later", ["no"], prompt="Repeat: blue")
    assert (waiting["status"], waiting["is_resumed"]) == ("waiting", False)
    assert (approved["status"], approved["is_resumed"]) == ("approved", True)
    assert shown == shown_again == [waiting["draft"]] == [complete(engine, THINK, chat=True)]
    assert (fresh["status"], fresh["is_resumed"], "blue" in fresh["draft"]) == ("rejected", False, True)


@pytest.mark.parametrize("is_dropped", [False, True])
def test_a_comment_makes_another_draft_also_after_a_pause(engine: Any, is_dropped: bool) -> None:
    """With its KV pages, or from the words when they are gone."""
    process = engine.launch("chat")
    for said in (THINK, "Repeat: blue", ""):
        process.send(said)
    expected = [turn["assistant"] for turn in process.result(timeout=60)["turns"]]
    thread = f"comment-{is_dropped}"
    talk(engine, thread, [], prompt=THINK)
    if is_dropped:
        run(engine, DELETE, snapshot=f"approval/{thread}")
    result, drafts = talk(engine, thread, ["Repeat: blue", "yes"])
    assert drafts == expected
    assert (result["status"], result["num_turns"]) == ("approved", 2)


# -- penalties: another sampler after each token

PENALTIES = program(
    """
from inferlet import forward, kv, model, queue

async def main(prompt, max_tokens, presence, frequency, min_tokens):
    tokens, drawn, line = model.tokenize(prompt), [], queue.create()
    pages, stops = kv.alloc(-(-(len(tokens) + max_tokens) // kv.page_size())), model.stop_tokens()
    while len(drawn) < max_tokens:
        line_of = tokens if not drawn else drawn[-1:]
        kv_len = 0 if not drawn else len(tokens) + len(drawn) - 1
        logits = await forward.forward(line, pages, kv_len, line_of).logits()
        for token in set(drawn):
            logits[token] -= presence + frequency * drawn.count(token)
        for token in stops if len(drawn) < min_tokens else ():
            logits[token] = float("-inf")
        best = max(range(len(logits)), key=logits.__getitem__)
        if best in stops:
            break
        drawn.append(best)
    return drawn
""",
    "penalties-by-logits",
)


@pytest.mark.parametrize(
    ("presence", "frequency", "least"), [(0.0, 0.0, 0), (1.5, 0.0, 0), (0.0, 0.7, 12), (1.0, 0.4, 20)]
)
def test_penalties_are_taken_from_the_logits(engine: Any, presence: float, frequency: float, least: int) -> None:
    options = {"presence_penalty": presence, "frequency_penalty": frequency, "min_tokens": least}
    result = run(engine, "penalties", prompt="12+7=", max_tokens=24, **options)
    expected = run(
        engine, PENALTIES, prompt="12+7=", max_tokens=24, presence=presence, frequency=frequency, min_tokens=least
    )
    assert result["tokens"] == expected
    assert len(expected) >= least
