"""Runs the sampler in Triton's interpreter; prints one JSON line per case.

A process of its own, as interpret.py is.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from sampling_cases import draws

from pieray.kernels import sample_triton

VOCABS = ((3, 700), (40,))


def main(part: int, parts: int) -> None:
    torch.set_num_threads(1)
    sample_triton.BLOCK = 512
    for name, wrong, count in draws(torch.device("cpu"), tuple(v for vs in VOCABS[part::parts] for v in vs)):
        print(json.dumps({"name": name, "wrong": wrong, "count": count}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
