"""transformers' generate: run_transformers.py FOLDER THREADS."""

from __future__ import annotations

import sys

from line import claim_stdout, serve

say = claim_stdout()

import torch  # noqa: E402
import transformers  # noqa: E402

folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
model.eval()
model.generation_config.eos_token_id = None


def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return found[:, ids.shape[1] :].tolist()


serve(say, transformers.__version__, generate)
