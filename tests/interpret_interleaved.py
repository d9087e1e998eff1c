"""Run decode_bf16 under the Triton interpreter; a child process of test_interleaved.py.

As interpret_decode.py. The argument `decode` checks every code under every scale byte instead.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from fp4kernels import reference
from fp4kernels.formats import MXFP4, NVFP4, BlockFormat
from fp4kernels.layouts import Layout, convert
from fp4kernels.packing import Packed, pack_nibbles
from fp4kernels.triton.interleaved_gemm import InterleavedGemm
from fp4kernels.triton.interleaved_kernel import weights
from interpret_decode import check_gate, loops_run


@triton.jit
def unpack_chunk(codes, scales, out, nvfp4: tl.constexpr, shares: tl.constexpr,
                 direct: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0) * 16 + tl.arange(0, 16)[:, None]
    words = tl.load(codes + rows * 8 + tl.arange(0, 8)[None, :])
    bytes_ = tl.load(scales + rows * shares + tl.arange(0, shares)[None, :])
    first, second, third, fourth = weights(words, bytes_, nvfp4, direct, True)
    out += rows * 128 + tl.arange(0, 32)[None, :]
    tl.store(out, first)
    tl.store(out + 32, second)
    tl.store(out + 64, third)
    tl.store(out + 96, fourth)


def check_codes(fmt: BlockFormat, direct: bool) -> str | None:
    """All codes under all scale bytes, or all direct ones, bit for bit and NaN for NaN."""
    block, nvfp4 = fmt.block_size, fmt == NVFP4
    scales = torch.arange(256).to(torch.uint8).unsqueeze(1).expand(256, 128 // block).contiguous()
    if direct:
        scales = scales % (127 if nvfp4 else 129)
    codes = torch.arange(128, dtype=torch.uint8).expand(256, 128) * 7 // 3 % 16
    if direct and nvfp4:
        codes = torch.where(scales[:, :1] == 0, codes & 8, codes)
    packed = Packed(pack_nibbles(codes), scales, torch.ones(()))
    held = convert(packed, 256, fmt, Layout.CANONICAL, Layout.INTERLEAVED)
    if (held.scales.dim() == 3) != direct:
        return f"{fmt.name}: which scales are direct was not seen"
    expected = reference.dequantize(packed, fmt) / (128 if direct and nvfp4 else 1)
    out = torch.empty(256, 128)
    words, bytes_ = held.codes.view(torch.int64), held.scales.view(torch.int32)
    unpack_chunk[(16,)](words, bytes_, out, nvfp4, 32 // block, direct)
    bits = torch.where(out.isnan(), 0x7FC00000, out.view(torch.int32))
    wanted = torch.where(expected.isnan(), 0x7FC00000, expected.view(torch.int32))
    if not torch.equal(bits, wanted):
        row, column = (bits != wanted).nonzero()[0].tolist()
        return f"{fmt.name} scale {row}, k={column}: {out[row, column]}, {expected[row, column]}"
    return "more bits than bf16 has" if (bits & 0xFFFF).any() else None


def main() -> None:
    answers: list[Any]
    if sys.argv[1:] == ["decode"]:
        answers = [check_codes(f, direct) for f in (MXFP4, NVFP4) for direct in (True, False)]
    elif not loops_run():
        answers = ["skip"]
    else:
        answers = [check_gate(*case, kernel=InterleavedGemm()) for case in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
