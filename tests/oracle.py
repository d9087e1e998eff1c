"""Quantizers written apart from the package, in numpy and ml_dtypes, for tests to compare with."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

F32 = np.float32


def mxfp4_floor(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """OCP MX with the floor rule: codes [rows, K] and E8M0 bytes [rows, K/32]."""
    blocks = x.reshape(x.shape[0], -1, 32)
    amax = np.abs(blocks).max(-1)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(amax.astype(np.float64)))
    byte = np.clip(np.nan_to_num(exponent, neginf=-1000) - 2 + 127, 0, 254)
    scale = np.exp2(byte - 127)[..., None]
    with np.errstate(over="ignore"):
        scaled = (blocks.astype(np.float64) / scale).astype(F32)
    codes = scaled.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return codes.reshape(x.shape), byte.astype(np.uint8)


def nvfp4(
    x: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], np.float32]:
    """arXiv 2509.25149 appendix B in float32: codes, E4M3 bytes [rows, K/16], tensor scale."""
    blocks = x.reshape(x.shape[0], -1, 16)
    amax = np.abs(x).max()
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        encode = min(F32(2688) / F32(amax), np.finfo(F32).max)
        if amax == 0 or encode == 0:
            encode = F32(1)
        wanted = np.abs(blocks).max(-1) * (encode * (F32(1) / F32(6)))
        scale = np.minimum(wanted, F32(448)).astype(ml_dtypes.float8_e4m3fn)
        decode = scale.astype(F32) * (F32(1) / encode)
        inverse = np.minimum(F32(1) / decode, np.finfo(F32).max)
        q = np.clip(blocks * inverse[..., None], F32(-6), F32(6))
    codes = q.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return codes.reshape(x.shape), scale.view(np.uint8), F32(amax) / F32(2688)
