"""Runs the kernels between matrix products in Triton's interpreter; prints one JSON line per case.

A process of its own, as interpret.py is.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from layer_op_cases import TOLERANCE, errors

from pieray.kernels import decoder_triton


def main(part: int, parts: int) -> None:
    torch.set_num_threads(1)
    for index, (name, dtype, error) in enumerate(errors(decoder_triton, torch.device("cpu"))):
        if index % parts == part:
            print(json.dumps({"name": name, "error": error, "tolerance": TOLERANCE[dtype]}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
