"""Methods that look inside of the pass, as tensor programs: each by its formula, recomputed by transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from library import Reference, run_all, run_one

from pieray.models.sampler import uniforms

LONG = "the quick brown fox jumps over the lazy dog, and so on, as 3+4=7, 20+31=51, 25+45=70, red blue red blue; "
SIZE = 16


def test_top_n_sigma_draws_within_n_deviations_at_any_temperature(engine: Any, reference: Reference) -> None:
    """Each draw is the inverse of the distribution that the formula gives, at the built-in samplers' random number."""
    found = run_all(engine, "top-n-sigma", [{"temperature": t, "seed": 3, "n": 1.5} for t in (0.5, 1.0, 4.0)])
    first = len(reference.encode("the"))
    for temperature, one in zip((0.5, 1.0, 4.0), found, strict=True):
        rows = reference.logits(one["tokens"])[first - 1 : -1]
        for place, (logits, token) in enumerate(zip(rows, one["tokens"][first:], strict=True)):
            kept = logits >= logits.max() - 1.5 * logits.std()
            assert kept[token]
            weights = np.where(kept, np.exp((logits - logits.max()) / temperature), 0)
            drawn = uniforms(np.array([3], np.uint64), np.array([first - 1 + place], np.uint64))[0]
            assert token == np.searchsorted(weights.cumsum(), drawn * weights.sum(), side="right")
    assert len({tuple(one["tokens"]) for one in found}) == 3


def test_quest_with_all_pages_is_full_attention_and_else_reads_what_it_says(engine: Any, reference: Reference) -> None:
    given = {"prompt": LONG, "max_tokens": 40, "ignore_eos": True}
    every, few, from_first = run_all(
        engine,
        "quest-attention",
        [given | {"num_pages": 99}, given | {"num_pages": 2}, given | {"num_pages": 2, "first_layer": 0}],
    )
    first = len(reference.encode(LONG))
    assert every["tokens"][first:] == list(reference.logits(every["tokens"]).argmax(-1)[first - 1 : -1])
    assert every["pages_read"] == every["pages_held"]
    held = [-(-length // SIZE) for length in range(first + 1, first + 40)]
    for one, num_layers in ((few, 4), (from_first, 6)):
        assert one["rows"] == 39 * num_layers
        assert one["pages_held"] == num_layers * sum(held)
        assert 2 * one["rows"] <= one["pages_read"] <= 3 * one["rows"], "two, and that of the token"
        assert one["pages_read"] < 0.5 * one["pages_held"]
    assert from_first["tokens"] != every["tokens"]


def test_h2o_gives_back_the_pages_with_the_least_attention(engine: Any, reference: Reference) -> None:
    """Text is that of its mask; each page that goes had the least attention that transformers gives, added up."""
    budget, recent = 4, 2
    found = run_one(engine, "h2o-cache", prompt=LONG, budget=budget, recent=recent, max_tokens=70, ignore_eos=True)
    tokens, first = found["tokens"], len(reference.encode(LONG))
    rows, columns = np.indices((len(tokens), len(tokens)))
    visible = columns <= rows
    for position, page, _ in found["dropped"]:
        visible &= ~((rows >= position) & (columns // SIZE == page))
    assert tokens[first:] == list(reference.logits(tokens, visible=visible).argmax(-1)[first - 1 : -1])
    bias = torch.where(torch.from_numpy(visible), 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        given = reference.model(torch.tensor([tokens]), attention_mask=bias, output_attentions=True).attentions
    weights = torch.stack(given).mean((0, 1, 2)).double().numpy()  # over layers and heads: [tokens, tokens]
    live: list[int] = []
    for position, page, total in found["dropped"]:
        live = sorted(
            {*live, *range(-(-position // SIZE))} - {gone for at, gone, _ in found["dropped"] if at < position}
        )
        sums = {one: weights[:position, one * SIZE : one * SIZE + SIZE].sum() for one in live}
        assert abs(sums[page] - total) < 1e-2
        assert sums[page] <= min(sums[one] for one in live[:-recent]) + 1e-2
        live.remove(page)
    assert len(found["dropped"]) >= 4
    assert found["num_pages"] <= budget + 1
    whole = run_one(engine, "h2o-cache", prompt=LONG, budget=99, max_tokens=70, ignore_eos=True)
    assert whole["num_pages"] == -(-(len(whole["tokens"]) - 1) // SIZE) > found["num_pages"]


def test_steering_by_a_difference_of_means_moves_the_stated_logit(engine: Any, reference: Reference) -> None:
    """A vector of 0 changes nothing; further along it, the logit of what it stands for is higher; back, lower."""
    scales = (0.0, 0.5, 1.0, -1.0)
    zero, half, whole, back = run_all(engine, "steering", [{"scale": scale} for scale in scales])
    prompt, one = reference.encode("the cat and the"), reference.encode("1")
    plain = reference.logits(prompt)[-1][one[0]]
    assert all(abs(found["before"] - plain) < 1e-3 for found in (zero, half, whole, back))
    assert zero["after"] == zero["before"]
    assert zero["tokens"][len(prompt) :] == list(reference.logits(zero["tokens"]).argmax(-1)[len(prompt) - 1 : -1])
    assert back["after"] < zero["after"] < half["after"] < whole["after"]
    vector = difference(reference, ["3+4=", "20+31=", "8+8="], ["the king and the", "a red", "the"], layer=3)
    with added(reference, vector, layer=3):
        assert abs(reference.logits(prompt)[-1][one[0]] - whole["after"]) < 1e-2
        said = list(reference.logits(whole["tokens"]).argmax(-1)[len(prompt) - 1 : -1])
    assert whole["tokens"][len(prompt) :] == said


def difference(reference: Reference, towards: list[str], away: list[str], layer: int) -> torch.Tensor:
    """Of the means of what transformers has in front of a layer at the last token."""

    def mean(texts: list[str]) -> torch.Tensor:
        states = []
        for text in texts:
            with torch.inference_mode():
                found = reference.model(torch.tensor([reference.encode(text)]), output_hidden_states=True)
            states.append(found.hidden_states[layer][0, -1])
        return torch.stack(states).mean(0)

    return mean(towards) - mean(away)


class added:
    """Adds a vector in front of a layer of the reference."""

    def __init__(self, reference: Reference, vector: torch.Tensor, layer: int) -> None:
        self._layer = reference.model.model.layers[layer]
        self._vector = vector

    def __enter__(self) -> None:
        self._hook = self._layer.register_forward_pre_hook(lambda _, args: (args[0] + self._vector, *args[1:]))

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def test_many_programs_at_once_give_what_each_gives_alone(engine: Any) -> None:
    """Equal text alone and in a crowd, with plain programs beside it."""
    names = ["top-n-sigma", "quest-attention", "h2o-cache", "steering", "text-completion"]
    given = [{"max_tokens": 24} if name != "text-completion" else {"prompt": "the", "max_tokens": 24} for name in names]
    alone = [run_one(engine, name, **one) for name, one in zip(names, given, strict=True)]
    processes = engine.launch_many([(name, one) for name, one in zip(names * 4, given * 4, strict=True)])
    crowd = [process.result(timeout=120) for process in processes]
    for place, one in enumerate(crowd):
        wanted = alone[place % len(names)]
        assert one.get("tokens", one.get("text")) == wanted.get("tokens", wanted.get("text"))
