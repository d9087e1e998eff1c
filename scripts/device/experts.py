"""The grouped GEMM of mixture-of-experts layers: within the gate's bound, beside bf16 expert by expert."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from device.place import Place, Row, collect
from fp4kernels import reference
from fp4kernels.grouped import expected, grouped_linear_op, stack
from fp4kernels.ops import quantize_op
from fp4kernels.packing import Packed
from fp4kernels.recipes import recipe as recipe_named

RECIPES = ("mxfp4-w4a16", "nvfp4-w4a16", "mxfp4")
UNIT = 2.0**-24


def measured(place: Place) -> list[Row]:
    tokens = (20,) if place.small else (16, 4096)
    return collect(
        (f"{recipe} {count} tokens", functools.partial(row, place, recipe, count))
        for recipe, count in itertools.product(RECIPES, tokens)
    )


def row(place: Place, recipe: str, tokens: int) -> Row:
    experts, n, k = (3, 64, 96) if place.small else (8, 4096, 4096)
    where, how = place.torch_device, recipe_named(recipe)
    w = stack([reference.quantize(torch.randn(n, k, device=where), how) for _ in range(experts)])
    x = torch.randn(tokens, k, device=where).bfloat16()
    offsets = uneven(tokens, experts).to(where)
    out = grouped_linear_op(x, *w, offsets, recipe)
    left: Packed | Tensor = x if how.weight_only else Packed(*quantize_op(x, recipe))
    want = expected(left, w, offsets, how)
    values = x.double() if isinstance(left, Tensor) else reference.dequantize(left, how.format)
    size = float(values.abs().amax(1).max()) * float(
        max(reference.dequantize(Packed(*one), how.format).abs().sum(1).max()
            for one in zip(*w, strict=True))
    )  # fmt: skip
    allowed = 2.0**-8 * want.abs() + 4 * (1 + math.log2(k)) * UNIT * size
    wrong = int((~((out.double() - want).abs() <= allowed)).sum())
    if wrong:
        raise AssertionError(f"{wrong} of {want.numel()} elements are outside the bound")
    dense = [torch.randn(n, k, device=where).bfloat16() for _ in range(experts)]
    spans = list(itertools.pairwise(offsets.tolist()))

    def one_by_one() -> object:
        return [x[start:end] @ each.T for (start, end), each in zip(spans, dense, strict=True)]

    found = place.race({
        "fp4": [functools.partial(grouped_linear_op, x, *w, offsets, recipe)], "bf16": [one_by_one],
    }, 0.15)  # fmt: skip
    return {
        **found,
        "experts": experts,
        "tokens": tokens,
        "times_bf16": found["bf16"] / found["fp4"],
    }


def uneven(tokens: int, experts: int) -> Tensor:
    """Where each expert's tokens start: the first has half, the last none."""
    counts = [tokens // 2, *([tokens // 2 // (experts - 2)] * (experts - 2)), 0]
    counts[1] += tokens - sum(counts)
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
