"""Run the dot_scaled kernels under the Triton interpreter; a child process of test_dot_scaled.py.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
Reads a JSON list of [variant, recipe, config values, [M, N, K], dtype] and writes one answer to
each: null where the gate passes, else the reason. The argument `codes` multiplies every code under
every scale instead, `swizzle` lays out scales. ["skip"] where this interpreter has no dot_scaled.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from fp4kernels import gate, reference, swizzle
from fp4kernels.devices import Device, Toolchain
from fp4kernels.formats import MXFP4, BlockFormat
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed, pack_nibbles
from fp4kernels.recipes import ScaleRule
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from fp4kernels.triton.dot_scaled import DotScaledConfig
from fp4kernels.triton.dot_scaled_launch import swizzled

CPU = Device("cpu", "interpreter", "none", 1, 1 << 20, 0, 1 << 30)
TOOLCHAIN = Toolchain(str(torch.__version__), str(triton.__version__), None, None, None)
SIZES = [(1, 1), (1, 5), (128, 4), (129, 3), (200, 17), (256, 8), (1000, 40)]


def check_gate(
    name: str, how: str, values: dict[str, int], shape: list[int], dtype: str
) -> str | None:
    kernel, recipe = variant(name), recipe_named(how)
    if recipe.format == MXFP4:  # a tensor scale other than 1
        recipe = replace(recipe, scale_rule=ScaleRule.FLOOR_3_4)
    config = kernel.config(values)
    launch = kernel.build(config, recipe, CPU, TOOLCHAIN)
    m, n, k = shape
    case = gate.synthetic_case("scales", recipe, (m, n, k), 7, torch.device("cpu"))
    return gate.check(
        launch, kernel.layout, kernel.accumulator_unit(config), case, getattr(torch, dtype)
    ).why


def all_codes(fmt: BlockFormat) -> Packed:
    """[256, 2 blocks]: a row for each scale byte, whose second block is zeros under a scale of 1."""
    block = fmt.block_size
    codes = torch.arange(block, dtype=torch.uint8).expand(256, block) % 16
    scales = torch.arange(256).to(torch.uint8)
    return Packed(
        pack_nibbles(torch.cat((codes, torch.zeros_like(codes)), 1)),
        torch.stack((scales, torch.full_like(scales, ONE[fmt.name])), 1),
        torch.ones(()),
    )


ONE = {"mxfp4": 127, "nvfp4": 0x38}  # the scale byte of 1


def units(fmt: BlockFormat, plain: bool) -> Packed | Tensor:
    """Row i is 1 at k = i, and -0 elsewhere: as codes, or in bf16."""
    rows = 2 * fmt.block_size
    one = torch.eye(rows, dtype=torch.bool)
    if plain:
        return torch.where(one, 1.0, -0.0).bfloat16()
    codes = torch.where(one, 2, 8).to(torch.uint8)
    scales = torch.full((rows, 2), ONE[fmt.name], dtype=torch.uint8)
    return Packed(pack_nibbles(codes), scales, torch.ones(()))


def check_codes(name: str, how: str) -> str | None:
    """Every code times 1, bit for bit; NaN where a scale is NaN or its block overflows."""
    recipe, kernel = recipe_named(how), variant(name)
    fmt, w = recipe.format, all_codes(recipe.format)
    x = units(fmt, recipe.weight_only)
    rows = 2 * fmt.block_size
    left = x.double() if isinstance(x, Tensor) else reference.dequantize(x, fmt).double()
    expected = reference.gemm(left, reference.dequantize(w, fmt)).float()
    held = convert(w, 256, fmt, Layout.CANONICAL, kernel.layout)
    for block_m in (32, 128):
        config = DotScaledConfig(block_m, 128, 128, warps=4, stages=2, group_m=1)
        out = torch.full((rows, 256), 12345.0)
        kernel.build(config, recipe, CPU, TOOLCHAIN)(x, held, out)
        wrong = ~((out == expected) | (out.isnan() & expected.isnan()))
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            return (
                f"{config.label}: scale {column}, value {row}: {out[row, column]} is not "
                f"{expected[row, column]}"
            )
    return None


def check_swizzle(rows: int, columns: int) -> str | None:
    scales = torch.randint(1, 256, (rows, columns), dtype=torch.uint8)
    same = torch.equal(swizzled(scales), swizzle.swizzled(scales))
    return None if same else f"{rows} x {columns}"


def main() -> None:
    answers: list[Any]
    if not hasattr(InterpreterBuilder, "create_dot_scaled"):
        answers = ["skip"]
    elif sys.argv[1:] == ["swizzle"]:
        answers = [check_swizzle(*size) for size in SIZES]
    elif sys.argv[1:] == ["codes"]:
        answers = [check_codes(*case) for case in json.load(sys.stdin)]
    else:
        answers = [check_gate(*case) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
