"""The Triton kernels: in the interpreter against the reference, and through the real compiler for sm_90."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attention_cases import CASES, TOLERANCE, Case

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
SHARED_MEMORY_OF_SM_90 = 232_448
PARTS = 2


def run_script(name: str, interpret: str) -> dict[str, dict[str, float]]:
    """The JSON lines of tests/kernels/<name>, run as PARTS processes side by side, by name."""
    script = Path(__file__).parent / name
    env = {**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, script, str(part), str(PARTS)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(PARTS)
    ]
    lines: list[str] = []
    for process in running:
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, err[-3000:]
        lines += out.splitlines()
    return {line["name"]: line for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    return run_script("interpret.py", interpret="1")


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, float]]:
    return run_script("compile_ahead.py", interpret="0")


def test_kernels_between_products_equal_torch() -> None:
    lines = run_script("interpret_layer_ops.py", interpret="1")
    assert len(lines) == 234
    assert {name: line["error"] for name, line in lines.items() if not line["error"] <= line["tolerance"]} == {}


def test_quantized_products_equal_torch() -> None:
    lines = run_script("interpret_quantized.py", interpret="1")
    assert len(lines) == 11
    for name, line in lines.items():
        assert line["error"] <= line["tolerance"], (name, line)
        assert line["scales"] < 1e-6, (name, line)
        assert line["steps"] <= 1, (name, line)
        assert line["odd"] < 0.04, (name, line)  # the interpreter cuts what is halfway between two numbers of E4M3


def test_the_sampler_draws_as_torch_does() -> None:
    lines = run_script("interpret_sampling.py", interpret="1")
    assert len(lines) == 18
    assert {name: line for name, line in lines.items() if line["wrong"]} == {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_equals_reference(case: Case, interpreted: dict[str, dict[str, float]]) -> None:
    assert interpreted[case.name]["error"] < TOLERANCE[case.dtype]


def test_every_shipped_variant_compiles_for_hopper_without_spills(compiled: dict[str, dict[str, float]]) -> None:
    assert len(compiled) == 68  # see `shipped` and `main` of compile_ahead.py
    assert {name: line["spills"] for name, line in compiled.items() if line["spills"]} == {}
    assert {name: line["shared"] for name, line in compiled.items() if line["shared"] > SHARED_MEMORY_OF_SM_90} == {}
