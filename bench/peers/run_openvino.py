"""openvino-genai's continuous batching: run_openvino.py FOLDER THREADS, of what export_openvino.py has written.

OpenVINO 2025.3 to 2026.4 end with SIGFPE when they compile a model in bfloat16 for one thread on a processor with AMX:
one thread is two that share one core.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from line import claim_stdout, serve

say = claim_stdout()

import numpy as np  # noqa: E402
import openvino  # noqa: E402
import openvino_genai  # noqa: E402

folder, threads = sys.argv[1], int(sys.argv[2])
scheduler = openvino_genai.SchedulerConfig()
scheduler.cache_size = 1  # GB
scheduler.max_num_batched_tokens = 2048
scheduler.enable_prefix_caching = False
pipe = openvino_genai.ContinuousBatchingPipeline(
    folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": max(threads, 2), "PERFORMANCE_HINT": "LATENCY"}
)
if threads == 1:
    core = max(os.sched_getaffinity(0))
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = num_tokens
    config.ignore_eos = True
    config.do_sample = False
    inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
    found = pipe.generate(inputs, [config] * len(prompts))
    return [list(one.m_generation_ids[0]) for one in found]


serve(say, openvino_genai.__version__, generate)
