"""The least time that a device's limits leave to a product."""

from __future__ import annotations

from dataclasses import dataclass

from fp4bench.trials import Limits, Policy
from fp4kernels.attention.workload import Workload
from fp4kernels.variants import Arithmetic


@dataclass(frozen=True)
class Bound:
    """No kernel of this arithmetic can take less than `ns`, because of what `by` names."""

    ns: float
    by: str  # "memory", "cache", or the arithmetic: "int8", "bf16" …


def roofline(
    limits: Limits,
    workload: Workload,
    fewest_bytes: float,
    arithmetic: Arithmetic,
    policy: Policy,
) -> Bound | None:
    """max(flops / peak, fewest bytes / read bandwidth), Williams et al. 2009, doi
    10.1145/1498765.1498785; None where the device's peak or bandwidth is not known.

    `fewest_bytes` is workload.fewest_bytes(recipe) of an FP4 kernel, and what a baseline must
    move of a baseline. A cold cache reads from memory, a warm one from the last-level cache. The
    operands of a small problem fit in a core's private cache and then beat a warm cache's bound.
    """
    peak = getattr(limits, arithmetic.value)
    cold = policy.cache == "cold"
    bandwidth = limits.memory_read if cold else limits.cache_read
    if peak is None or bandwidth is None:
        return None
    computing, moving = workload.flops / peak, fewest_bytes / bandwidth
    if computing >= moving:
        return Bound(computing, arithmetic.value)
    return Bound(moving, "memory" if cold else "cache")
