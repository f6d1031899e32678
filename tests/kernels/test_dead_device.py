"""A device that died under a kernel: the runner finds out from whatever it does next.  In a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PROGRAM = """
import sys
import numpy as np, torch
from pieray.assets import model_folder
from pieray.errors import DeviceLost, ModelError
from pieray.models.batch import ForwardItem
from pieray.messages import Sample
from pieray.models.runner import ModelRunner

runner = ModelRunner.load(model_folder("pie-tiny"), device="cuda", num_pages=16, swap_bytes=1 << 20)
def item():
    return ForwardItem(np.array([0], np.uint32), 0, np.array([5], np.uint32), np.array([0], np.uint32))
(before,) = runner.step([item()], [[Sample()]])
assert isinstance(before, list), before
whole = runner.decoder.forward
def short_of_memory(*_):
    torch.empty(1 << 50, device="cuda")
runner.decoder.forward = short_of_memory
(failed,) = runner.step([item()], [[Sample()]])
assert isinstance(failed, ModelError), failed
runner.decoder.forward = whole
assert runner.step([item()], [[Sample()]]) == [before] and runner.is_healthy()
torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]  # a device-side assertion
try:
    {call}
except DeviceLost as error:
    assert not runner.is_healthy()
    print("device-lost:", error.message.splitlines()[0])
"""

CALLS = {
    "step": "runner.step([item(), item()], [[Sample()], [Sample()]])",
    "embed": "runner.embed(np.array([1], np.uint32))",
    "swap": "runner.swap_out(np.array([1]), np.array([0])); runner.embed(np.array([1], np.uint32))",
    "copy": "runner.copy_tokens([(0, 0, 1, 0, 1)]); runner.embed(np.array([1], np.uint32))",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_dead_device_is_told_from_a_lack_of_memory(call: str) -> None:
    command = [sys.executable, "-c", PROGRAM.replace("{call}", call)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.startswith("device-lost: cuda:0 is dead"), done.stdout + done.stderr
