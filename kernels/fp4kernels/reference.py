"""The readable truth: quantize, dequantize and GEMM in plain torch, on any device.

Every fast path is tested against this module, bit for bit for codes and scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fp4kernels.errors import FormatError
from fp4kernels.formats import E4M3, BlockFormat
from fp4kernels.packing import Packed, pack_nibbles, unpack_nibbles
from fp4kernels.recipes import Recipe, ScaleRule

FLOAT32_MAX = torch.finfo(torch.float32).max


def quantize(x: Tensor, recipe: Recipe) -> Packed:
    """Quantize `x` [..., K] along K; K must be a multiple of the block size.

    Returns codes [..., K/2], scales [..., K/block] and the tensor scale, all in row-major order.
    A NaN or Inf makes its MX block, or its whole NVFP4 tensor, dequantize to NaN or Inf.
    """
    block = recipe.format.block_size
    check_blocks(x, recipe.format)
    blocks = x.float().reshape(*x.shape[:-1], x.shape[-1] // block, block)
    amax = blocks.abs().amax(-1)
    rule = _floor_scales if recipe.scale_rule is ScaleRule.FLOOR else _nv_scales
    scales, multiplier, tensor_scale = rule(amax, recipe.format)
    codes = recipe.format.element.encode(blocks * multiplier.unsqueeze(-1))
    return Packed(pack_nibbles(codes.flatten(-2)), scales, tensor_scale)


def dequantize(packed: Packed, fmt: BlockFormat) -> Tensor:
    """float32 values [..., K] of canonical `packed`."""
    values = fmt.element.decode(unpack_nibbles(packed.codes))
    scales = fmt.scale.decode(packed.scales)
    blocks = values.view(*scales.shape, fmt.block_size) * scales.unsqueeze(-1)
    return blocks.flatten(-2) * packed.tensor_scale


def gemm(x: Tensor, w: Tensor) -> Tensor:
    """x [M, K] times w [N, K] transposed, in float64."""
    return torch.mm(x.double(), w.double().T)


def check_blocks(x: Tensor, fmt: BlockFormat) -> None:
    """FormatError unless `x` is a floating matrix whose last dimension is whole blocks."""
    if not x.is_floating_point():
        raise FormatError(f"only floating tensors can be quantized, but got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] == 0 or x.shape[-1] % fmt.block_size:
        raise FormatError(
            f"{fmt.name} needs K to be a positive multiple of {fmt.block_size}, "
            f"but got shape {tuple(x.shape)}; pad K with zeros"
        )


def _floor_scales(amax: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor, Tensor]:
    """OCP MX v1.0 section 6.3: the shared exponent is floor(log2 amax) - emax, clamped to E8M0."""
    exponent = (amax.view(torch.int32) >> 23) & 0xFF  # 255 for NaN and Inf
    byte = (exponent - fmt.element.emax).clamp(min=0)
    byte = torch.where(exponent == 255, 255, byte).to(torch.uint8)
    # the reciprocal of 2^(b-127) is byte 254-b; 2^127 is the largest, so no block overflows
    inverse = fmt.scale.decode((254 - byte.int()).clamp(min=0).to(torch.uint8))
    return byte, inverse, amax.new_ones(())


def _nv_scales(amax: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor, Tensor]:
    """arXiv 2509.25149 appendix B, in float32 and in exactly this order."""
    # every operand is a tensor: torch turns a division by, or of, a Python scalar into a product
    one, largest = amax.new_ones(()), amax.new_tensor(fmt.element.max * E4M3.max)
    tensor_amax = amax.max() if amax.numel() else one * 0
    encode = (largest / tensor_amax).clamp(max=FLOAT32_MAX)
    encode = torch.where((tensor_amax == 0) | (encode == 0), one, encode)
    sixth = amax.new_tensor(1 / fmt.element.max)
    scales = E4M3.encode((amax * (encode * sixth)).clamp(max=E4M3.max))
    decode = fmt.scale.decode(scales) * (one / encode)
    multiplier = (one / decode).clamp(max=FLOAT32_MAX)
    return scales, multiplier, tensor_amax / largest
