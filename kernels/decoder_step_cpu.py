"""A whole decoder step in one C call; its reference is `pieray.models.decoder.Decoder`, layer by layer in torch."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch

from pieray.kernels.cc import library
from pieray.kernels.paged_attention_cpu import CRagged

#: `kind` of a Matrix in matrix_cpu.c
FLOATS, HALVES, PAIRS_AVX512, PAIRS_AMX, FP8, INT8, INT8_VNNI, INT8_AMX = range(8)
PAIR_KINDS = {"amx": PAIRS_AMX, "avx512_bf16": PAIRS_AVX512}
#: the fastest first
INT8_KINDS = {"amx_int8": INT8_AMX, "avx512_vnni": INT8_VNNI, "c": INT8}


class CMatrix(ctypes.Structure):
    """`Matrix` of matrix_cpu.c."""

    _fields_ = (
        ("data", c_void_p),
        ("bias", c_void_p),
        *((name, c_int64) for name in ("num_out", "num_in", "kind")),
        ("scales", c_void_p),
        ("sums", c_void_p),
    )


class CBlock(ctypes.Structure):
    """`Block` of decoder_step_cpu.c: one layer."""

    _fields_ = (
        *((name, CMatrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("attn_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("attn_post", "mlp_post", "cos", "sin", "kv")),
        ("window", c_int64),
    )


class CModel(ctypes.Structure):
    """`Model` of decoder_step_cpu.c."""

    _fields_ = (
        *((name, c_int64) for name in ("num_layers", "hidden", "intermediate")),
        *((name, c_int64) for name in ("num_heads", "num_kv_heads", "head_dim", "page_size")),
        *((name, c_float) for name in ("eps", "scale", "softcap", "embed_scale")),
        *((name, c_float) for name in ("residual_scale", "logits_scale", "logits_softcap")),
        *((name, c_int32) for name in ("is_bf16", "is_gelu", "is_row_norm", "has_tiles", "kv_kind")),
        *((name, c_void_p) for name in ("embed", "norm")),
        ("lm_head", CMatrix),
        ("blocks", ctypes.POINTER(CBlock)),
    )


class CLowRank(ctypes.Structure):
    """`LowRank` of decoder_step_cpu.c."""

    _fields_ = (("down", CMatrix), ("up", CMatrix))


class CLoraBlock(ctypes.Structure):
    """`LoraBlock` of decoder_step_cpu.c: what an adapter adds in one layer."""

    _fields_ = tuple((name, CLowRank) for name in ("qkv", "out", "gate_up", "mlp_down"))


class CSegment(ctypes.Structure):
    """`Segment` of decoder_step_cpu.c."""

    _fields_ = (
        ("blocks", ctypes.POINTER(CLoraBlock)),
        *((name, c_int64) for name in ("first", "num_tokens", "first_row", "num_rows")),
    )


class CStep(ctypes.Structure):
    """`Step` of decoder_step_cpu.c."""

    _fields_ = (
        *((name, c_void_p) for name in ("tokens", "positions", "slots", "rows")),
        ("num_tokens", c_int64),
        ("num_rows", c_int64),
        ("ragged", CRagged),
        ("segments", ctypes.POINTER(CSegment)),
        ("num_segments", c_int64),
        ("lora", c_void_p),
        *((name, c_void_p) for name in ("embed_rows", "embeds")),
        ("num_embeds", c_int64),
        ("hidden", c_void_p),
    )


def decoder_step(
    model: CModel, step: CStep, work: torch.Tensor, logits: torch.Tensor, threads: int, phases: range | None = None
) -> None:
    """Run `step`; `logits` is float32 [num_rows, padded(vocab)], `work` float32 [workspace(model, num_tokens)].

    `phases`: a part of it alone, see `decoder_phases` in C; what is between two parts is in `work`.
    """
    lib = _library()
    if phases is None:
        phases = range(num_phases(model))
    failed = lib.decoder_phases(
        ctypes.byref(model),
        ctypes.byref(step),
        c_void_p(work.data_ptr()),
        c_void_p(logits.data_ptr()),
        c_int32(threads),
        c_int64(phases.start),
        c_int64(phases.stop),
    )
    if failed:
        raise MemoryError(f"no scratch memory for attention over {step.ragged.max_kv_len} slots")


def num_phases(model: CModel) -> int:
    """Of a step: embeddings, two of each layer (keys, the rest), logits."""
    return 2 * int(model.num_layers) + 2


def workspace(model: CModel, num_tokens: int) -> int:
    """Floats of work space that a step of so many tokens takes."""
    lib = _library()
    lib.decoder_workspace.restype = c_int64
    return int(lib.decoder_workspace(ctypes.byref(model), c_int64(num_tokens)))


def padded(size: int) -> int:
    """`size` rounded up to whole panels: the width of the rows that the C side writes."""
    panel = int(_library().decoder_panel())
    return -(-size // panel) * panel


def pair_kinds() -> list[str]:
    """Which of PAIR_KINDS this process can multiply, the fastest first."""
    lib = library()
    if lib is None:
        return []
    lib.pair_kinds.restype = c_int64
    found = int(lib.pair_kinds())
    return [name for name, kind in PAIR_KINDS.items() if found >> kind & 1]


def int8_kinds() -> list[str]:
    """Which of INT8_KINDS this process can multiply, the fastest first."""
    lib = _library()
    lib.int8_kinds.restype = c_int64
    found = int(lib.int8_kinds())
    return [name for name, kind in INT8_KINDS.items() if found >> kind & 1]


def kind_of(dtype: torch.dtype, products: str) -> int:
    """The kind of a matrix of `dtype` whose `products` are one of PAIR_KINDS, or "float32"."""
    if dtype is torch.float32:
        return FLOATS
    return PAIR_KINDS.get(products, HALVES)


def pack(matrix: torch.Tensor, kind: int = FLOATS) -> torch.Tensor:
    """A matrix [out, in] in the order that the C product of its kind reads, zero-padded, contiguous.

    That is [panels, in, panel], and of tiles, `width` inputs to a dword, [panels, blocks, 2, 16, 16, width].
    """
    return packed(matrix, kind).contiguous()


def packed(matrix: torch.Tensor, kind: int) -> torch.Tensor:
    """As `pack`, not yet contiguous: a view of the matrix where nothing is padded.  Elements of tiles are dwords."""
    num_out, num_in = matrix.shape
    width = {PAIRS_AVX512: 2, PAIRS_AMX: 2, INT8_VNNI: 4, INT8_AMX: 4}.get(kind, 0)
    block = 16 * width or 1
    shape = padded(num_out), -(-num_in // block) * block
    wide = matrix
    is_odd = matrix.storage_offset() * matrix.element_size() % 4  # of a mapped file, for a view as dwords
    if shape != matrix.shape or is_odd or not matrix.is_contiguous():
        wide = torch.zeros(shape, dtype=matrix.dtype)
        wide[:num_out, :num_in] = matrix
    if width:
        return wide.view(torch.int32).view(-1, 2, 16, shape[1] // block, 16).permute(0, 3, 1, 4, 2)
    return wide.view(-1, padded(1), num_in).transpose(1, 2)


def multiply_rows(x: torch.Tensor, matrix: CMatrix, threads: int = 1) -> torch.Tensor:
    """x [n, in] float32, contiguous, times a packed matrix: float32 [n, out]."""
    num_rows, num_in = x.shape
    assert num_in == matrix.num_in
    assert x.is_contiguous()
    assert x.dtype is torch.float32
    out = torch.empty(num_rows, padded(matrix.num_out))
    if _library().multiply_rows(
        c_void_p(x.data_ptr()), c_int64(num_rows), ctypes.byref(matrix), c_void_p(out.data_ptr()), c_int32(threads)
    ):
        raise MemoryError(f"no memory for a product of {num_rows} rows")
    return out[:, : matrix.num_out]


def _library() -> ctypes.CDLL:
    lib = library()
    assert lib is not None, "callers check `library()` first"
    return lib
