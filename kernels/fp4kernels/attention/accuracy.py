"""How far attention is from its FP32 reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionError:
    """Of O against a reference, over all of it; `lse` is the largest error of the log-sum-exp."""

    sqnr: float  # dB
    cosine: float
    rmse: float
    max: float
    mean: float
    lse: float


def errors(out: Tensor, lse: Tensor, exact: Tensor, exact_lse: Tensor) -> AttentionError:
    """Everything in float64. Rows that see nothing (LSE = -inf) must be that in both, or the error
    of the LSE is infinite. NaN anywhere makes the figures NaN."""
    got, want = out.double(), exact.double()
    difference = got - want
    noise, signal = float(difference.pow(2).sum()), float(want.pow(2).sum())
    norm = float(got.norm() * want.norm())
    apart = (lse.double() - exact_lse.double()).abs()
    apart = apart.masked_fill((lse == -torch.inf) & (exact_lse == -torch.inf), 0)
    return AttentionError(
        sqnr=decibels(signal, noise),
        cosine=float((got * want).sum()) / norm if norm else math.nan,
        rmse=math.sqrt(noise / want.numel()),
        max=float(difference.abs().max()),
        mean=float(difference.abs().mean()),
        lse=float(apart.max()),
    )


def decibels(signal: float, noise: float) -> float:
    """Infinite where there is no noise."""
    if math.isnan(noise) or math.isnan(signal):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
