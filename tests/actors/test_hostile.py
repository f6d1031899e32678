"""Hostile inferlets on the real engine: each ends with its own typed error within its limits, while a neighbour in
the same actor finishes its text unharmed and all pages return."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import GENERATE, program

from pieray import Process, ProgramSource
from pieray.errors import (
    BadHandle,
    DeadlineExceeded,
    GuestFailed,
    GuestTrapped,
    InvalidRequest,
    PierayError,
    QuotaExceeded,
)
from pieray.messages import Launch, encode

MISBEHAVE_PATH = Path(__file__).parent.parent / "inferlets" / "guests_c" / "misbehave.wasm"
MISBEHAVE = MISBEHAVE_PATH.read_bytes()
TIGHT = {"cpu_time_s": 1.0, "wall_time_s": 20.0, "memory_bytes": 64 << 20}

HOLDING = """
from inferlet import Context, kv, forward, queue, session, runtime
async def main():
    ctx = Context()
    ctx.append([1] * 100)
    await ctx.flush()
    {body}
"""


def holding(body: str) -> ProgramSource:
    """A program that misbehaves while it holds pages."""
    return program(HOLDING.format(body="\n    ".join(body.splitlines())), "hostile")


ATTACKS: dict[str, tuple[ProgramSource, tuple[type[PierayError], ...], str]] = {
    "infinite loop": (holding("while True: pass"), (QuotaExceeded,), "cpu_time_s"),
    "loop that catches everything": (
        holding("while True:\n    try:\n        while True: pass\n    except BaseException: pass"),
        (QuotaExceeded,),
        "cpu_time_s",
    ),
    "regex bomb": (holding("import re; re.match('(a+)+$', 'a' * 40 + 'b')"), (QuotaExceeded,), "cpu_time_s"),
    "memory bomb": (holding("x = []\nwhile True: x.append(bytearray(1 << 20))"), (QuotaExceeded,), "memory_bytes"),
    "deep recursion": (holding("def f(): return f()\nf()"), (GuestFailed,), "RecursionError"),
    "recursion in C": (
        holding("import sys\nsys.setrecursionlimit(10**9)\na = []\nfor _ in range(200000): a = [a]\nrepr(a)"),
        (GuestTrapped,),
        "call stack exhausted",
    ),
    "flood of host calls": (holding("while True: runtime.instance_id()"), (QuotaExceeded,), "cpu_time_s"),
    # worked on in other processes, and charged to it all the same
    "flood of long texts": (
        holding("from inferlet import model\nwhile True: model.tokenize('tell me more, ' * 18000)"),
        (QuotaExceeded, DeadlineExceeded),
        "cpu_time_s|wall_time_s",
    ),
    "flood of long chats": (
        holding("from inferlet import chat\nwhile True: chat.render([{'role': 'user', 'content': 'x' * 250000}])"),
        (QuotaExceeded, DeadlineExceeded),
        "cpu_time_s|wall_time_s",
    ),
    "flood of tickets": (holding("while True: session.receive()"), (QuotaExceeded,), "cpu_time_s|tickets"),
    "flood of messages": (holding("while True: session.send('x' * 100000)"), (QuotaExceeded,), "output_bytes"),
    "flood of logs": (holding("while True: print('x' * 1000)"), (QuotaExceeded,), "log_bytes"),
    "page hog": (holding("while True: kv.alloc(1000)"), (QuotaExceeded,), "pages"),
    "10 MB string": (holding("session.send('x' * 10_000_000)"), (QuotaExceeded,), "message_bytes"),
    "exit": (holding("import os; os._exit(0)"), (GuestTrapped,), "exited"),
    "abort": (holding("import os; os.abort()"), (GuestTrapped,), "unreachable"),
    "file": (holding("open('/etc/passwd')"), (GuestFailed,), "FileNotFoundError"),
    "socket": (holding("import socket; socket.socket().connect((b'127.0.0.1'.decode(), 22))"), (GuestFailed,), "Error"),
    "forged page": (holding("kv.free([123456789])"), (BadHandle,), "123456789"),
    "closed page": (holding("p = kv.alloc(1); kv.free(p); kv.free(p)"), (BadHandle,), "page handle"),
    "huge count": (holding("kv.alloc(2**32 - 1)"), (QuotaExceeded,), "4294967295"),
    "negative count": (holding("kv.alloc(-1)"), (InvalidRequest,), "given -1"),
    "sleep past the wall": (holding("import asyncio; await asyncio.sleep(100)"), (DeadlineExceeded,), "wall_time_s"),
}


@pytest.fixture(scope="module")
def expected(engines: Callable[[str], Any]) -> list[int]:
    ids: list[int] = engines("socket").launch(GENERATE, prompt="12+7=").result(timeout=60)
    return ids


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_its_inferlet_alone(engine: Any, expected: list[int], attack: str) -> None:
    source, errors, text = ATTACKS[attack]
    limits = {**TIGHT, "wall_time_s": 1.0} if "wall" in attack else TIGHT
    hostile = engine.launch(source, limits=limits)
    neighbour = engine.launch(GENERATE, prompt="12+7=")
    with pytest.raises(errors, match=text):
        hostile.result(timeout=40)
    assert neighbour.result(timeout=40) == expected


@pytest.mark.parametrize(
    "doing",
    [
        "store-out-of-bounds",
        "string-too-long",
        "list-too-long",
        "unreachable",
        "recurse",
        "spin",
        "flood",
        "flood-wait",
        "grow",
    ],
)
def test_a_hostile_component_ends_alone(engine: Any, expected: list[int], doing: str) -> None:
    hostile = launch_component(engine, MISBEHAVE, doing)
    neighbour = engine.launch(GENERATE, prompt="12+7=")
    with pytest.raises((GuestTrapped, QuotaExceeded)):
        hostile.result(timeout=40)
    assert neighbour.result(timeout=40) == expected


def test_forged_handles_of_every_kind_are_told_from_real_ones(engine: Any) -> None:
    answers = launch_component(engine, MISBEHAVE, "forged-handles").result(timeout=40)
    assert len(answers) == 21
    assert set(answers.values()) == {"bad-handle"}


def test_wild_numbers_are_typed_errors(engine: Any) -> None:
    answers = launch_component(engine, MISBEHAVE, "wild-numbers").result(timeout=40)
    assert answers
    assert set(answers.values()) <= {"bad-handle", "invalid", "quota", "not-found", "ok"}


def test_a_component_in_c_completes_text(engine: Any) -> None:
    component = MISBEHAVE_PATH.with_name("completion.wasm").read_bytes()
    process = engine.launch(ProgramSource("c", "completion.wasm", component=component), prompt="12+7=", max_tokens=8)
    wanted = engine.launch("text-completion", prompt="12+7=", max_tokens=8).result(timeout=30)
    texts = "".join(event.text for event in process)
    result = process.result(timeout=30)
    assert result["text"] == texts == wanted["text"]


def launch_component(engine: Any, component: bytes, text: str) -> Process:
    """Launch with `text` as it is: this guest reads no JSON."""
    message = Launch(f"raw-{secrets.token_hex(4)}", "raw", "misbehave.wasm", "", component, text, TIGHT)
    engine._ask("launch", encode([message]))
    process: Process = engine.attach(message.instance_id)
    return process
