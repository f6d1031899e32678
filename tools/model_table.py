"""Writes docs/models.md and pieray/models/transformers_table.json: what can be served, found out, not claimed.

    make models

A small random model of each architecture that is compared is made by transformers, served by pieray, and its logits
are compared with those of transformers' own attention: alone and in ragged batches of prefill and decode, and those
of a context with those of its copy.  Every other causal language model that transformers has is run without weights
(`pieray/models/transformers_probe.py`), with the config of its defaults.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import seeing
import torch
import transformers
from families import FAMILIES, HOSTED, expected_logits, fork_difference, largest_difference, make_model
from seen import Seen
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from pieray.models.architectures import ARCHITECTURES
from pieray.models.config import architecture_name, read_json
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.runner import ModelRunner
from pieray.models.transformers_probe import Unservable, probe, quiet
from pieray.models.ways import TABLE

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4
PAGE = ROOT / "docs" / "models.md"
HEAD = """# Models

A model folder has `config.json`, `*.safetensors` and `tokenizer.json`. `pieray doctor --model PATH` says in about a
second whether it can be served, which way, and what memory it needs; `pieray models` says which way the models of an
engine run, and why. No code of a model's own runs, and no pickle is read.

* **native**: a decoder of pieray's own. All that these architectures differ in stands in one table
  (`pieray/models/architectures.py`). On a CPU a step is one call in C (heads of a multiple of 8), but for mixtures of
  experts, whose steps are torch's, with grouped products; on a GPU decode steps are CUDA graphs, again but for experts.
* **transformers**: transformers' own module, whose layers attend over pieray's pages through its attention interface.
  Forks, masks, plans, drafts and adapters (of matrices that all tokens go through) work as with native models; steps
  are slower: nothing is fused, and there are no CUDA graphs. A native architecture with a setting that its decoder does
  not compute runs so too. At load a few tokens are computed both ways, over pages and by transformers' own attention: a
  module for which they differ is refused.

  The embedded model, run so on a CPU, takes 6.5 ms for a step of one row and 12 ms for 32; its native decoder takes
  0.4 and 2.1.

`model.max_context` is the longest context. Ropes of the kinds `dynamic` and `longrope` take their frequencies from the
length of a text: here from `model.max_context`, for all texts, since keys that are kept cannot be rotated anew. A model
with `longrope` that is served with its full context uses its long factors, with `model.max_context` up to its original
one the short factors. `yarn` and `dynamic` can be served beyond `max_position_embeddings`, up to their factor times the
length that it scales.

Not served: recurrent state, encoder-decoders, attention that is neither causal nor windowed, layers whose heads differ,
quantized weights of models that run through transformers' module. Latent attention (MLA) is served with the keys and
values of each head in pages, not the latent ones: it takes the memory of plain attention.

Vectors of texts (`/v1/embeddings`) are made as the folder says in sentence-transformers' layout (`modules.json`,
`1_Pooling/config.json`): the last, the first or the mean of the hidden states, of length 1 or not; without these
files the last one, of length 1. Of a model that scores texts (`...ForSequenceClassification` of the architectures
that are served, with a matrix `score.weight`: reward models, classifiers) the vector is the scores of the last token
as the head gives them, before any softmax or sigmoid; so is `hidden` in a program. It predicts no tokens: other
outputs are refused. Other models without a head for the next token are not served.

## Quantized weights
`model.quantization` has a checkpoint of floats quantized as it is loaded: `int8` or `fp8` (E4M3), each with a scale
for each output. All matrices are, the head too; embeddings and norms are not. For native models without experts.

* `int8`: a row is rounded to int8 as well, over its own largest number, and sums are exact: a row has the same bits
  in any batch, on any threads and by any instructions. On a CPU these are AMX's, AVX512-VNNI's or plain C, the best
  there is; without a compiler it is torch. On a GPU: Triton up to 16 rows, cuBLASLt above.
