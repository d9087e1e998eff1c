"""Run expand_dense under the Triton interpreter; a child process of test_triton_expand.py.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
Reads a JSON list of [recipe, config values, [M, N, K], dtype, data] and writes one answer to
each: null where the gate passes, else the reason. The argument `codes` checks every code instead.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch

from fp4kernels import gate, reference
from fp4kernels.formats import MXFP4
from fp4kernels.packing import Packed, pack_nibbles
from fp4kernels.recipes import RECIPES, Recipe, ScaleRule
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.triton.expand_dense import ExpandConfig, ExpandDense
from fp4kernels.triton.expand_launch import _expand
from interpret_decode import CPU, TOOLCHAIN


def check_gate(
    name: str, values: dict[str, int], shape: list[int], dtype: str, data: str
) -> str | None:
    kernel, recipe = ExpandDense(), recipe_named(name)
    if recipe.format == MXFP4 and shape[0] % 2:  # a tensor scale other than 1
        recipe = replace(recipe, scale_rule=ScaleRule.FLOOR_3_4)
    config = kernel.config(values)
    launch, unit = kernel.build(config, recipe, CPU, TOOLCHAIN), kernel.accumulator_unit(config)
    m, n, k = shape
    case = gate.synthetic_case(data, recipe, (m, n, k), 7, torch.device("cpu"))
    return gate.check(launch, kernel.layout, unit, case, getattr(torch, dtype)).why


def check_codes(recipe: Recipe) -> str | None:
    """All codes under all scale bytes, bit for bit, NaN for NaN; the tensor scale left out."""
    block = recipe.format.block_size
    codes = pack_nibbles(torch.arange(block, dtype=torch.uint8).expand(256, block) % 16)
    packed = Packed(codes, torch.arange(256).to(torch.uint8).unsqueeze(1), torch.ones(()))
    expected = reference.dequantize(packed, recipe.format)
    out = _expand(packed, ExpandConfig(1, 1), recipe).float()
    if not torch.equal(out.isnan(), expected.isnan()):
        return "NaN elsewhere"
    bits, wanted = (x.nan_to_num(7.0, torch.inf, -torch.inf).view(torch.int32)
                    for x in (out, expected))  # fmt: skip
    if not torch.equal(bits, wanted):
        row, column = (bits != wanted).nonzero()[0].tolist()
        return f"scale {row}, code {column % 16}: {out[row, column]} is not {expected[row, column]}"
    lost = _expand(packed._replace(tensor_scale=torch.tensor(1.5)), ExpandConfig(2, 2), recipe)
    if bool(lost.isnan().all()) is recipe.tensor_scaled:
        return "a tensor scale that the recipe does not have went unseen"
    return None


def main() -> None:
    answers: list[Any]
    if sys.argv[1:] == ["codes"]:
        answers = [check_codes(RECIPES[name]) for name in ("mxfp4", "nvfp4")]
    else:
        answers = [check_gate(*case) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
