"""Run the grouped kernel under the Triton interpreter; a child process of test_grouped.py.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
Reads a JSON list of [recipe, config values, offsets, [N, K], dtype] and writes one answer to each:
null where the gate passes, else the reason; ["skip"] where this interpreter has no dot_scaled.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from fp4kernels import gate, grouped
from fp4kernels.layouts import Layout
from fp4kernels.packing import Packed
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.triton.grouped import GroupedConfig
from fp4kernels.triton.grouped_launch import grouped_launcher

UNIT = 2.0**-24


def absolute(operand: Packed | Tensor) -> Packed | Tensor:
    if isinstance(operand, Tensor):
        return operand.abs()
    return Packed(operand.codes & 0x77, operand.scales, operand.tensor_scale)


def check_gate(
    how: str, values: dict[str, int], offsets: list[int], size: list[int], dtype: str
) -> str | None:
    recipe, (n, k), tokens = recipe_named(how), size, offsets[-1]
    ends = torch.tensor(offsets, dtype=torch.int32)
    cases = [
        gate.synthetic_case("scales", recipe, (tokens, n, k), seed, torch.device("cpu"))
        for seed in range(len(offsets) - 1)
    ]
    x = cases[0].x
    w = grouped.stack([
        case.w._replace(tensor_scale=case.w.tensor_scale * 2.0**number)  # experts are told apart
        for number, case in enumerate(cases)
    ])  # fmt: skip
    magnitude = grouped.expected(absolute(x), absolute(w), ends, recipe)
    case = replace(
        cases[0], expected=grouped.expected(x, w, ends, recipe), magnitude=magnitude,
        rows=torch.arange(tokens),
    )  # fmt: skip
    launch = grouped_launcher(GroupedConfig(**values), recipe)
    return gate.check(
        lambda x, _, out: launch(x, w, ends, out), Layout.CANONICAL, UNIT, case,
        getattr(torch, dtype),
    ).why  # fmt: skip


def main() -> None:
    answers: list[Any] = ["skip"]
    if hasattr(InterpreterBuilder, "create_dot_scaled"):
        answers = [check_gate(*case) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