* `fp8`: on a CPU rows stay as they are, and products are in float32: it halves memory, and is slower than int8 and,
  with many rows, than bfloat16. On a GPU rows are rounded to E4M3 too.

Logits of a random model differ from those in float32 by less than 0.1 (`int8`) and 0.25 (`fp8`) of their mean size,
on the average; bfloat16 by less than 0.03. pie-tiny's mean score over its tasks is at most 0.02 lower with either
(`tests/unit/models/test_quantized_scores.py`). The GPU's kernels are compiled for sm_90 and run in Triton's
interpreter; on a GPU they have not been run.

Checkpoints that are quantized already, of native models (with experts too), in safetensors:

| format | served | how |
| --- | --- | --- |
| `compressed-tensors` | `int-quantized`, `naive-quantized` int8; a scale by tensor, output or group | w8a8 as it is, where rows are rounded as above and a scale belongs to an output; else as floats |
| | `float-quantized` fp8; by tensor, output or block | as it is, by block as floats |
| | `pack-quantized` 4 and 8 bits, with zero points, groups, order of activations | as floats |
| `fp8` | E4M3, by tensor or block (DeepSeek's) | as it is, by block as floats |
| `gptq` | 2, 4 and 8 bits, `gptq` and `gptq_v2`, `desc_act` | as floats |
| `awq` | 4 bits, `gemm` | as floats |
| `bitsandbytes` | int8, nf4, fp4, nested too | as floats |

*As floats*: matrices are dequantized as they are read, one by one, to `model.dtype`; with `model.quantization` they
become int8 or fp8 then. Scales of rows that a checkpoint has (static activations) are not used: rows are measured.
Everything else (MXFP4, NVFP4, HQQ, three bits, sparse or rotated weights, AWQ's gemv) is refused by name, with this
list.

## KV pages of a byte
`model.kv_dtype` "fp8" has pages hold E4M3 without scales, as vLLM's `kv_cache_dtype` does: half of what bfloat16
takes. What is above 448 becomes 448, what is infinite NaN. Forks, copies, swap and exports move the bytes as they
are. Logits of random models differ by less than 0.12 of their mean size from those over plain pages; pie-tiny's
scores as above. A row's bits do not depend on the batch, as with other pages.

## Images
A model that sees runs through transformers' module; its vision tower is that of the same module. An image
(`ctx.image(data, "What is this?")`, `images.see`, `image_url` with a `data:` URL over HTTP) goes to the Batcher, which
decodes it with Pillow, scales it with the family's image processor (`preprocessor_config.json`) and runs the tower: on
a thread of its own beside the steps, one image at a time, tenants in turn, its time counted as its inferlet's. JPEG,
PNG, WebP, GIF (the first frame) and BMP are taken, of any colours, turned as the camera says. The header is looked at
before anything is decoded: `model.image_pixels` bounds the pixels, `limits.message_bytes` the base64 of the file,
`limits.embed_bytes` the embeddings. What is no image, or is damaged, is an error of its own inferlet.

The embeddings stand in the text as any tokens do: forks, masks, drafts, plans, swaps, snapshots and pages found by
content work as without images, and a page is found only by the images that were before it. Positions of Qwen2-VL and
Qwen2.5-VL (M-RoPE) are counted as those of tokens are; what an image takes less of them is kept with the pages, at the
cost of one layer more of KV memory. Not served: videos, images cut into tiles (LLaVA-NeXT, InternVL), attention both
ways within an image (Gemma 3, PaliGemma), models that feed what they see to later layers (Qwen3-VL).
"""  # noqa: E501 - rows of tables


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    architecture: str
    way: str
    logits: float
    fork: float


def compared(name: str, model_type: str, changes: dict[str, Any], device: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            expected = expected_logits(make_model(model_type, Path(folder), **changes))
        runner = ModelRunner.load(folder, device=device, dtype="float32", num_pages=64, page_size=4)
        way = f"{runner.way}, C" if isinstance(runner.decoder, CpuDecoder) else runner.way
        architecture = str(architecture_name(read_json(Path(folder) / "config.json")))
        return Row(name, architecture, way, largest_difference(runner, expected), fork_difference(runner))


def seen(family: str) -> Row:
    """A conversation with two images."""
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            found = Seen(family, Path(folder))
        architecture = str(architecture_name(read_json(Path(folder) / "config.json")))
        logits = max(found.difference(found.run(chunk)[1]) for chunk in (1000, 7))
        return Row(f"{family}, with images", architecture, found.runner.way, logits, found.forked())


@dataclass(frozen=True)
class Probed:
    """What a run without weights says of an architecture: why it cannot be served ("": it can), and whether that holds
    whatever its config."""

    why: str
    is_of_class: bool


def probed() -> dict[str, Probed]:
    """Of each causal architecture that is not native, with the config of its defaults."""
    found: dict[str, Probed] = {}
    for model_type, names in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in [names] if isinstance(names, str) else names:
            if name in ARCHITECTURES or (name in found and not found[name].why):
                continue
            try:
                with quiet():
                    probe(getattr(transformers, name), CONFIG_MAPPING[model_type](), name)
                found[name] = Probed("", is_of_class=False)
            except Unservable as error:
                if "does not run over plain tokens" not in error.reason:  # of defaults that no model has, perhaps
                    found[name] = Probed(error.reason, error.is_of_class)
            except Exception as error:  # noqa: BLE001 - a config without usable defaults
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return dict(sorted(found.items()))


def page(rows: list[Row], known: dict[str, Probed], device: str) -> Iterator[str]:
    yield HEAD
    yield "## Compared"
    yield f"Logits of small random models in float32 against those of transformers {transformers.__version__}, with its"
    yield f"own attention, on {device}: a prompt alone, and four in ragged batches, prefill beside decode. *Fork*: a"
    yield "context against its copy, and against one that shares its full pages. Differences are over the largest"
    yield f"logit; tests and this table fail from {TOLERANCE:.0e} on. Written by `make models`. *With images*: a"
    yield "conversation with two images, in chunks beside other texts."
    yield ""
    yield "| architecture | model | way | device | logits | fork |\n| --- | --- | --- | --- | --- | --- |"
    for row in sorted(rows, key=lambda one: (not one.way.startswith("native"), one.architecture)):
        yield f"| `{row.architecture}` | {row.name} | {row.way} | {device} | {row.logits:.0e} | {row.fork:.0e} |"
    done = {row.architecture for row in rows}
    yield "\n## Known to run through transformers' module"
    yield "Run without weights, with the config of their defaults; not compared.\n"
    names = [f"`{name}`" for name, one in known.items() if not one.why and name not in done]
    yield "\n".join(textwrap.wrap(", ".join(names) + ".", 118, break_on_hyphens=False))
    yield "\n## Refused\n"
    yield "| architecture | why |\n| --- | --- |"
    by_reason: dict[str, list[str]] = {}
    for name, one in known.items():
        if one.why:
            by_reason.setdefault(one.why, []).append(f"`{name}`")
    for why, refused in sorted(by_reason.items()):
        yield f"| {', '.join(refused)} | {why} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    rows = [compared(name, *found, device) for name, found in {**FAMILIES, **HOSTED}.items()]
    if device == "cpu":
        rows += [seen(family) for family in seeing.FAMILIES]
    wrong = [row for row in rows if not max(row.logits, row.fork) < TOLERANCE]
    if wrong:
        sys.exit(f"not equal to transformers: {wrong}")
    known = probed()
    PAGE.write_text("\n".join(page(rows, known, device)) + "\n", encoding="utf-8")
    table = {
        "transformers": transformers.__version__,
        "served": [name for name, one in known.items() if not one.why],
        "refused": {name: one.why for name, one in known.items() if one.is_of_class},
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
