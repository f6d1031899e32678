"""A text completion written in C on the bare handlers; and that the committed component is that source's."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from wasm_fakes import GUESTS_C, Watched

from pieray.errors import QuotaExceeded

_spec = importlib.util.spec_from_file_location("guests_c_build", GUESTS_C / "build.py")
build = importlib.util.module_from_spec(_spec)
sys.modules["guests_c_build"] = build
_spec.loader.exec_module(build)


def test_it_completes_and_streams(host, completion, device):
    text = '{"prompt": "Say \\"\\u00e9\\": \\ud83d\\ude00", "max_tokens": 8}'
    watched = device.run(host, completion, text, "hi there")
    assert json.loads(watched.value) == {"text": "hi there", "num_tokens": 8}
    assert watched.handlers.sent == list("hi there")
    assert watched.handlers.pages == set()
    prompt = watched.handlers.calls[0][1]
    assert bytes(prompt[3].tolist()).decode() == 'Say "é": 😀'
    assert [args[2] for name, args in watched.handlers.calls if name == "forward"] == [0, *range(14, 21)]


def test_it_ends_at_a_stop_token(host, completion, device):
    watched = device.run(host, completion, '{"prompt": "x", "max_tokens": 100}', 'say "\n"')
    assert json.loads(watched.value) == {"text": 'say "\n"', "num_tokens": 7}


def test_many_at_once(host, completion, device):
    guests = [device.run(host, completion, '{"prompt": "x", "max_tokens": 20}', f"reply {i}") for i in range(64)]
    assert [json.loads(w.value)["text"] for w in guests] == [f"reply {i}" for i in range(64)]


def test_an_error_of_a_handler_is_its_failure(host, completion):
    error = Watched(host, completion, '{"prompt": "x", "max_tokens": 10000}').error
    assert isinstance(error, QuotaExceeded)
    assert error.message.startswith("pages is 100; asked for 626")
    assert Watched(host, completion, "{}").error.message == 'ValueError: the input has no "prompt"'
    assert Watched(host, completion, '{"prompt": ""}').error.message == "ValueError: the prompt is empty"


@pytest.mark.parametrize("guest", build.GUESTS)
def test_the_committed_component_was_built_from_the_source_beside_it(guest):
    manifest = json.loads((GUESTS_C / "manifest.json").read_text())[f"{guest}.wasm"]
    assert manifest["sha256"] == build.digest(GUESTS_C / f"{guest}.wasm")
    assert manifest["sources"] == {name: build.code_digest(path) for name, path in build.sources(guest).items()}


@pytest.mark.skipif(bool(build.missing_tools()), reason=f"building needs {', '.join(build.missing_tools())}")
def test_the_source_builds_and_runs(host, device, tmp_path):
    program = host.load(build.build("completion", tmp_path), "rebuilt")
    assert json.loads(device.run(host, program, '{"prompt": "x"}', "ok").value)["text"] == "ok"
