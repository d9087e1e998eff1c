"""What attention is asked for: which tokens are one sequence, and which keys a query sees."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from fp4kernels.attention.recipes import check_head_dim
from fp4kernels.errors import FormatError, WorkloadError
from fp4kernels.formats import named

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class MaskKind(StrEnum):
    FULL = "full"
    CAUSAL = "causal"  # right-aligned: the last query sees the last key
    SLIDING = "sliding"  # causal, and of those keys only the last `window`


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees; a window counts the query's own position."""

    kind: MaskKind = MaskKind.FULL
    window: int = 0

    def __post_init__(self) -> None:
        if (self.kind is MaskKind.SLIDING) != (self.window > 0) or self.window < 0:
            raise WorkloadError(
                "a sliding mask has a window of at least 1, and no other has one, but got "
                f"{self.kind} with window {self.window}"
            )

    @property
    def causal(self) -> bool:
        return self.kind is not MaskKind.FULL

    def visible(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """bool [queries, keys]."""
        if not self.causal:
            return torch.ones(queries, keys, dtype=torch.bool, device=device)
        # how far back from the query's own place
        back = torch.arange(queries, device=device)[:, None] + (keys - queries)
        back = back - torch.arange(keys, device=device)
        return (back >= 0) & (back < self.window) if self.window else back >= 0


def mask_named(kind: str, window: int | None = None) -> Mask:
    """FormatError for a kind that is not known, WorkloadError for a window that does not fit it."""
    known = {member.value: member for member in MaskKind}
    return Mask(named("mask", kind, known), window or 0)


@dataclass(frozen=True)
class Segments:
    """Tokens of several sequences side by side: sequence i has queries q[i]..q[i+1]-1, and so on."""

    q: tuple[int, ...]
    k: tuple[int, ...]

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Queries and keys of each sequence."""
        ends = zip(itertools.pairwise(self.q), itertools.pairwise(self.k), strict=True)
        return [(q1 - q0, k1 - k0) for (q0, q1), (k0, k1) in ends]

    @property
    def spans(self) -> list[tuple[slice, slice]]:
        ends = zip(itertools.pairwise(self.q), itertools.pairwise(self.k), strict=True)
        return [(slice(*q), slice(*k)) for q, k in ends]


def segments_of(
    q: Tensor, k: Tensor, cu_q: Sequence[int] | None = None, cu_k: Sequence[int] | None = None
) -> Segments:
    """Of dense q [B, Sq, H, D] and k, or of [T, H, D] with both cumulative lengths, from 0 to T."""
    if q.dim() == 4:
        if cu_q is not None or cu_k is not None:
            raise WorkloadError(
                f"cumulative lengths go with q [T, H, D], but got {tuple(q.shape)}; "
                "leave them out or flatten the batch"
            )
        batch = range(q.shape[0] + 1)
        return Segments(
            tuple(i * q.shape[1] for i in batch), tuple(i * k.shape[1] for i in batch)
        )  # fmt: skip
    if cu_q is None or cu_k is None:
        raise WorkloadError(
            "q [T, H, D] needs the cumulative lengths of queries and keys, but got "
            f"{'no' if cu_q is None else 'those of'} queries and "
            f"{'no' if cu_k is None else 'those of'} keys"
        )
    for name, given, tokens in (("queries", cu_q, len(q)), ("keys", cu_k, len(k))):
        steps = list(itertools.pairwise(given))
        if not steps or given[0] != 0 or given[-1] != tokens or any(a > b for a, b in steps):
            raise WorkloadError(
                f"cumulative lengths of {name} rise from 0 to {tokens}, but got {list(given)[:8]}"
            )
    if len(cu_q) != len(cu_k):
        raise WorkloadError(
            f"queries and keys are of the same sequences, but got {len(cu_q) - 1} and "
            f"{len(cu_k) - 1}"
        )
    return Segments(tuple(cu_q), tuple(cu_k))


def check(q: Tensor, k: Tensor, v: Tensor, segments: Segments, mask: Mask) -> None:
    """FormatError or WorkloadError unless attention of such shapes and types is defined.

    A sequence among several may be empty, and one without keys makes rows of zeros; a whole batch
    without queries or keys is an error.
    """
    if q.dim() not in (3, 4) or k.dim() != q.dim() or k.shape != v.shape:
        raise WorkloadError(
            "q, k and v are [B, S, H, D] or [T, H, D], and k and v of one shape, but got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not q.numel() or not k.numel():
        raise WorkloadError(
            "attention needs at least one query, key and head, but got "
            f"{tuple(q.shape)} and {tuple(k.shape)}"
        )
    if q.shape[-1] != k.shape[-1] or (q.dim() == 4 and len(q) != len(k)):
        raise WorkloadError(
            f"q and k share batch and head dim, but got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    check_head_dim(q.shape[-1])
    heads, kv_heads = q.shape[-2], k.shape[-2]
    if heads % kv_heads:
        raise WorkloadError(
            f"query heads are a multiple of kv heads, but got {heads} and {kv_heads}"
        )
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise FormatError(
            "q, k and v are of one floating type of at most 64 bits, but got "
            f"{q.dtype}, {k.dtype}, {v.dtype}"
        )
    if mask.causal:
        for number, (queries, keys) in enumerate(segments.lengths):
            if queries > keys:
                raise WorkloadError(
                    "under a causal mask a sequence has at least as many keys as queries, but "
                    f"sequence {number} has {queries} queries and {keys} keys"
                )


def check_finite(**operands: Tensor) -> None:
    """FormatError where one holds NaN or Inf."""
    for name, x in operands.items():
        if not bool(x.isfinite().all()):
            raise FormatError(
                f"attention takes finite numbers only, but {name} holds NaN or Inf; "
                "find where they come from"
            )
