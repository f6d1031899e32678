"""Every public function of the guest SDK with hostile values, in guests of a running engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sdk_fuzz
from engines import assert_pages_return
from programs import program

from pieray.errors import PierayError

FUZZ = program(Path(sdk_fuzz.__file__).read_text(), "sdk-fuzz")
LIMITS = {"cpu_time_s": 60.0, "wall_time_s": 240.0}
CAPABILITIES = {"messaging": True, "store": True, "children": True}
NUM_GUESTS = 12


@pytest.fixture
def engine(engine: Any) -> Iterator[Any]:
    """The one that all share, as a tenant whose queues, keys and exports are nobody else's."""
    before, engine.tenant = engine.tenant, "fuzz-sdk"
    yield engine
    engine.tenant = before


def test_hostile_values_are_typed_errors_and_no_guest_ends(engine: Any) -> None:
    num_functions = len(list(sdk_fuzz.callables()))
    size = -(-num_functions // NUM_GUESTS)
    running = [
        engine.launch(FUZZ, first=first, last=first + size, limits=LIMITS, capabilities=CAPABILITIES)
        for first in range(0, num_functions, size)
    ]
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for process in running:
        found = process.result(timeout=280)
        outcomes.update(found["outcomes"])
        wrong += found["wrong"]
        assert found["num_functions"] == num_functions
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:60])
    assert outcomes["InvalidRequest"] > 2000
    assert outcomes["ok"] > 1000
    assert_pages_return(engine)


DEEP = """
def main():
    found = []
    for _ in range(1200):
        found = [found]
    return found
"""
NO_TEXT = """
class Odd(Exception):
    def __str__(self):
        raise KeyError('x')

def main():
    raise Odd
"""
DRAFTER = """
from inferlet import Context

async def main():
    await Context('a').generate(4, drafter=lambda tokens: [-1])
"""
USER = """
import json
from inferlet import Context

async def main():
    Context().user(json.loads('"\\\\ud800"'))
"""
#: Source -> class and text of the error that its client gets.
ENDS = {
    "a result that nests too deep": (DEEP, "TypeError", "JSON cannot hold"),
    "an error with a lone surrogate": ("def main():\n    raise ValueError('a\\ud800')", "ValueError", "a\\ud800"),
    "an error that has no text": (NO_TEXT, "Odd", "its __str__ raises KeyError"),
    "an output that is gone": ("import sys\ndef main():\n    sys.stdout = None\n    1 / 0", "ZeroDivision", "zero"),
    "a drafter of ids that are none": (DRAFTER, "InvalidRequest", "given -1"),
    "text from valid JSON": (USER, "InvalidRequest", "surrogate"),
}


def test_a_lone_surrogate_in_a_result_comes_back_as_it_was(engine: Any) -> None:
    found = {"a\ud800": ["\udfff", "é"]}
    source = "from inferlet import session\ndef main(x):\n    session.emit('x', x)\n    return x"
    assert engine.launch(program(source), x=found).result(timeout=60) == found


@pytest.mark.parametrize(("source", "kind", "text"), ENDS.values(), ids=ENDS.keys())
def test_what_ends_a_guest_is_its_own_error_at_its_own_line(engine: Any, source: str, kind: str, text: str) -> None:
    with pytest.raises(PierayError) as raised:
        engine.launch(program(source)).result(timeout=60)
    message = str(raised.value)
    assert kind in message
    assert text in message
    if kind != "TypeError":
        assert 'File "test.py", line' in message
