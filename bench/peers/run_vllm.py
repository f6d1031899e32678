"""vLLM on the CPU, its engine in this process: run_vllm.py FOLDER THREADS."""

from __future__ import annotations

import os
import sys

from line import claim_stdout, serve

say = claim_stdout()
folder, threads = sys.argv[1], int(sys.argv[2])
os.environ["OMP_NUM_THREADS"] = str(threads)
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import vllm  # noqa: E402

llm = vllm.LLM(
    folder,
    dtype="bfloat16",
    max_model_len=512,
    max_num_seqs=32,
    max_num_batched_tokens=2048,
    enable_prefix_caching=False,
    disable_log_stats=True,
)


def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    sampling = vllm.SamplingParams(
        temperature=0.0, max_tokens=num_tokens, min_tokens=0, ignore_eos=True, detokenize=False
    )
    found = llm.generate([{"prompt_token_ids": one} for one in prompts], sampling, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in found]


serve(say, vllm.__version__, generate)
