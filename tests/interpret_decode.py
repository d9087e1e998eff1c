"""Run decode_canonical under the Triton interpreter; a child process of test_triton_gemm.py.

TRITON_INTERPRET=1 must be set before triton is imported and changes it for the whole process.
Reads a JSON list of [recipe, config values, [M, N, K], dtype] and writes one answer to each:
null where the gate passes, else the reason; ["skip"] where loops do not run. The argument `decode`
checks every code instead.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from fp4kernels import gate, reference
from fp4kernels.devices import Device, Toolchain
from fp4kernels.formats import MXFP4, NVFP4, BlockFormat
from fp4kernels.packing import Packed, pack_nibbles
from fp4kernels.recipes import ScaleRule
from fp4kernels.recipes import recipe as recipe_named
from fp4kernels.triton.decode_kernel import decode
from fp4kernels.triton.gemm import DecodeGemm

CPU = Device("cpu", "interpreter", "none", 1, 1 << 20, 0, 1 << 30)
CANONICAL = DecodeGemm()
TOOLCHAIN = Toolchain(str(torch.__version__), str(triton.__version__), None, None, None)


@triton.jit
def decode_block(codes, scales, out, block: tl.constexpr, nvfp4: tl.constexpr):
    row = tl.program_id(0) * 16 + tl.arange(0, 16)[:, None]
    packed = tl.load(codes + row * (block // 2) + tl.arange(0, block // 2)[None, :])
    values = decode(packed, tl.load(scales + row), nvfp4, True)
    tl.store(out + row * block + tl.arange(0, block)[None, :], values)


@triton.jit
def count(out):
    for _ in range(0, tl.program_id(0) + 1):
        tl.store(out, 1.0)


def loops_run() -> bool:
    """Triton 3.6 indexes with a 1-element array, which numpy 2.4 no longer converts."""
    try:
        count[(1,)](torch.zeros(1))
    except triton.runtime.errors.InterpreterError:
        return False
    return True


def check_gate(
    name: str,
    values: dict[str, int],
    shape: list[int],
    dtype: str,
    data: str = "scales",
    kernel: DecodeGemm = CANONICAL,
) -> str | None:
    recipe = recipe_named(name)
    if recipe.format == MXFP4:  # a tensor scale other than 1
        recipe = replace(recipe, scale_rule=ScaleRule.FLOOR_3_4)
    config = kernel.config(values)
    launch, unit = kernel.build(config, recipe, CPU, TOOLCHAIN), kernel.accumulator_unit(config)
    m, n, k = shape
    case = gate.synthetic_case(data, recipe, (m, n, k), 7, torch.device("cpu"))
    return gate.check(launch, kernel.layout, unit, case, getattr(torch, dtype)).why


def check_codes(fmt: BlockFormat) -> str | None:
    """All codes under all scale bytes, bit for bit, NaN for NaN, and held by bf16."""
    block = fmt.block_size
    codes = pack_nibbles(torch.arange(block, dtype=torch.uint8).expand(256, block) % 16)
    scales = torch.arange(256).to(torch.uint8).unsqueeze(1)
    expected = reference.dequantize(Packed(codes, scales, torch.ones(())), fmt)
    out = torch.empty(256, block)
    decode_block[(16,)](codes, scales, out, block, fmt == NVFP4)
    bits = torch.where(out.isnan(), 0x7FC00000, out.view(torch.int32))
    wanted = torch.where(expected.isnan(), 0x7FC00000, expected.view(torch.int32))
    if not torch.equal(bits, wanted):
        row, column = (bits != wanted).nonzero()[0].tolist()
        return f"scale {row}, code {column % 16}: {out[row, column]} is not {expected[row, column]}"
    if (bits & 0xFFFF).any():
        return "a decoded value has more significant bits than bf16"
    return None


def main() -> None:
    answers: list[Any]
    if sys.argv[1:] == ["decode"]:
        answers = [check_codes(fmt) for fmt in (MXFP4, NVFP4)]
    elif not loops_run():
        answers = ["skip"]
    else:
        answers = [check_gate(*case) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
