"""Run fold_fp8 under the Triton interpreter; a child process of test_triton_fold.py.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
Reads a JSON list of [recipe, type of the weight, config values, [M, N, K], dtype, data] and writes
one answer to each: null where the gate passes, else the reason; ["skip"] where loops do not run.
The argument `rows` checks the folding of activations instead.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from fp4kernels import gate, reference
from fp4kernels.folding import E4M3_FOLD, E5M2_FOLD, FOLDS, folded
from fp4kernels.formats import MXFP4
from fp4kernels.packing import Packed, pack_nibbles
from fp4kernels.recipes import RECIPES
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.triton.fold_fp8 import FoldFp8
from fp4kernels.triton.fold_launch import fold_rows
from interpret_decode import CPU, TOOLCHAIN, loops_run

FLOAT32_UNIT = 2.0**-24  # the interpreter sums in float32: a tighter gate than the variant's own


def check_gate(
    name: str, kind: str, values: dict[str, int], shape: list[int], dtype: str, data: str
) -> str | None:
    kernel, recipe = FoldFp8(), recipe_named(name)
    launch = kernel.build(kernel.config(values), recipe, CPU, TOOLCHAIN)
    m, n, k = shape
    case = gate.synthetic_case(data, recipe, (m, n, k), 7, torch.device("cpu"))
    held = case.weight(kernel.layout)
    if held.codes.dtype is E4M3_FOLD.dtype and kind == "float8_e5m2":
        # the same values as another weight's wider rows would have made them
        up = 2.0 ** (E5M2_FOLD.peak - E4M3_FOLD.peak)
        held = held._replace(codes=(held.codes.float() * up).to(E5M2_FOLD.dtype))
        case._held[kernel.layout] = held
    if held.codes.dtype is not getattr(torch, kind):
        return f"the weight became {held.codes.dtype}"
    return gate.check(launch, kernel.layout, FLOAT32_UNIT, case, getattr(torch, dtype)).why


def check_rows(window: int) -> str | None:
    """Every code under every scale of a window, NaN, and scales outside, as `folding` has them."""
    fold = next(fold for fold in FOLDS if fold.window == window)
    tops = [*range(window, 253), 252, 100, 254]
    scales = torch.tensor([[*range(top - window, top + 1)] for top in tops], dtype=torch.uint8)
    scales[-3, 0], scales[-2, 1] = 255, 100 - window - 1
    codes = torch.arange(16, dtype=torch.uint8).repeat(2 * scales.shape[1]).expand(len(tops), -1)
    packed = Packed(pack_nibbles(codes), scales, torch.ones(()))
    values, found = fold_rows(packed, RECIPES[f"mxfp4-row-{window}"])
    good = len(tops) - 3
    if found.tolist() != [*tops[:good], 255, 255, 255]:
        return f"tops {found.tolist()}"
    expected = folded(Packed(packed.codes[:good], scales[:good], packed.tensor_scale), MXFP4)
    if values.dtype is not fold.dtype or expected.codes.dtype is not fold.dtype:
        return f"{values.dtype} and {expected.codes.dtype}"
    if not torch.equal(values[:good].view(torch.uint8), expected.codes.view(torch.uint8)):
        return "other bytes than folding makes of a weight"
    exact = reference.dequantize(packed, MXFP4)[:good].double()
    shift = torch.exp2(found[:good, None].double() - 127 - fold.peak)
    return None if torch.equal(values[:good].double() * shift, exact) else "other values"


def main() -> None:
    answers: list[Any]
    if sys.argv[1:] == ["rows"]:
        answers = [check_rows(window) for window in (14, 28)]
    elif not loops_run():
        answers = ["skip"]
    else:
        answers = [check_gate(*case) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
