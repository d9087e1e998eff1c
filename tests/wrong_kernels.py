"""Kernels with one fault each. The gate must reject every one of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fp4kernels import reference
from fp4kernels.packing import Packed
from fp4kernels.recipes import RECIPES
from fp4kernels.variants import Launcher

NV = RECIPES["nvfp4"].format


def right(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    """The one that passes, for the others to differ from in one thing."""
    assert isinstance(x, Packed)
    out.copy_(reference.dequantize(x, NV) @ reference.dequantize(w, NV).T)


def _with(change: Callable[[Packed], Packed]) -> Launcher:
    """`right` over a weight that was misread."""

    def launch(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        right(x, change(w), out)

    return launch


def one_element_unwritten(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    kept = out[-1, -1].clone()
    right(x, w, out)
    out[-1, -1] = kept


def scale_off_by_one_block(w: Packed) -> Packed:
    return w._replace(scales=w.scales.roll(1, dims=1))


def nibbles_swapped(w: Packed) -> Packed:
    return w._replace(codes=(w.codes >> 4) | (w.codes << 4))


def tail_dropped(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    """K is cut to whole tiles of 128."""
    assert isinstance(x, Packed)
    k = x.codes.shape[1] * 2 // 128 * 128
    cut = [t._replace(codes=t.codes[:, : k // 2], scales=t.scales[:, : k // 16]) for t in (x, w)]
    right(cut[0], cut[1], out)


def accumulated_in_bf16(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    assert isinstance(x, Packed)
    left, rows = reference.dequantize(x, NV), reference.dequantize(w, NV)
    total = torch.zeros(out.shape, dtype=torch.bfloat16)
    for start in range(0, left.shape[1], 16):
        step = slice(start, start + 16)
        total += (left[:, step] @ rows[:, step].T).bfloat16()
    out.copy_(total)


class StaleOutput:
    """Returns what it computed the first time, for another input."""

    def __init__(self) -> None:
        self.first: Tensor | None = None

    def __call__(self, x: Packed | Tensor, w: Packed, out: Tensor) -> None:
        if self.first is None or self.first.shape != out.shape:
            right(x, w, out)
            self.first = out.clone()
        else:
            out.copy_(self.first)


def tensor_scale_forgotten(w: Packed) -> Packed:
    return w._replace(tensor_scale=torch.ones(()))


def minus_zero_misread(w: Packed) -> Packed:
    """Code 8 read in two's complement fashion, as the most negative value instead of -0."""
    low, high = w.codes & 0xF, w.codes >> 4
    low, high = (torch.where(nibble == 8, 15, nibble) for nibble in (low, high))
    return w._replace(codes=low | (high << 4))


def scale_transposed(w: Packed) -> Packed:
    return w._replace(scales=w.scales.T.reshape(w.scales.shape))


def output_halved(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    right(x, w, out)
    out *= 0.5


def accumulated_into_the_buffer(x: Packed | Tensor, w: Packed, out: Tensor) -> None:
    before = out.clone()
    right(x, w, out)
    out += before.nan_to_num(0.0)


WRONG: dict[str, Callable[[], Launcher]] = {
    "one element unwritten": lambda: one_element_unwritten,
    "a scale off by one block": lambda: _with(scale_off_by_one_block),
    "nibbles swapped": lambda: _with(nibbles_swapped),
    "a tail dropped": lambda: tail_dropped,
    "accumulation in bf16": lambda: accumulated_in_bf16,
    "a stale output": StaleOutput,
    "the tensor scale forgotten": lambda: _with(tensor_scale_forgotten),
    "sign of -0": lambda: _with(minus_zero_misread),
    "a transposed scale": lambda: _with(scale_transposed),
    "an output halved": lambda: output_halved,
    "added to the buffer": lambda: accumulated_into_the_buffer,
}
