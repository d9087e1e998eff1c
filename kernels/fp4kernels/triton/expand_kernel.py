# mypy: ignore-errors
"""FP4 to bf16 in one pass over memory; importing this needs triton."""

import triton
import triton.language as tl

from fp4kernels.triton.decode_kernel import _to_bfloat16, decode


@triton.jit
def expand_kernel(
    codes, scales, tensor_scale, out, total,
    block: tl.constexpr, nvfp4: tl.constexpr, scaled: tl.constexpr,
    blocks: tl.constexpr, steps: tl.constexpr, interpreted: tl.constexpr,
):  # fmt: skip
    """`steps` times `blocks` of the `total` blocks, to bf16, exactly.

    A tensor scale is left to the product, in float32: without `scaled` it must be 1.

    The launcher makes a step 8 values for each thread, so that loads of a warp are whole lines,
    stores are of 16 bytes, and no value has to change threads in between.
    """
    if not scaled:  # MXFP4, whose tensor scale is 1
        lost = tl.load(tensor_scale) != 1.0
    first = tl.program_id(0) * (blocks * steps)
    byte = tl.arange(0, block // 2)[None, :]
    for step in tl.static_range(steps):
        index = first + step * blocks + tl.arange(0, blocks)
        inside = (index < total)[:, None]
        packed = tl.load(codes + index[:, None] * (block // 2) + byte, mask=inside, other=0)
        scale = tl.load(scales + index[:, None], mask=inside, other=0)
        if not scaled:
            scale = tl.where(lost, 255, scale).to(tl.uint8)  # NaN: no product is silently wrong
        values = decode(packed, scale, nvfp4, interpreted)
        if interpreted:
            values = _to_bfloat16(values, interpreted)
        at = index.to(tl.int64)[:, None] * block + tl.arange(0, block)[None, :]
        tl.store(out + at, values, mask=inside)
