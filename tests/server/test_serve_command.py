"""`pieray serve` as a process: from nothing to an answer, and to nothing again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from command import CommandLine

HELLO = {"messages": [{"role": "user", "content": "12+7=? Think step by step."}], "temperature": 0}


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def begin(command: CommandLine, *options: str) -> tuple[subprocess.Popen[str], str]:
    """The process once it serves, and its URL."""
    process = command.begin("pieray", "serve", "--port", "0", *options)
    assert process.stderr is not None
    while "pieray: serving" not in (line := process.stderr.readline()):
        assert line, "it has ended"
    assert "no key is asked for" in line
    return process, next(word for word in line.split() if word.startswith("http")).removesuffix("/v1,")


def test_it_answers_drains_on_sigterm_and_leaves_nothing(command: CommandLine) -> None:
    process, url = begin(command, "--model-name", "mine")
    with httpx.Client(base_url=url, timeout=30) as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/v1/models").json()["data"][0]["id"] == "mine"
        labelled = {**HELLO, "user": "ada\x1b[2J", "max_tokens": 2}
        assert http.post("/v1/chat/completions", json=labelled).status_code == 200
        slow: Any = {**HELLO, "model": "mine", "ignore_eos": True, "max_tokens": 900, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=slow) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(process.pid, signal.SIGTERM)
            until_refused(url)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "POST '/v1/chat/completions' 200" in said
    assert "ada" in said
    assert "\x1b" not in said
    command.assert_nothing_is_left()


def test_its_log_is_lines_of_json_with_the_ids_of_runs(command: CommandLine) -> None:
    process, url = begin(command, "--log-format", "json")
    with httpx.Client(base_url=url, timeout=30) as http:
        run = http.post("/v1/chat/completions", json={**HELLO, "user": "ada"}).headers["x-pieray-run"]
        assert http.post("/v1/inferlets/nothing/runs", json={}).status_code == 404
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    entries = [json.loads(line) for line in said.splitlines() if not line.startswith("pieray: ")]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(entry) for entry in entries))
    launched, answered = [entry for entry in entries if entry.get("run") == run]
    assert (launched["program"], launched["labels"]) == ("openai-generate", {"user": "ada"})
    assert (answered["method"], answered["path"], answered["status"]) == ("POST", "/v1/chat/completions", 200)
    assert answered["took_ms"] > 0
    (refused,) = [entry for entry in entries if entry.get("status") == 404]
    assert "run" not in refused


def until_refused(url: str) -> None:
    deadline = time.monotonic() + 10
    while (answer := httpx.post(f"{url}/v1/chat/completions", json=HELLO)).status_code != 503:
        assert time.monotonic() < deadline
    assert int(answer.headers["retry-after"]) > 0


def test_what_it_cannot_do_it_says_before_an_engine_is_started(command: CommandLine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, text in (
            (("--port", port), "cannot listen on 127.0.0.1"),
            (("--host", "0.0.0.0"), "no file of keys"),
            (("--program", "x"), "generate=NAME or embed=NAME"),
            (("--log-level", "loud"), "debug, info, warning or error"),
            (("--log-format", "xml"), "text or json"),
            (("--otlp", "collector:4318"), "a URL of http or https"),
        ):
            began = time.monotonic()
            done = command.run("pieray", "serve", *options)
            assert done.returncode == 2, done.stderr
            assert text in done.stderr
            assert time.monotonic() - began < 10
