"""Matrices of quantized checkpoints, made plain as they are read, one by one; see stored_formats.py.

What a product here computes with as it is stored stays so: int8 whose rows are rounded too, and E4M3, with a scale for
each output or one for all.  Everything else becomes floats: then `model.quantization` may make int8 of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from pieray.errors import ModelError
from pieray.kernels.quantized import AnyMatrix, QuantizedMatrix
from pieray.models.loader import Checkpoint
from pieray.models.stored_formats import AWQ, GPTQ, StoredFormat

#: where an int32 of AWQ has the output that is the i-th of its eight
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
FOUR_BIT_KINDS = ("nf4", "fp4")


@dataclass(frozen=True, slots=True)
class MatrixReader:
    """Reads matrices of `checkpoint`, which are stored as `form` says (None: as floats)."""

    checkpoint: Checkpoint
    form: StoredFormat | None
    dtype: torch.dtype

    def read(self, name: str, shape: tuple[int, int]) -> AnyMatrix:
        """The matrix `name`, "...weight", [out, in]; floats that are stored as such are not yet cast.

        ModelError names what is missing, has another shape or does not fit the rest.
        """
        try:
            found = self._read(name, shape)
        except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
            raise ModelError(
                f"{self.checkpoint.folder}: what is stored of {name!r} does not fit together: {error}"
            ) from error
        if tuple(found.shape) != shape:
            raise ModelError(
                f"{self.checkpoint.folder}: {name!r} has shape {tuple(found.shape)}; config.json implies {shape}"
            )
        return found

    def _read(self, name: str, shape: tuple[int, int]) -> AnyMatrix:
        module, held = name.removesuffix(".weight"), self.checkpoint
        if self.form is None:
            return held.tensor(name, shape)
        if f"{module}.weight_packed" in held:
            return self._packed(module, shape, self.form)
        if f"{module}.qweight" in held and self.form.method in (GPTQ, AWQ):
            found = self._gptq(module, shape, self.form) if self.form.method == GPTQ else self._awq(module, shape)
            return found.to(self.dtype)
        if f"{name}.absmax" in held:
            return self._four_bits(name, shape).to(self.dtype)
        for end in (".weight_scale", ".weight_scale_inv", ".SCB"):
            if module + end in held:
                return self._scaled(module, shape, module + end, self.form)
        return held.tensor(name, shape)

    def _scaled(self, module: str, shape: tuple[int, int], scales_name: str, form: StoredFormat) -> AnyMatrix:
        values = self._stored(f"{module}.weight", shape, torch.int8, torch.float8_e4m3fn)
        scales, is_int = self._scales(scales_name, shape, form.block), values.dtype is torch.int8
        if scales_name.endswith(".SCB"):  # bitsandbytes' int8: the largest numbers, not the scales
            scales = scales / 127
        has_zeros = f"{module}.weight_zero_point" in self.checkpoint
        zeros = self._scales(f"{module}.weight_zero_point", shape, form.block) if has_zeros else None
        if zeros is not None and not zeros.any():
            zeros = None
        if scales.shape[1] == 1 and zeros is None and (form.rounds_rows or not is_int):
            self._check_finite(values, scales, module)
            return QuantizedMatrix(values, scales[:, 0].expand(shape[0]).contiguous())
        plain = values.float() if zeros is None else values.float() - zeros
        return (plain * scales).to(self.dtype)

    def _packed(self, module: str, shape: tuple[int, int], form: StoredFormat) -> torch.Tensor:
        """compressed-tensors: fields of `bits` side by side along the inputs, less half of their range."""
        half, per_word = 1 << (form.bits - 1), 32 // form.bits
        words = self._stored(f"{module}.weight_packed", (shape[0], -(-shape[1] // per_word)), torch.int32)
        values = _fields(words, form.bits)[:, : shape[1]] - half
        scales, groups = self._raw(f"{module}.weight_scale").float(), None
        if f"{module}.weight_g_idx" in self.checkpoint:
            groups = self._raw(f"{module}.weight_g_idx").long()
        plain = values.float()
        if f"{module}.weight_zero_point" in self.checkpoint:  # packed along the outputs
            packed = self._raw(f"{module}.weight_zero_point")
            zeros = _fields(packed.T.contiguous(), form.bits).T[: shape[0]].float() - half
            plain -= self._spread(zeros, shape, f"{module}.weight_zero_point", groups)
        return (plain * self._spread(scales, shape, f"{module}.weight_scale", groups)).to(self.dtype)

    def _gptq(self, module: str, shape: tuple[int, int], form: StoredFormat) -> torch.Tensor:
        """Words [in / fields, out] of weights, [groups, out / fields] of zero points."""
        per_word = 32 // form.bits
        words = self._stored(f"{module}.qweight", (shape[1] // per_word, shape[0]), torch.int32)
        values = _fields(words.T.contiguous(), form.bits)
        zeros = _fields(self._raw(f"{module}.qzeros"), form.bits) + form.zero_offset
        groups = self._raw(f"{module}.g_idx").long() if f"{module}.g_idx" in self.checkpoint else None
        return self._grouped(module, shape, values, zeros, groups)

    def _awq(self, module: str, shape: tuple[int, int]) -> torch.Tensor:
        """Words [in, out / 8] of weights and [groups, out / 8] of zero points, in an order of their own."""
        words = self._stored(f"{module}.qweight", (shape[1], shape[0] // 8), torch.int32)
        values, zeros = (
            _fields(one, 4).view(len(one), -1, 8)[:, :, AWQ_PLACES].flatten(1)
            for one in (words, self._raw(f"{module}.qzeros"))
        )
        return self._grouped(module, shape, values.T, zeros, None)

    def _grouped(
        self,
        module: str,
        shape: tuple[int, int],
        values: torch.Tensor,
        zeros: torch.Tensor,
        groups: torch.Tensor | None,
    ) -> torch.Tensor:
        """(values - zeros) * scales of values [out, in], with zeros and scales [groups, out]."""
        scales = self._raw(f"{module}.scales").float()
        plain = values.float() - self._spread(zeros[:, : shape[0]].float().T, shape, f"{module}.qzeros", groups)
        return plain.mul_(self._spread(scales.T, shape, f"{module}.scales", groups))

    def _four_bits(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        """bitsandbytes: two numbers a byte, the first in the high half, each a place in a table; a largest number for
        each block, itself quantized if there is a table for that (Dettmers et al. 2023, QLoRA)."""
        kinds = [kind for kind in FOUR_BIT_KINDS if f"{name}.quant_state.bitsandbytes__{kind}" in self.checkpoint]
        if not kinds:
            raise ModelError(f"{self.checkpoint.folder}: no '{name}.quant_state.bitsandbytes__nf4'")
        state = self._raw(f"{name}.quant_state.bitsandbytes__{kinds[0]}")
        try:
            facts = json.loads(bytes(state.tolist()))
            block, nested_block = int(facts["blocksize"]), int(facts.get("nested_blocksize", 0))
            offset, stored_shape = float(facts.get("nested_offset", 0)), tuple(facts["shape"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self.checkpoint.folder}: {name}.quant_state: not readable: {error!r}") from error
        numbers = shape[0] * shape[1]
        data = self._raw(name).flatten()
        if stored_shape != shape or len(data) != -(-numbers // 2) or data.dtype is not torch.uint8:
            raise ModelError(f"{self.checkpoint.folder}: {name!r} is of {stored_shape}; config.json implies {shape}")
        tops = self._raw(f"{name}.absmax")
        if nested_block:
            table, nested = self._raw(f"{name}.nested_quant_map"), self._raw(f"{name}.nested_absmax")
            tops = table[tops.int()] * _repeated(nested, nested_block, len(tops)) + offset
        places = torch.stack((data >> 4, data & 15), 1).flatten()[:numbers]
        plain = self._raw(f"{name}.quant_map").float()[places.int()]
        return (plain * _repeated(tops.float(), block, numbers)).view(shape)

    def _spread(
        self, found: torch.Tensor, shape: tuple[int, int], name: str, groups: torch.Tensor | None
    ) -> torch.Tensor:
        """found [out, groups] for each input: [out, in], or [out, 1] of one group."""
        if found.ndim != 2 or found.shape[0] not in (1, shape[0]):
            raise ModelError(
                f"{self.checkpoint.folder}: {name!r} has shape {tuple(found.shape)}; the matrix has {shape}"
            )
        num = found.shape[1]
        if num in (1, shape[1]):
            return found
        if groups is not None:
            if len(groups) != shape[1] or int(groups.min()) < 0 or int(groups.max()) >= num:
                raise ModelError(f"{self.checkpoint.folder}: the groups of {name!r} are not below {num} for {shape[1]}")
            return found[:, groups]
        if num == 0 or shape[1] % num:  # how large the last group is, nothing says
            raise ModelError(f"{self.checkpoint.folder}: {name!r} has {num} groups of {shape[1]} inputs")
        return found.repeat_interleave(shape[1] // num, 1)

    def _scales(self, name: str, shape: tuple[int, int], block: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Numbers that go with outputs, groups of inputs or blocks of both, float32 [out or 1, in or 1]."""
        found = self._raw(name).float()
        if found.ndim < 2:
            found = found.reshape(-1, 1)
        high, wide = (min(one, most) for one, most in zip(block, shape, strict=True))
        if high and tuple(found.shape) == (-(-shape[0] // high), -(-shape[1] // wide)):
            return found.repeat_interleave(high, 0)[: shape[0]].repeat_interleave(wide, 1)[:, : shape[1]]
        if high and found.shape[1] != 1:
            raise ModelError(
                f"{self.checkpoint.folder}: {name!r} has shape {tuple(found.shape)}; the matrix has {shape}, in blocks "
                f"of {block}"
            )
        return self._spread(found, shape, name, None)

    def _stored(self, name: str, shape: tuple[int, int], *dtypes: torch.dtype) -> torch.Tensor:
        found = self._raw(name)
        if tuple(found.shape) != shape or found.dtype not in dtypes:
            wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            got = f"{str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"
            raise ModelError(f"{self.checkpoint.folder}: {name!r} is {got}; config.json implies {wanted} {shape}")
        return found

    def _raw(self, name: str) -> torch.Tensor:
        return self.checkpoint.stored(name)

    def _check_finite(self, values: torch.Tensor, scales: torch.Tensor, module: str) -> None:
        is_odd = values.dtype is torch.float8_e4m3fn and bool((values.view(torch.uint8) & 0x7F == 0x7F).any())
        if is_odd or not bool(scales.isfinite().all()):
            raise ModelError(f"{self.checkpoint.folder}: {module}.weight has numbers that are not finite")


def _repeated(each: torch.Tensor, block: int, count: int) -> torch.Tensor:
    """The first `count` numbers of which each has been repeated `block` times; ValueError unless the last one is."""
    if block < 1 or tuple(each.shape) != (-(-count // block),):
        raise ValueError(f"{tuple(each.shape)} numbers for blocks of {block} of {count}")
    return each.repeat_interleave(min(block, count))[:count]


def _fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [n, words] as their fields of `bits`, the lowest first: int32 [n, words * 32 / bits]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return (words[:, :, None] >> shifts & ((1 << bits) - 1)).flatten(1)
