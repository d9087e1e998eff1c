"""What is recorded: one frozen type per fact, validated when it is read back."""

from __future__ import annotations

import math
import statistics
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import ConfigDict, Field
from scipy import stats

from fp4kernels.devices import Device, Toolchain
from fp4kernels.registry import candidate_from_json
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

SCHEMA: Literal[1] = 1


class _Row(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Status(StrEnum):
    OK = "OK"
    ILLEGAL = "ILLEGAL"
    COMPILE_ERROR = "COMPILE_ERROR"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    WRONG = "WRONG"
    TIMEOUT = "TIMEOUT"


FailedStatus = Literal[
    Status.ILLEGAL, Status.COMPILE_ERROR, Status.RUNTIME_ERROR, Status.WRONG, Status.TIMEOUT
]


class Policy(_Row):
    """How something was timed: two measurements compare only under one policy."""

    launch: Literal["eager", "graph"]
    cache: Literal["cold", "warm"]


class Measurement(_Row):
    """Raw samples: nanoseconds a call, each the mean over `calls` calls in a row."""

    samples_ns: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    calls: int = Field(ge=1)
    warmup_calls: int = Field(ge=0)
    timer: Literal["perf_counter", "cuda_event"]
    policy: Policy
    telemetry: dict[str, float] = {}

    @property
    def median_ns(self) -> float:
        return statistics.median(self.samples_ns)

    @property
    def interval_ns(self) -> tuple[float, float]:
        """95% of the median, from order statistics (binomial); the range for under 6 samples."""
        ordered, n = sorted(self.samples_ns), len(self.samples_ns)
        low = int(stats.binom.ppf(0.025, n, 0.5)) - 1 if n >= 6 else 0
        return ordered[max(low, 0)], ordered[min(n - 1 - low, n - 1)]

    def gflops(self, workload: GemmWorkload) -> float:
        return workload.flops / self.median_ns


class Accuracy(_Row):
    """Two errors, never mixed."""

    kernel_error: float = Field(ge=0)  # largest share of the gate's allowance that was used
    format_error_db: float  # error energy over signal energy against FP32 on the original operands


class _Common(_Row):
    schema_version: Literal[1] = SCHEMA
    device: Device
    toolchain: Toolchain
    policy: Policy
    workload: GemmWorkload
    weights: str  # where the weight came from: "synthetic", or a tensor's name
    kernels: str  # hash of the kernels' sources
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def identity(self) -> tuple[Device, Toolchain, Policy, GemmWorkload, str]:
        """What must be equal for two rows to speak of the same thing, whatever the kernels."""
        return self.device, self.toolchain, self.policy, self.workload, self.weights


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse, when a row is read, a candidate that this version could not build."""
    candidate_from_json(values)
    return values


CandidateValues = Annotated[dict[str, Any], pydantic.AfterValidator(_known)]


class _Trial(_Common):
    kind: Literal["trial"] = "trial"
    candidate_values: CandidateValues

    @property
    def candidate(self) -> Candidate:
        return candidate_from_json(self.candidate_values)


class PassedTrial(_Trial):
    """Only what passed the gate has a measurement."""

    status: Literal[Status.OK] = Status.OK
    accuracy: Accuracy
    measurement: Measurement


class FailedTrial(_Trial):
    """Why a candidate may not win."""

    status: FailedStatus
    reason: str


class Race(_Common):
    """Default, tuned and torch bf16, measured interleaved; sample i of each belongs together."""

    kind: Literal["race"] = "race"
    recipe: str
    default_values: CandidateValues
    tuned_values: CandidateValues
    default: Measurement
    tuned: Measurement
    baseline: Measurement
    accuracy: Accuracy

    @pydantic.model_validator(mode="after")
    def _one_recipe(self) -> Self:
        if {self.default_values["recipe"], self.tuned_values["recipe"]} != {self.recipe}:
            raise ValueError("a race is run within one recipe")
        return self

    @property
    def tuned_candidate(self) -> Candidate:
        return candidate_from_json(self.tuned_values)

    @property
    def default_candidate(self) -> Candidate:
        return candidate_from_json(self.default_values)


Trial = Annotated[PassedTrial | FailedTrial, Field(discriminator="status")]
Row = Annotated[Trial | Race, Field(discriminator="kind")]


def to_line(row: PassedTrial | FailedTrial | Race) -> str:
    return row.model_dump_json() + "\n"


def decibels(ratio: float) -> float:
    """Of an energy ratio; a perfect match is reported as -300 dB."""
    return max(10 * math.log10(ratio), -300.0) if ratio > 0 else -300.0
