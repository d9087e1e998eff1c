"""Small real rows for tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fp4bench.trials import (
    Accuracy,
    FailedStatus,
    FailedTrial,
    Measurement,
    PassedTrial,
    Policy,
    Race,
)
from fp4kernels.cpu.gemm import CppConfig
from fp4kernels.devices import Device, Toolchain
from fp4kernels.layouts import Layout
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

POLICY = Policy(launch="eager", cache="cold")
DEVICE = Device("cpu", "Test CPU", "x86_64-avx2", 2, 1 << 25, 0, 1 << 33)
TOOLCHAIN = Toolchain("2.13.0", "3.9.0", None, None, "c++", "c++ 12")
ACCURACY = Accuracy(kernel_error=0.5, format_error_db=-17.0)
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def candidate(recipe: str = "mxfp4", **changes: int) -> Candidate:
    values = {"mr": 4, "rg": 4, "kc": 0, "mc": 128, "panels": 2, "prefetch": 0, **changes}
    return Candidate(recipe, "cpp_w4a4", Layout.PANEL16, CppConfig(**values))


def measurement(samples: Sequence[float]) -> Measurement:
    return Measurement(samples_ns=tuple(samples), calls=1, warmup_calls=1, timer="perf_counter",
                       policy=POLICY)  # fmt: skip


def common(m: int = 8, n: int = 48, k: int = 64, **changes: Any) -> dict[str, Any]:
    return {"device": DEVICE, "toolchain": TOOLCHAIN, "policy": POLICY, "weights": "synthetic", "kernels": "0",
            "workload": GemmWorkload(m, n, k), "time": WHEN, **changes}  # fmt: skip


def passed_trial(ns: float = 1000.0, of: Candidate | None = None, **changes: Any) -> PassedTrial:
    """Beside a default of a microsecond."""
    values = (of or candidate()).to_json()
    return PassedTrial(**common(**changes), candidate_values=values, accuracy=ACCURACY,
                       measurement=measurement([ns] * 6), beside_default=ns / 1000)  # fmt: skip


def failed_trial(status: FailedStatus, reason: str, of: Candidate | None = None) -> FailedTrial:
    values = (of or candidate(mr=8)).to_json()
    return FailedTrial(**common(), candidate_values=values, status=status, reason=reason)


def race(
    default_ns: float = 1000.0, tuned_ns: float = 500.0, recipe: str = "mxfp4", **changes: Any
) -> Race:
    """Ten paired samples with one percent of spread."""
    spread = [1 + 0.001 * i for i in range(10)]
    return Race(
        **common(**changes),
        recipe=recipe,
        default_values=candidate(recipe).to_json(),
        tuned_values=candidate(recipe, mr=8).to_json(),
        default=measurement([default_ns * s for s in spread]),
        tuned=measurement([tuned_ns * s for s in reversed(spread)]),
        baselines={"torch_bf16": measurement([3 * default_ns * s for s in spread])},
        accuracy=ACCURACY,
    )
