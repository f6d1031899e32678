"""The parser of large bodies: the same as Python's, bounded, and no thread stands still for it."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieray.server import json_texts
from pieray.server.json_texts import INLINE_BYTES, MOST_DEPTH, MOST_GROUPS, MOST_MEMBERS, MOST_VALUES, loaded

SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SIMPLE, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
FILL = " " * INLINE_BYTES


@given(VALUES, st.sampled_from(["utf-8", "utf-16", "utf-32"]))
def test_it_gives_what_pythons_parser_gives(value: Any, encoding: str) -> None:
    text = json.dumps(value, ensure_ascii=False) + FILL
    assert loaded(text) == value
    assert loaded(text.encode(encoding, "surrogatepass")) == value


@pytest.mark.parametrize("wrong", ["{", "[1,]", '{"a" 1}', "nul", '"a', "[1e999]", "[NaN]", "[-Infinity]", "1 2", ""])
def test_what_is_no_json_is_refused(wrong: str) -> None:
    for text in (wrong, wrong + FILL):
        with pytest.raises(ValueError):  # noqa: PT011 - of many kinds
            loaded(text)


@pytest.mark.parametrize(
    ("fits", "more", "words"),
    [
        ("[" + "1," * (MOST_VALUES - 1) + "1]", "[" + "1," * MOST_VALUES + "1]", "524288 values"),
        ("[" + "[]," * (MOST_GROUPS - 1) + "1]", "[" + "[]," * MOST_GROUPS + "1]", "65536 lists and objects"),
        (
            json.dumps(dict.fromkeys(map(str, range(MOST_MEMBERS)), 1)),
            json.dumps(dict.fromkeys(map(str, range(MOST_MEMBERS + 1)), 1)),
            "131072 members",
        ),
        (
            "[" * MOST_DEPTH + "]" * MOST_DEPTH + FILL,
            "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1) + FILL,
            "more than 64 deep",
        ),
    ],
    ids=["values", "groups", "members", "depth"],
)
def test_what_it_may_make_is_bounded(fits: str, more: str, words: str) -> None:
    assert loaded(fits) == json.loads(fits)
    with pytest.raises(ValueError, match=words):
        loaded(more)


def test_other_threads_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of Python's own parser would leave them at most a turn or two."""
    monkeypatch.setattr(json_texts, "MOST_MEMBERS", 1 << 30)
    text = json.dumps(dict.fromkeys(map(str, range(300_000)), 1))
    done = threading.Event()

    def work() -> None:
        loaded(text)
        done.set()

    parsing = threading.Thread(target=work)
    parsing.start()
    turns = 0
    while not done.is_set():
        time.sleep(0.001)
        turns += 1
    parsing.join()
    assert turns > 20
