"""What only a GPU can tell: whether kernels and captured steps are right on it, and how near its limits they run.

    make gpu
    PYTHONPATH=tests/kernels python tools/gpu_check.py [--parts kernels,attention] [--out FILE]

Needs torch, triton, transformers, safetensors, tokenizers and msgpack; the part `engine` also Ray and wasmtime, and is
skipped, aloud, without them.  Every part prints one line of JSON and ends within four minutes; the exit status is 1 if
a part fails or finds something wrong.  --out appends the lines to a file of bench/results/.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_cases import CASES, TOLERANCE, make, scoring
from layer_op_cases import TOLERANCE as OP_TOLERANCE
from layer_op_cases import errors
from safetensors.torch import save_file
from sampling_cases import draws

from pieray.assets import model_folder
from pieray.kernels.dispatch import layer_ops
from pieray.kernels.meta import AttentionMeta
from pieray.kernels.paged_attention import cost, paged_attention, reference
from pieray.messages import Logits, Sample, Sampler
from pieray.models.batch import DecodeRows, ForwardItem
from pieray.models.config import ModelConfig
from pieray.models.decode_graphs import GraphedDecoder
from pieray.models.host_pool import HostPool
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner
from pieray.models.sampler import choices_of, sample

CUDA = torch.device("cuda")
SERVED = Path(__file__).parents[1] / "bench" / "served.py"
CALLS = 8  # in one captured graph, so that launching is not what is timed
COLD_BYTES = 256 << 20  # what a measurement reads before it reads the same again: several times the cache
QWEN_06B = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
QWEN_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}
NUCLEUS = Sampler(temperature=0.8, top_p=0.95, seed=7)
Found = dict[str, Any]


def seconds(work: Callable[[], object], rounds: int = 20) -> float:
    """Median time of `work` on the device without launching: as a graph, which is how a decode step runs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return launched_seconds(graph.replay, rounds)


def launched_seconds(work: Callable[[], object], rounds: int = 20) -> float:
    """Median time of `work` between events, which includes launching it."""
    work()
    taken = []
    for _ in range(rounds):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        taken.append(began.elapsed_time(ended) / 1e3)
    return statistics.median(taken)


