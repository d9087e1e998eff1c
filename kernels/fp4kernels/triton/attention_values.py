# mypy: ignore-errors
"""Bytes of a KV cache to bf16, exactly; importing this needs triton.

The two codes of a byte go to two tensors, of even and of odd columns: what is summed over columns,
or written by column, need not put them side by side.
"""

import triton
import triton.language as tl

from fp4kernels.triton.decode_kernel import E2M1_BIAS, _from_bits, decode_scales

SMALL = tl.constexpr(2.0**-10)  # what values under E4M3 scales are left multiplied by
RAISED = tl.constexpr(2.0**116)  # E2M1's bias in bf16, 2^126, times that


@triton.jit
def halves(codes, scales, nvfp4: tl.constexpr, ptx: tl.constexpr, interpreted: tl.constexpr):
    """codes [R, C] and scale bytes [R, 2C/block] → values of low and of high codes, each [R, C];
    under E4M3 scales times SMALL, so that one product makes them."""
    rows: tl.constexpr = codes.shape[0]
    columns: tl.constexpr = codes.shape[1]
    blocks: tl.constexpr = scales.shape[1]
    factors = decode_scales(scales, nvfp4, interpreted)
    if nvfp4:
        factors = factors * RAISED
    spread = tl.broadcast_to(factors[:, :, None], (rows, blocks, columns // blocks))
    spread = spread.reshape((rows, columns))
    if ptx:
        low, high = tl.inline_asm_elementwise(
            E4M3_SCALED if nvfp4 else E8M0_SCALED, "=r,=r,=r,=r,r,r,r", [codes, spread],
            dtype=(tl.bfloat16, tl.bfloat16), is_pure=False, pack=4,
        )  # fmt: skip
    else:
        low, high = _value(codes, interpreted), _value(codes >> 4, interpreted)
        if not nvfp4:
            low, high = low * E2M1_BIAS, high * E2M1_BIAS
        low, high = low * spread, high * spread
    return low, high


@triton.jit
def _value(code, interpreted: tl.constexpr):
    """The low four bits as bf16, times 2^-126."""
    wide = code.to(tl.uint16)
    return _from_bits((((wide & 8) << 12) | ((wide & 7) << 6)).to(tl.uint16), interpreted)


# four bytes in $4: each to the upper half of 16 bits, then sign to bit 15, magnitude to bits 6..8;
# products as a fused multiply-add of -0, which sm_80 has, too
_DECODE = """{
.reg .b32 two<2>, bits<4>, part, none, bias;
mov.b32 none, 0x80008000;
mov.b32 bias, 0x7E807E80;
prmt.b32 two0, $4, 0, 0x1404;
prmt.b32 two1, $4, 0, 0x3424;
shr.u32 part, two0, 6;
and.b32 part, part, 0x01C001C0;
lop3.b32 bits2, two0, 0x80008000, part, 0xEA;
shr.u32 part, two1, 6;
and.b32 part, part, 0x01C001C0;
lop3.b32 bits3, two1, 0x80008000, part, 0xEA;
shl.b32 two0, two0, 4;
shl.b32 two1, two1, 4;
shr.u32 part, two0, 6;
and.b32 part, part, 0x01C001C0;
lop3.b32 bits0, two0, 0x80008000, part, 0xEA;
shr.u32 part, two1, 6;
and.b32 part, part, 0x01C001C0;
lop3.b32 bits1, two1, 0x80008000, part, 0xEA;
"""
_BIAS = "".join(f"fma.rn.bf16x2 bits{i}, bits{i}, bias, none;\n" for i in range(4))
_SCALE = "".join(f"fma.rn.bf16x2 ${i}, bits{i}, ${5 + i % 2}, none;\n" for i in range(4))
E4M3_SCALED = tl.constexpr(_DECODE + _SCALE + "}")
E8M0_SCALED = tl.constexpr(_DECODE + _BIAS + _SCALE + "}")
