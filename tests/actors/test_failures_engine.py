"""What a user gets to read when an inferlet fails: its own lines, and what it logged last."""

from __future__ import annotations

from typing import Any

import pytest
from programs import program

from pieray.errors import Cancelled, GuestFailed, NotFound

SOURCE = """\
from inferlet import log, session

class Oops(Exception):
    pass

def deep(n):
    if n == 0:
        raise Oops("no luck")
    deep(n - 1)

async def main(how):
    for i in range(15):
        print("line", i)
    if how == "wait":
        await session.receive()
    deep(1)
"""


def test_an_error_has_the_traceback_and_the_last_log_lines(engine: Any) -> None:
    with pytest.raises(GuestFailed) as raised:
        engine.launch(program(SOURCE, "oops"), how="fail").result(timeout=60)
    first, *lines = raised.value.message.splitlines()
    assert first == "Oops: no luck"
    assert '  File "oops.py", line 16, in main' in lines
    assert [line for line in lines if "in deep" in line] == [
        '  File "oops.py", line 9, in deep',
        '  File "oops.py", line 8, in deep',
    ]
    assert '    raise Oops("no luck")' in lines
    assert not any("_program.py" in line or "inferlet/" in line for line in lines)
    tail = lines[lines.index("last log lines:") + 1 :]
    assert tail == [f"  info: line {i}" for i in range(5, 15)]


def test_an_inferlet_that_its_client_ended_says_only_that(engine: Any) -> None:
    process = engine.launch(program(SOURCE, "oops"), how="wait")
    process.kill("enough")
    with pytest.raises(Cancelled) as raised:
        process.result(timeout=60)
    assert "line" not in raised.value.message


def test_an_error_of_a_handler_keeps_its_class_and_place(engine: Any) -> None:
    source = "from inferlet import model\n\ndef main():\n    print('asking')\n    model.tokenize('x', 'none')\n"
    with pytest.raises(NotFound) as raised:
        engine.launch(program(source, "asks")).result(timeout=60)
    assert 'File "asks.py", line 5, in main' in raised.value.message
    assert raised.value.message.endswith("last log lines:\n  info: asking")
