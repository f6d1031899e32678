"""Long texts: the same answers as short ones have, from children, in turns of tenants."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from fakes import Bench

from pieray.concurrency.child_process import ChildDied
from pieray.errors import Cancelled, InvalidRequest, PierayError, QuotaExceeded
from pieray.grammar import GrammarCompiler
from pieray.host.handlers import chat, model
from pieray.host.text import textwork
from pieray.host.text.textwork import TextWorkers
from pieray.models.chat_parse import parse_reply
from pieray.wasm.parks import Answer

WAIT_S = 60.0
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
LONG = "héllo wörld 12+7= " * 300


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench(template=TEMPLATE)
    yield made
    made.services.close()


def value_of(found: Any) -> Any:
    """Of a call that is answered later."""
    assert isinstance(found, Future)
    answer = found.result(WAIT_S)
    assert isinstance(answer, Answer)
    assert answer.cpu_time_s > 0
    if answer.error is not None:
        raise answer.error
    return answer.value


def test_long_texts_have_the_answers_that_short_ones_have(bench: Bench) -> None:
    handlers, tokenizer = bench.handlers, bench.parts.models.get("").tokenizer
    ids = value_of(handlers.model.tokenize("", LONG))
    assert ids.tolist() == tokenizer.encode(LONG)
    assert value_of(handlers.model.detokenize("", ids, True)) == tokenizer.decode(ids.tolist())
    messages = json.dumps([{"role": "user", "content": LONG}, {"role": "assistant", "content": "é"}])
    assert value_of(handlers.chat.render("", messages, "", True, "", 0)) == tokenizer.render_json(messages, "")
    assert value_of(handlers.chat.parse("", LONG, False)) == parse_reply(TEMPLATE, LONG).to_json()


def test_short_texts_are_answered_at_once(bench: Bench) -> None:
    handlers = bench.handlers
    assert list(handlers.model.tokenize("", "x" * model.INLINE_BYTES))
    assert handlers.model.detokenize("", np.array([65] * model.INLINE_TOKENS, np.uint32), True)
    assert isinstance(handlers.chat.parse("", "x" * chat.INLINE_BYTES, False), str)
    assert isinstance(handlers.chat.render("", '[{"role": "a", "content": "b"}]', "", True, "", 0), str)


def test_many_tokens_pushed_at_once_are_the_text_of_one_by_one(bench: Bench) -> None:
    handlers = bench.handlers
    ids = np.array(bench.parts.models.get("").tokenizer.encode(LONG), np.uint32)
    one, other = (handlers.model.stream_open("", True, np.array([], np.uint32)) for _ in range(2))
    whole = value_of(handlers.model.stream_push(one, ids))
    assert whole == "".join(handlers.model.stream_push(other, ids[i : i + 1]) for i in range(len(ids))) == LONG


@pytest.mark.parametrize("messages", [f"[{'[' * 5000}", f'"{LONG}"', f"[{'1, ' * 2000}1]"])
def test_what_is_wrong_with_a_long_text_is_told(bench: Bench, messages: str) -> None:
    with pytest.raises(InvalidRequest, match="messages is a JSON list"):
        value_of(bench.handlers.chat.render("", messages, "", True, "", 0))


def test_one_tenant_has_not_all_children(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Bench().parts.models.get("")
    release, workers = threading.Event(), TextWorkers()

    def ask(models: object, request: list[Any], operation: str) -> list[Any]:
        assert request[2] != "greedy" or release.wait(WAIT_S)
        return [request[2], "", "", 0.1]

    monkeypatch.setattr(workers, "_ask", ask)
    greedy = [workers.submit([served], "parse", served, "greedy", tenant="a", owner=str(n)) for n in range(9)]
    modest = workers.submit([served], "parse", served, "modest", tenant="b", owner="x")
    assert modest.result(WAIT_S).value == "modest"
    assert not any(one.done() for one in greedy)
    release.set()
    assert [one.result(WAIT_S).value for one in greedy] == ["greedy"] * 9
    workers.close()
    with pytest.raises(Cancelled):
        workers.submit([served], "parse", served, "late", tenant="b", owner="x")


@pytest.mark.parametrize(
    ("failure", "told"), [(TimeoutError(), "may take 30 s"), (ChildDied(-9), "more memory than there is")]
)
def test_a_child_that_fails_fails_that_text_alone(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, told: str
) -> None:
    class Failing:
        def __init__(self, module: str, opening: object) -> None:
            self.failures = [failure]

        def ask(self, request: list[Any], time_s: float) -> list[Any]:
            if self.failures:
                raise self.failures.pop()
            return ["fine", "", "", 0.0]

        def close(self) -> None: ...

    monkeypatch.setattr(textwork, "Child", Failing)
    served, workers = Bench().parts.models.get(""), TextWorkers()
    with pytest.raises(QuotaExceeded, match=told):
        workers.submit([served], "tokenize", served, "x", tenant="a", owner="").result(WAIT_S)
    assert workers.submit([served], "tokenize", served, "x", tenant="a", owner="").result(WAIT_S).value == "fine"
    workers.close()


def test_steps_of_a_slow_grammar_are_done_apart(bench: Bench) -> None:
    served = bench.parts.models.get("")
    grammar = GrammarCompiler(served.tokenizer.spec, served.info.vocab_size).compile("regex", "[0-9]{1,9}")
    handle = bench.parts.tables.matchers.put(grammar.matcher())
    handlers = bench.handlers
    mask = handlers.grammar.mask(handle)
    grammar.is_slow = True
    assert value_of(handlers.grammar.mask(handle)).tolist() == mask.tolist()
    digits = np.array(served.tokenizer.encode("12"), np.uint32)
    assert value_of(handlers.grammar.accept(handle, digits)) == 2
    assert value_of(handlers.grammar.rollback(handle, 1)) is None
    assert value_of(handlers.grammar.forced(handle)) == []
    with pytest.raises(PierayError, match="rollback: from 0 to 1"):
        value_of(handlers.grammar.rollback(handle, 5))
