"""One thread: on a shared machine, two that wait for each other are slower than one."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
