"""How near a measurement comes to what the device can do: each entry of a race against its limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fp4bench.attention.baselines import ATTENTION_BASELINES
from fp4bench.baselines import BASELINES
from fp4bench.limits.roofline import Bound, roofline
from fp4bench.racing import Ratio, paired_ratio
from fp4bench.trials import Limits, Measurement, Race
from fp4kernels.attention.workload import AttentionWorkload
from fp4kernels.registry import any_variant
from fp4kernels.variants import Arithmetic
from fp4kernels.workloads import DTYPE_BYTES, GemmWorkload


@dataclass(frozen=True)
class Entry:
    """One of a race's measurements: `role` is default, tuned, or a baseline's name."""

    role: str
    measurement: Measurement
    bound: Bound | None  # the least time that the limits leave it; None where they are unknown
    against_bf16: Ratio

    @property
    def share(self) -> float | None:
        """Of the binding limit: 1 is all that the device can do."""
        return None if self.bound is None else self.bound.ns / self.measurement.median_ns


def entries(race: Race, limits: Limits | None) -> Iterator[Entry]:
    """Default, tuned and baselines, in this order."""
    for role, measured in {"default": race.default, "tuned": race.tuned, **race.baselines}.items():
        bound = None if limits is None else bound_of(race, role, limits)
        yield Entry(role, measured, bound, paired_ratio(race.baseline, measured))


def bound_of(race: Race, role: str, limits: Limits) -> Bound | None:
    """The limit of what that entry computes with and must move; None where it is not known."""
    work = race.workload
    if role in ("default", "tuned"):
        values = race.default_values if role == "default" else race.tuned_values
        kernel = any_variant(values["variant"])
        how = kernel.recipe(race.recipe)
        arithmetic, least = kernel.computes_with(how, race.device), work.fewest_bytes(how)
    elif isinstance(work, AttentionWorkload):
        if role not in ATTENTION_BASELINES:
            return None  # with quantizing, too: more than a kernel does
        baseline = ATTENTION_BASELINES[role]
        arithmetic, least = baseline.arithmetic, baseline.kv_bytes(work)
    elif role in BASELINES:
        arithmetic = BASELINES[role].arithmetic
        least = BASELINES[role].weight_bytes(work.n, work.k) + _activation_bytes(work)
    else:
        return None  # of another version of this project
    if arithmetic is Arithmetic.BF16 and limits.bf16 is None:
        arithmetic = Arithmetic.FP32  # a CPU of any level may lack BF16: then it multiplies floats
    return roofline(limits, work, least, arithmetic, race.policy)


def _activation_bytes(work: GemmWorkload) -> float:
    """Read and written once, in 16 bits or as the workload says."""
    return work.m * (
        work.k * DTYPE_BYTES[work.activation_dtype] + work.n * DTYPE_BYTES[work.output_dtype]
    )