def peaks() -> tuple[float, float]:
    """(bytes a second of a copy, read and written; floating-point operations a second of a bfloat16 product).

    Both take milliseconds, so that launching does not count.  A copy in a graph is another operation, and slower.
    """
    source = torch.empty(1 << 30, dtype=torch.bfloat16, device=CUDA).normal_()
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / launched_seconds(lambda: target.copy_(source))
    size = 8192
    left, right = (torch.randn(size, size, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    return copied, 2 * size**3 / launched_seconds(lambda: left @ right)


def on_gpu(meta: AttentionMeta) -> AttentionMeta:
    tensors = {f.name: getattr(meta, f.name) for f in fields(meta)}
    return replace(meta, **{name: value.to(CUDA) for name, value in tensors.items() if isinstance(value, torch.Tensor)})


def check_kernels() -> Found:
    """Every kernel against its definition, over the tables of shapes that the tests use, in three dtypes."""
    wrong: dict[str, float] = {}
    num_cases = 0
    for case in CASES:
        for dtype in TOLERANCE:
            q, kv, meta = make(replace(case, dtype=dtype))
            want = reference(q, kv, meta, **scoring(case))
            options = {**scoring(case, CUDA), "num_splits": case.num_splits}
            got = paged_attention(q.to(CUDA), kv.to(CUDA), on_gpu(meta), **options).float().cpu()
            error = (got - want).abs().max().item() if got.numel() else 0.0
            num_cases += 1
            if not error <= TOLERANCE[dtype]:
                wrong[f"{case.name} {dtype}"] = error
    for name, dtype, error in errors(layer_ops(CUDA), CUDA):
        num_cases += 1
        if not error <= OP_TOLERANCE[dtype]:
            wrong[name] = error
    for name, num_wrong, _ in draws(CUDA, (3, 700, 50_000)):
        num_cases += 1
        if num_wrong:
            wrong[name] = num_wrong
    return {"cases": num_cases, "wrong": wrong, "ok": not wrong}


def measure_attention() -> Found:
    """Attention as a fraction of the measured peaks: decode of a copy's bytes, prefill of a product's operations."""
    copied, multiplied = peaks()
    rows = []
    for heads, kv_heads in ((32, 8), (16, 8), (16, 2)):
        for batch, kv_len, q_len in (
            (1, 4096, 1),
            (8, 1024, 1),
            (64, 1024, 1),
            (256, 1024, 1),
            (16, 16384, 1),
            (1, 4096, 4096),
            (4, 2048, 2048),
        ):
            calls, meta = attention_calls(batch, kv_len, q_len, heads, kv_heads)
            taken = seconds(lambda: [call() for call in calls]) / len(calls)  # noqa: B023 - called at once
            moved, operations = cost(meta, heads, kv_heads, 128, 2)
            row = {
                "heads": heads,
                "kv_heads": kv_heads,
                "batch": batch,
                "kv_len": kv_len,
                "q_len": q_len,
                "us": round(taken * 1e6, 1),
            }
            if q_len == 1:
                row["of_copy"] = round(moved / taken / copied, 3)
            else:
                row["of_product"] = round(operations / taken / multiplied, 3)
            rows.append(row)
    return {"copy_gb_s": round(copied / 1e9), "product_tflop_s": round(multiplied / 1e12), "rows": rows}


def attention_calls(
    batch: int, kv_len: int, q_len: int, heads: int, kv_heads: int, **options: Any
) -> tuple[list[Callable[[], object]], AttentionMeta]:
    """Calls over pools that do not fit into the cache together, and their shape."""
    page_size, head_dim = 16, 128
    pages = kv_len // page_size
    total = batch * pages
    rng = np.random.default_rng(0)

    def ints(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, np.int32)).to(CUDA)

    meta = AttentionMeta(
        qo_indptr=ints(np.arange(batch + 1) * q_len),
        page_indptr=ints(np.arange(batch + 1) * pages),
        pages=ints(rng.permutation(total)),
        kv_lens=ints([kv_len] * batch),
        causal=ints([1] * batch),
        q_lens=[q_len] * batch,
        max_kv_len=kv_len,
    )
    q = torch.randn(batch * q_len, heads, head_dim, device=CUDA, dtype=torch.bfloat16)
    shape = (total, 2, kv_heads, page_size, head_dim)
    num_pools = max(2, min(CALLS, COLD_BYTES // (2 * int(np.prod(shape)))))
    pools = [torch.randn(shape, device=CUDA, dtype=torch.bfloat16) for _ in range(num_pools)]

    def call(pool: torch.Tensor) -> Callable[[], object]:
        return lambda: paged_attention(q, pool, meta, scale=head_dim**-0.5, **options)

    return [call(pool) for pool in pools], meta


def saved(folder: str, family: str, dtype: torch.dtype, shape: dict[str, Any]) -> Any:
    """A random model of transformers, on the GPU, and saved in `folder`."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(CUDA):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**shape), dtype=dtype).eval()
    model.save_pretrained(folder)
    return model


def random_qwen3(folder: str, shape: dict[str, Any], dtype: torch.dtype) -> int:
    """A Qwen3 of random weights in `folder`; how many bytes they take.  For what needs no reference: without
    transformers."""
    torch.manual_seed(0)
    hidden, inner, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    head_dim = shape["head_dim"]
    heads, kv_heads = (shape[name] * head_dim for name in ("num_attention_heads", "num_key_value_heads"))
    matrices = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv_heads, hidden),
        "self_attn.v_proj": (kv_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = {
        "input_layernorm": hidden,
        "post_attention_layernorm": hidden,
        "self_attn.q_norm": head_dim,
        "self_attn.k_norm": head_dim,
    }
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,)}
    if not shape["tie_word_embeddings"]:
        sizes["lm_head"] = (vocab, hidden)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        sizes |= {prefix + name: size for name, size in matrices.items()}
        sizes |= {prefix + name: (size,) for name, size in norms.items()}
    tensors = {
        f"{name}.weight": torch.ones(size, dtype=dtype)
        if len(size) == 1
        else (torch.randn(size, device=CUDA, dtype=dtype) * 0.02).cpu()
        for name, size in sizes.items()
    }
    save_file(tensors, Path(folder) / "model.safetensors")
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "torch_dtype": str(dtype)[6:],
        **shape,
    }
    (Path(folder) / "config.json").write_text(json.dumps(config))
    return sum(tensor.nbytes for tensor in tensors.values())


def check_families() -> Found:
    """Logits of each family against transformers on the same GPU, largest difference over the largest logit."""
    small = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    families: tuple[tuple[str, dict[str, Any]], ...] = (
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 64}),
        ("mistral", {"sliding_window": 40}),
    )
    found: Found = {"ok": True}
    for family, changes in families:
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
            with tempfile.TemporaryDirectory() as folder:
                model = saved(folder, family, dtype, {**small, **changes})
                runner = ModelRunner.load(folder, device="cuda", dtype=str(dtype)[6:], num_pages=256)
                rng = np.random.default_rng(1)
                prompts = [rng.integers(0, 512, length) for length in (5, 16, 33, 120)]
                worst = 0.0
                for prompt, result in zip(prompts, prefilled(runner, prompts, [Logits(-1)]), strict=True):
                    with torch.inference_mode():
                        want = model(torch.from_numpy(prompt)[None].to(CUDA)).logits[0, -1].float().cpu().numpy()
                    worst = max(worst, float(np.abs(result[0] - want).max() / np.abs(want).max()))
                found[f"{family} {str(dtype)[6:]}"] = round(worst, 7)
                found["ok"] = found["ok"] and worst < tolerance
    return found


def prefilled(runner: ModelRunner, prompts: Sequence[np.ndarray], wanted: list[Any]) -> list[Any]:
    """Results of one step over whole prompts, each in pages of its own, with room for 64 more tokens."""
    items = [
        ForwardItem(pages, 0, prompt.astype(np.uint32), np.arange(len(prompt), dtype=np.uint32))
        for prompt, pages in zip(prompts, pages_of(prompts), strict=True)
    ]
    results = runner.step(items, [wanted for _ in items])
    for result in results:
        if not isinstance(result, list):
            raise result
    return results


def pages_of(prompts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    first = 0
    for prompt in prompts:
        count = (len(prompt) + 64) // 16 + 1
        yield np.arange(first, first + count, dtype=np.uint32)
        first += count


def generated(runner: ModelRunner, prompts: Sequence[np.ndarray], count: int, params: Sampler) -> list[list[int]]:
    """`count` tokens for each prompt, drawn step by step."""
    texts = [[int(result[0])] for result in prefilled(runner, prompts, [Sample(-1, params)])]
    pages = list(pages_of(prompts))
    for index in range(count - 1):
        lengths = [len(prompt) + index for prompt in prompts]
        items = [
            ForwardItem(p, n, np.array([t[-1]], np.uint32), np.array([n], np.uint32))
            for p, n, t in zip(pages, lengths, texts, strict=True)
        ]
        for text, result in zip(texts, runner.step(items, [[Sample(-1, params)] for _ in lengths]), strict=True):
            assert isinstance(result, list), result
            text.append(int(result[0]))  # type: ignore[arg-type]
    return texts


def check_graphs() -> Found:
    """The same tokens with captured steps and without, greedy and drawn, in batches that fill a bucket or do not."""
    found: Found = {"ok": True}
    shape = {**QWEN_06B, "num_hidden_layers": 4, "vocab_size": 4096}
    with tempfile.TemporaryDirectory() as folder:
        random_qwen3(folder, shape, torch.float32)
        runners = [
            ModelRunner.load(folder, device="cuda", dtype="float32", num_pages=4096, cuda_graphs=on)
            for on in (True, False)
        ]
        for num_rows in (1, 3, 8, 61):
            rng = np.random.default_rng(num_rows)
            prompts = [rng.integers(0, 4096, int(length)) for length in rng.integers(1, 400, num_rows)]
            for name, params in (("greedy", Sampler()), ("drawn", Sampler(temperature=1.0, seed=7))):
                with_graphs, without = (generated(runner, prompts, 32, params) for runner in runners)
                equal = sum(a == b for a, b in zip(with_graphs, without, strict=True))
                found[f"{name} x {num_rows}"] = f"{equal} of {num_rows} texts equal"
                found["ok"] = found["ok"] and equal == num_rows
        graphed = runners[0].decoder
        assert isinstance(graphed, GraphedDecoder)
        found["replayed"] = graphed.num_replayed
    return found


def drawn_by_rows(runner: ModelRunner, prompts: Sequence[np.ndarray], count: int, params: Sampler) -> list[list[int]]:
    """The same as `generated`, by the columns that a Batcher steps."""
    texts = [[int(result[0])] for result in prefilled(runner, prompts, [Sample(-1, params)])]
    width = max(len(pages) for pages in pages_of(prompts))
    pages = np.zeros((len(prompts), width), np.uint32)
    for row, own in enumerate(pages_of(prompts)):
        pages[row, : len(own)] = own
    tokens = np.array([text[0] for text in texts], np.uint32)
    kv_lens = np.array([len(prompt) for prompt in prompts], np.int64)
    choices = choices_of([params] * len(prompts), kv_lens.tolist())
    for _ in range(count - 1):
        drawn, _ = runner.decode(DecodeRows(tokens, kv_lens, kv_lens, pages, choices), [], [])
        assert not drawn.errors, drawn.errors
        tokens = drawn.tokens.astype(np.uint32)
        kv_lens = kv_lens + 1
        choices["counter"] += 1
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
    return texts


def check_rows() -> Found:
    """Rows give what items of one token give, token for token; what a step of each takes, host included."""
    found: Found = {"ok": True, "steps": []}
    with tempfile.TemporaryDirectory() as folder:
        random_qwen3(folder, QWEN_06B, torch.bfloat16)
        runner = ModelRunner.load(folder, device="cuda", dtype="bfloat16", num_pages=12_000)
        for num_rows in (1, 7, 64):
            rng = np.random.default_rng(num_rows)
            prompts = [rng.integers(0, 4096, int(length)) for length in rng.integers(1, 400, num_rows)]
            for name, params in (("greedy", Sampler()), ("drawn", Sampler(temperature=1.0, top_p=0.9, seed=7))):
                one, other = (how(runner, prompts, 24, params) for how in (generated, drawn_by_rows))
                equal = sum(a == b for a, b in zip(one, other, strict=True))
                found[f"{name} x {num_rows}"] = f"{equal} of {num_rows} texts equal"
                found["ok"] = found["ok"] and equal == num_rows
        for num_rows in (1, 8, 32, 64, 256):
            by_items, _ = decode_step(runner, num_rows)
            by_rows = row_step(runner, num_rows)
            found["steps"].append(
                {
                    "rows": num_rows,
                    "items_ms": round(by_items * 1e3, 2),
                    "rows_ms": round(by_rows * 1e3, 2),
                    "drawn_ms": round(row_step(runner, num_rows, NUCLEUS) * 1e3, 2),
                    "tok_s": round(num_rows / by_rows),
                }
            )
    return found


def row_step(runner: ModelRunner, num_rows: int, params: Sampler = Sampler()) -> float:  # noqa: B008 - frozen
    """Median seconds of a step of rows at 500 tokens a sequence."""
    pages = np.arange(num_rows * 40, dtype=np.uint32).reshape(num_rows, 40)
    tokens, choices = np.ones(num_rows, np.uint32), choices_of([params] * num_rows, [0] * num_rows)
    taken = []
    for kv_len in range(500, 530):
        began = time.perf_counter()
        kv_lens = np.full(num_rows, kv_len, np.int64)
        drawn, _ = runner.decode(DecodeRows(tokens, kv_lens, kv_lens, pages, choices), [], [])
        tokens = drawn.tokens.astype(np.uint32)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[8:])


def check_sampler() -> Found:
    """The same tokens from the same logits, parameters and seeds as on the CPU."""
    found: Found = {"ok": True}
    generator = torch.Generator().manual_seed(0)
    for vocab in (640, 151936):
        logits = torch.randn((64, vocab), generator=generator) * 3
        for name, params in {
            "greedy": Sampler(),
            "temperature": Sampler(0.8, seed=1),
            "top_k": Sampler(1.0, 40, seed=1),
            "top_p": Sampler(1.0, 0, 0.9, seed=1),
            "min_p": Sampler(1.0, 0, 1.0, 0.05, seed=1),
            "typical_p": Sampler(1.0, seed=1, typical_p=0.9),
        }.items():
            choices = choices_of([params] * 64, range(64))
            here, there = (sample(given, choices).cpu() for given in (logits, logits.to(CUDA)))
            equal = int((here == there).sum())
            found[f"{name} {vocab}"] = f"{equal} of 64"
            found["ok"] = found["ok"] and equal >= 63  # a draw within rounding of a boundary may fall on either side
    return found


def check_swap() -> Found:
    """Pages of an 8B model to pinned memory and back among other work of the stream: their bits, and bytes a second."""
    config = replace(ModelConfig.from_folder(model_folder("pie-tiny")), num_layers=36, num_kv_heads=8, head_dim=128)
    pool = KvPool(config, 512, 16, torch.bfloat16, CUDA)
    host = HostPool(pool, 1 << 30)
    bits = pool.data.view(torch.int16)
    bits.random_(-(1 << 15), 1 << 15)
    page_nbytes = KvPool.page_nbytes(config, 16, torch.bfloat16)
    rng = np.random.default_rng(0)
    found: Found = {"rows": [], "page_bytes": page_nbytes, "slots": host.num_slots, "ok": True}
    for count in (1, 4, host.max_step_pages):
        for slots in (np.arange(count), rng.permutation(host.num_slots)[:count]):
            pages, targets = rng.permutation(512)[: 2 * count].reshape(2, count)
            source, target = torch.from_numpy(pages).to(CUDA), torch.from_numpy(targets).to(CUDA)
            kept = bits[:, source] + 1
            bits[:, source] = kept
            host.swap_out(pages, slots)
            bits[:, source] = 0
            host.swap_in(slots, targets)
            found["ok"] = found["ok"] and torch.equal(bits[:, target], kept)
            out_s = launched_seconds(lambda: host.swap_out(pages, slots))  # noqa: B023 - called at once
            in_s = launched_seconds(lambda: host.swap_in(slots, targets))  # noqa: B023
            found["rows"].append(
                {
                    "pages": count,
                    "runs": 1 + int((np.diff(slots) != 1).sum()),
                    "out_gb_s": round(count * page_nbytes / out_s / 1e9, 2),
                    "in_gb_s": round(count * page_nbytes / in_s / 1e9, 2),
                }
            )
    return found


def measure_decode(shape: dict[str, Any], rows: Sequence[int]) -> Found:
    """A decode step at 512 tokens a sequence, host included, beside the time to read weights and pages once."""
    found: Found = {"rows": []}
    copied, _ = peaks()
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = random_qwen3(folder, shape, torch.bfloat16)
        torch.cuda.empty_cache()
        began = time.perf_counter()
        graphed = ModelRunner.load(folder, device="cuda", dtype="bfloat16", num_pages=40 * max(rows))
        found["load_s"] = round(time.perf_counter() - began, 1)
        assert isinstance(graphed.decoder, GraphedDecoder)
        plain = ModelRunner(graphed.config, graphed.decoder.decoder, graphed.pool)
        for on, runner in ((True, graphed), (False, plain)):
            for num_rows in rows:
                step_s, launch_s = decode_step(runner, num_rows)
                kv_bytes = num_rows * 512 * 4 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * 128
                floor = (num_bytes + kv_bytes) / copied
                found["rows"].append(
                    {
                        "graphs": on,
                        "rows": num_rows,
                        "ms": round(step_s * 1e3, 2),
                        "first_ms": round(launch_s * 1e3, 1),
                        "tok_s": round(num_rows / step_s),
                        "of_roofline": round(floor / step_s, 3),
                    }
                )
    return found


def decode_step(runner: ModelRunner, num_rows: int) -> tuple[float, float]:
    """(median seconds of a greedy step, seconds of the first one, in which a graph may be captured)."""
    pages = [np.arange(i * 40, i * 40 + 40, dtype=np.uint32) for i in range(num_rows)]
    tokens = [1] * num_rows
    taken = []
    for kv_len in range(500, 530):
        began = time.perf_counter()
        items = [
            ForwardItem(p, kv_len, np.array([t], np.uint32), np.array([kv_len], np.uint32))
            for p, t in zip(pages, tokens, strict=True)
        ]
        results = runner.step(items, [[Sample(-1)] for _ in items])
        tokens = [int(result[0]) for result in results]  # type: ignore[index, arg-type]
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[8:]), taken[0]


def check_engine() -> Found:
    """The whole engine on this GPU: starts, serves through actors and WebAssembly beside the bare decoder, and ends."""
    missing = [name for name in ("ray", "wasmtime") if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{' and '.join(missing)} not installed"}
    with tempfile.TemporaryDirectory() as folder:
        random_qwen3(folder, QWEN_06B, torch.bfloat16)
        with_tokenizer(folder, QWEN_06B["vocab_size"])
        torch.cuda.empty_cache()
        command = [sys.executable, str(SERVED), "--model", folder, "--device", "cuda", "--num-pages", "8192"]
        command += ["--kinds", "stream", "clients", "iterate", "passes", "--levels", "1", "32", "256", "--rounds", "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=230, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"ok": False, "error": f"{SERVED.name} ended with {done.returncode}: {done.stderr[-3000:]}"}
    return {"served": json.loads(lines[-1])["figures"]}


def with_tokenizer(folder: str, vocab_size: int) -> None:
    """The embedded model's tokenizer beside a random model in `folder`, with a token for each of `vocab_size` ids."""
    source = model_folder("pie-tiny")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab |= {f"w{index}": index for index in range(len(vocab), vocab_size)}
    (Path(folder) / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(source / "tokenizer_config.json", folder)


PARTS: dict[str, Callable[[], Found]] = {
    "kernels": check_kernels,
    "attention": measure_attention,
    "families": check_families,
    "graphs": check_graphs,
    "rows": check_rows,
    "sampler": check_sampler,
    "swap": check_swap,
    "decode-0.6b": lambda: measure_decode(QWEN_06B, (1, 8, 64, 256)),
    "decode-8b": lambda: measure_decode(QWEN_8B, (1, 8, 64, 256)),
    "engine": check_engine,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks and measures pieray's device code on the GPU of this machine.")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, help="a file to append the lines to")
    options = parser.parse_args()
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        print("gpu_check: torch finds no CUDA device on this machine", file=sys.stderr)
        return 1
    where = {
        "card": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    is_ok = True
    for name in names:
        began = time.perf_counter()
        try:
            found = PARTS[name]()
        except Exception:  # noqa: BLE001 - the other parts still have something to say
            text = traceback.format_exc()
            found = {"ok": False, "error": text if len(text) <= 4000 else f"{text[:2000]} ... {text[-2000:]}"}
        torch.cuda.empty_cache()
        line = json.dumps({"part": name, **found, "seconds": round(time.perf_counter() - began, 1), **where})
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")
        is_ok = is_ok and bool(found.get("ok", True))
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
