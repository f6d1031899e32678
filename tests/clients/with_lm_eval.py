"""lm-eval's local-completions, which scores and generates with token ids: `python with_lm_eval.py URL TOKENIZER`.

The tasks are of this file: sums with their right answer and two wrong ones, and sums to be answered.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lm_eval
from lm_eval.tasks import TaskManager

SUMS = [(12, 7), (9, 7), (3, 5), (8, 4), (11, 6), (2, 2), (14, 3), (5, 6)]
CHOOSE = """
task: sums_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{a}}}}+{{{{b}}}}="
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
WRITE = """
task: sums_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{a}}}}+{{{{b}}}}="
doc_to_target: "{{{{choices[0]}}}}"
target_delimiter: ""
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""

with tempfile.TemporaryDirectory() as folder:
    data = Path(folder, "sums.jsonl")
    rows = [{"a": a, "b": b, "choices": [str(a + b), str(a + b + 1), str(a + b + 11)]} for a, b in SUMS]
    data.write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("choose", CHOOSE), ("write", WRITE)):
        Path(folder, f"{name}.yaml").write_text(text.format(data=data))
    arguments = {
        "model": "pie-tiny",
        "base_url": f"{sys.argv[1]}/v1/completions",
        "tokenizer": sys.argv[2],
        "tokenizer_backend": "huggingface",
        "num_concurrent": 4,
        "max_length": 1024,
    }
    found = lm_eval.simple_evaluate(
        "local-completions",
        model_args=arguments,
        tasks=["sums_choose", "sums_write"],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        bootstrap_iters=0,
    )
scores = found["results"]
assert scores["sums_choose"]["acc,none"] == 1.0, scores
assert scores["sums_write"]["exact_match,none"] == 1.0, scores
print("lm-eval", version("lm_eval"))
