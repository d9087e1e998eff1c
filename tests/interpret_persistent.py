"""Run the persistent kernel under the Triton interpreter; a child process of test_persistent.py.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
Reads a JSON list of [recipe, config values, [M, N, K], dtype, cores] and writes one answer to each:
null where the gate passes, else the reason. `codes` as argument multiplies every code under every scale
instead. ["skip"] where this interpreter has no dot_scaled.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from triton.runtime.interpreter import InterpreterBuilder

from fp4kernels import gate, reference
from fp4kernels.formats import MXFP4
from fp4kernels.layouts import Layout, convert
from fp4kernels.recipes import ScaleRule
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.registry import variant
from interpret_dots import CPU, TOOLCHAIN, all_codes, units

KERNEL = variant("dot_scaled_persistent")


def check_gate(
    how: str, values: dict[str, int], shape: list[int], dtype: str, cores: int
) -> str | None:
    recipe = recipe_named(how)
    if recipe.format == MXFP4:  # a tensor scale other than 1
        recipe = replace(recipe, scale_rule=ScaleRule.FLOOR_3_4)
    config = KERNEL.config(values)
    launch = KERNEL.build(config, recipe, replace(CPU, cores=cores), TOOLCHAIN)
    m, n, k = shape
    case = gate.synthetic_case("scales", recipe, (m, n, k), 7, torch.device("cpu"))
    return gate.check(
        launch, KERNEL.layout, KERNEL.accumulator_unit(config), case, getattr(torch, dtype)
    ).why


def check_codes(how: str, values: dict[str, int]) -> str | None:
    """Every code times 1, bit for bit; NaN where a scale is NaN or its block overflows."""
    recipe = recipe_named(how)
    fmt, w = recipe.format, all_codes(recipe.format)
    x = units(fmt, plain=False)
    assert not isinstance(x, torch.Tensor)
    rows = 2 * fmt.block_size
    expected = reference.gemm(
        reference.dequantize(x, fmt).double(), reference.dequantize(w, fmt)
    ).float()
    held = convert(w, 256, fmt, Layout.CANONICAL, KERNEL.layout)
    out = torch.full((rows, 256), 12345.0)
    KERNEL.build(KERNEL.config(values), recipe, CPU, TOOLCHAIN)(x, held, out)
    wrong = ~((out == expected) | (out.isnan() & expected.isnan()))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        return f"scale {column}, value {row}: {out[row, column]} is not {expected[row, column]}"
    return None


def main() -> None:
    answers: list[Any]
    if not hasattr(InterpreterBuilder, "create_dot_scaled"):
        answers = ["skip"]
    elif sys.argv[1:] == ["codes"]:
        answers = [check_codes(*case) for case in json.load(sys.stdin)]
    else:
        answers = [check_gate(*case) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
