"""Compiles shipped variants of the Triton kernels for sm_90 without a GPU; prints one JSON line each.

Usage: compile_ahead.py PART PARTS.  A process of its own, without TRITON_INTERPRET.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pieray.kernels.decoder_triton import (
    GATED_BLOCK,
    HEADS_PER_PROGRAM,
    add_rms_norm_kernel,
    gated_kernel,
    rope_append_kernel,
)
from pieray.kernels.paged_attention import VARIANTS, Variant, merge_kernel, paged_attention_kernel, sized
from pieray.kernels.quantized_triton import blocks, product_kernel, quantize_rows_kernel
from pieray.kernels.sample_triton import BLOCK, KEY_BITS, NUM_WARPS, sample_kernel

TARGET, ARCH = GPUTarget("cuda", 90, 32), "sm_90a"
GROUP = 4
INDEX_POINTERS = ("qo_indptr", "page_indptr", "pages", "kv_lens", "causal", "tile_request", "tile_first", "mask_indptr")


def shipped() -> Iterator[tuple[str, Variant, dict[str, object]]]:
    """Every variant of VARIANTS in bfloat16, at head_dim 64 and 128, pages of 16 and 32; in float32 at 128."""
    for (kind, head_dim), variant in VARIANTS.items():
        for page_size in (16, 32) if head_dim in (64, 128) else ():
            is_masked = kind.endswith("_masked")
            for has_window in (True,) if is_masked else (False, True):  # a window only adds to what a mask needs
                name = f"{kind} head_dim={head_dim} page={page_size} window={int(has_window)}"
                constants = {
                    "PAGE": page_size,
                    "D": head_dim,
                    "GROUP": GROUP,
                    "BLOCK_D": head_dim,
                    "BLOCK_G": GROUP,
                    "BLOCK_Q": variant.block_m // GROUP,
                    "BLOCK_N": variant.block_n,
                    "HAS_MASK": is_masked,
                    "HAS_WINDOW": has_window,
                    "HAS_CAP": False,
                    "HAS_SINK": False,
                    "SPLITS": 8 if kind.startswith("split") else 1,
                    "IEEE": False,
                    "UPCAST": False,
                }
                yield name, variant, constants
        if head_dim == 128:
            narrow = sized(variant, 4)
            constants = {
                "PAGE": 16,
                "D": head_dim,
                "GROUP": GROUP,
                "BLOCK_D": head_dim,
                "BLOCK_G": GROUP,
                "BLOCK_Q": narrow.block_m // GROUP,
                "BLOCK_N": narrow.block_n,
                "HAS_MASK": kind.endswith("_masked"),
                "HAS_WINDOW": False,
                "HAS_CAP": False,
                "HAS_SINK": False,
                "SPLITS": 8 if kind.startswith("split") else 1,
                "IEEE": True,
                "UPCAST": False,
            }
            yield f"{kind} head_dim={head_dim} float32", narrow, constants


def compiled(
    kernel: object, signature: dict[str, str], constants: dict[str, object], options: dict[str, int]
) -> object:
    names = kernel.arg_names
    aligned = [name for name, kind in signature.items() if kind.startswith("*")] + ["q_stride", "num_in"]
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name in names},
    )
    return triton.compile(source, target=TARGET, options=options)


def over_fp8_pages() -> Iterator[tuple[str, Variant, dict[str, object]]]:
    """Some of `shipped`, which there are of all variants in bfloat16."""
    for name, variant, constants in shipped():
        is_wanted = not constants["HAS_WINDOW"] or constants["HAS_MASK"]
        if is_wanted and constants["D"] == 128 and constants["PAGE"] == 16 and not constants["IEEE"]:
            yield f"{name} fp8 pages", variant, constants


def attention_signature(constants: dict[str, object], *, has_fp8_pages: bool) -> dict[str, str]:
    element = "*fp32" if constants["IEEE"] else "*bf16"
    part = "*fp32" if constants["SPLITS"] > 1 else element
    pointers = {f"{name}_ptr": "*i32" for name in INDEX_POINTERS}
    numbers = dict.fromkeys(("window", "num_rows", "num_kv_heads", "q_stride"), "i32")
    mask = "*u8" if constants["HAS_MASK"] else "*i32"
    return {
        "q_ptr": element,
        "kv_ptr": "*fp8e4nv" if has_fp8_pages else element,
        "out_ptr": part,
        "lse_ptr": "*fp32",
        **pointers,
        "mask_ptr": mask,
        "sinks_ptr": "*fp32",
        "scale_log2": "fp32",
        "cap_log2": "fp32",
        **numbers,
    }


def resources(kernel: object) -> dict[str, int]:
    """Registers, spilled bytes and shared memory, by the ptxas that Triton carries.

    Triton 3.9 emits PTX newer than its plain `ptxas` reads; `ptxas-blackwell` is the one it uses itself.
    """
    folder = Path(triton.backends.nvidia.__file__).parent / "bin"
    ptxas = next(path for path in (folder / "ptxas-blackwell", folder / "ptxas") if path.exists())
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(kernel.asm["ptx"])
        file.flush()
        command = [ptxas, "-v", f"--gpu-name={ARCH}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = re.search(r"Used (\d+) registers", done.stderr)
    return {
        "registers": int(registers.group(1)),
        "spills": int(spills.group(1)) + int(spills.group(2)),
        "shared": kernel.metadata.shared,
    }


def main(part: int, parts: int) -> None:
    for name, variant, constants in list(itertools.chain(shipped(), over_fp8_pages()))[part::parts]:
        signature = attention_signature(constants, has_fp8_pages=name.endswith("fp8 pages"))
        options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
        kernel = compiled(paged_attention_kernel, signature, constants, options)
        print(json.dumps({"name": name, **resources(kernel)}), flush=True)
    for index, (name, kernel, signature, constants, num_warps) in enumerate(small_kernels()):
        if index % parts == part:
            line = resources(compiled(kernel, signature, constants, {"num_warps": num_warps}))
            print(json.dumps({"name": name, **line}), flush=True)


def small_kernels() -> Iterator[tuple[str, object, dict[str, str], dict[str, object], int]]:
    """(name, kernel, signature, constants, warps) of the others, in bfloat16."""
    merged = {"part_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*bf16", "num_rows": "i32"}
    yield "merge", merge_kernel, merged, {"D": 128, "BLOCK_D": 128, "SPLITS": 8, "BLOCK_R": 4}, 4
    half = dict.fromkeys(("x_ptr", "delta_ptr", "weight_ptr", "sum_ptr", "out_ptr"), "*bf16")
    for width in (1024, 4096, 8192):
        constants = {"HAS_DELTA": True, "BLOCK": width}
        num_warps = min(16, width // 256)
        yield f"norm {width}", add_rms_norm_kernel, {**half, "eps": "fp32", "width": "i32"}, constants, num_warps
    wide = {"wide_ptr": "*bf16", "out_ptr": "*bf16", "width": "i32"}
    yield "gate", gated_kernel, wide, {"IS_GELU": False, "BLOCK": GATED_BLOCK}, 4
    turned = {
        "heads_ptr": "*bf16",
        "cos_ptr": "*fp32",
        "sin_ptr": "*fp32",
        "positions_ptr": "*i64",
        "slots_ptr": "*i64",
        "kv_ptr": "*bf16",
        "q_weight_ptr": "*bf16",
        "k_weight_ptr": "*bf16",
        "eps": "fp32",
    }
    for head_dim, has_norm in itertools.product((64, 128), (False, True)):
        constants = {
            "H": 32,
            "KV_H": 8,
            "PAGE": 16,
            "D": head_dim,
            "HAS_NORM": has_norm,
            "BLOCK_H": HEADS_PER_PROGRAM,
            "BLOCK_C": head_dim // 2,
        }
        name = f"rotation head_dim={head_dim} norm={int(has_norm)}"
        yield name, rope_append_kernel, turned, constants, 2
        if has_norm:
            yield f"{name} fp8 pages", rope_append_kernel, {**turned, "kv_ptr": "*fp8e4nv"}, constants, 2
    for kind, element in (("int8", "*i8"), ("fp8", "*fp8e4nv")):
        rows = {"x_ptr": "*bf16", "values_ptr": element, "scales_ptr": "*fp32", "width": "i32", "x_stride": "i32"}
        constants = {"LARGEST": 127.0 if kind == "int8" else 448.0, "IS_INT": kind == "int8", "BLOCK": 4096}
        yield f"rows to {kind}", quantize_rows_kernel, rows, constants, 4
        pointers = {
            "x_ptr": element,
            "x_scales_ptr": "*fp32",
            "w_ptr": element,
            "w_scales_ptr": "*fp32",
            "y_ptr": "*bf16",
        }
        numbers = dict.fromkeys(("num_rows", "num_out", "num_in"), "i32")
        for num_rows in (1, 64):
            sizes = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), blocks(num_rows), strict=True))
            constants = {"IS_INT": kind == "int8", "UPCAST": False, **sizes}
            yield f"product of {kind}, {num_rows} rows", product_kernel, {**pointers, **numbers}, constants, 4
    columns = {"temperature": "*fp32", "top_p": "*fp64", "log_min_p": "*fp32", "top_k": "*i32", "uniform": "*fp64"}
    drawn = {f"{name}_ptr": kind for name, kind in columns.items()}
    drawn |= {"rows_ptr": "*i64", "token_ptr": "*i64", "is_bad_ptr": "*i32", "stride": "i32", "vocab": "i32"}
    for dtype, element in ((torch.bfloat16, "*bf16"), (torch.float16, "*fp16"), (torch.float32, "*fp32")):
        constants = {"HAS_ROWS": False, "KEY_BITS": KEY_BITS[dtype], "BLOCK": BLOCK}
        yield f"draw {element}", sample_kernel, {"logits_ptr": element, **drawn}, constants, NUM_WARPS


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
