"""llama.cpp, all sequences in one batch: run_llama_cpp.py FILE.gguf THREADS."""

from __future__ import annotations

import sys

from line import claim_stdout, serve

say = claim_stdout()

import llama_cpp as l  # noqa: E402
import numpy as np  # noqa: E402

path, threads = sys.argv[1], int(sys.argv[2])
MOST, LENGTH, STEP = 32, 256, 2048
l.llama_backend_init()
model = l.llama_model_load_from_file(path.encode(), l.llama_model_default_params())
params = l.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = MOST * LENGTH, STEP, 512, MOST
params.n_threads = params.n_threads_batch = threads
context = l.llama_init_from_model(model, params)
vocab = l.llama_vocab_n_tokens(l.llama_model_get_vocab(model))
batch = l.llama_batch_init(STEP, 0, 1)


def step(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
    """Compute (token, position, sequence, is wanted); the most likely tokens behind the wanted ones."""
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence, is_wanted) in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
        batch.seq_id[i][0], batch.logits[i] = sequence, is_wanted
    assert l.llama_decode(context, batch) == 0, "llama_decode failed"
    wanted = [i for i, one in enumerate(tokens) if one[3]]
    return [int(np.argmax(np.ctypeslib.as_array(l.llama_get_logits_ith(context, i), shape=(vocab,)))) for i in wanted]


def generate(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    l.llama_memory_clear(l.llama_get_memory(context), True)
    found: list[list[int]] = [[] for _ in prompts]
    together = max(1, STEP // len(prompts[0]))
    for first in range(0, len(prompts), together):
        part = range(first, min(first + together, len(prompts)))
        tokens = [(t, p, s, p == len(prompts[s]) - 1) for s in part for p, t in enumerate(prompts[s])]
        for s, token in zip(part, step(tokens), strict=True):
            found[s].append(token)
    for i in range(num_tokens - 1):
        tokens = [
            (one[-1], len(prompt) + i, s, True) for s, (one, prompt) in enumerate(zip(found, prompts, strict=True))
        ]
        for one, token in zip(found, step(tokens), strict=True):
            one.append(token)
    return found


serve(say, l.__version__, generate)
