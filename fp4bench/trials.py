"""What is recorded: one frozen type per fact, validated when it is read back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import ConfigDict, Field
from scipy import special

from fp4kernels.attention.workload import Workload
from fp4kernels.devices import Device, Toolchain
from fp4kernels.recipes import Rounding, ScaleRule, Transform
from fp4kernels.registry import candidate_from_json
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload, product

SCHEMA: Literal[4] = 4
REFERENCE = "torch_bf16"  # the baseline of every race of products
SDPA = "torch_sdpa"  # and of attention
BATCH_INVARIANT = "batch_invariant"  # the candidate of one order of summing, where it races, too
END_TO_END = "end_to_end"  # of attention: the tuned candidate, with quantizing what is new


Positive = Annotated[float, Field(gt=0)]


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


class Telemetry(_Row):
    """The device while samples were taken; None where it does not say."""

    load_average: float | None = None  # of the host, over the last minute
    steal: float | None = None  # share of the CPU time that the hypervisor gave to others
    mhz: float | None = None  # mean clock: of the cores, or of a GPU's SMs
    memory_mhz: float | None = None
    watts: float | None = None
    celsius: float | None = None
    event_reasons: int | None = None  # NVML's clock event bits, all that were seen
    throttled: bool | None = None  # clocks were held down by heat, power or the board
    joules_per_call: float | None = None  # from the energy counter, over a long loop


class Measurement(_Row):
    """Raw samples: nanoseconds a call, each the mean over `calls` calls in a row."""

    samples_ns: tuple[Positive, ...] = Field(min_length=1)
    calls: int = Field(ge=1)
    warmup_calls: int = Field(ge=0)
    timer: Literal["perf_counter", "cuda_event"]
    policy: Policy
    telemetry: Telemetry = Telemetry()

    @property
    def median_ns(self) -> float:
        return statistics.median(self.samples_ns)

    @property
    def interval_ns(self) -> tuple[float, float]:
        """95% of the median, from order statistics (binomial); the range for under 6 samples."""
        return self.interval_of(self.samples_ns)

    @staticmethod
    def interval_of(samples: Sequence[float]) -> tuple[float, float]:
        ordered, n = sorted(samples), len(samples)
        low = math.ceil(special.bdtrik(0.025, n, 0.5)) - 1 if n >= 6 else 0
        return ordered[max(low, 0)], ordered[min(n - 1 - low, n - 1)]

    def gflops(self, workload: Workload) -> float:
        return workload.flops / self.median_ns


class AttentionErrors(_Row):
    """Of the kernel's own O, and the largest of LSE, against FP32 on the original operands."""

    sqnr_db: float
    cosine: float
    rmse: float = Field(ge=0)
    max: float = Field(ge=0)
    mean: float = Field(ge=0)
    lse: float = Field(ge=0)


class Accuracy(_Row):
    """Two errors, never mixed."""

    kernel_error: float = Field(ge=0)  # largest share of the gate's allowance that was used
    format_error_db: float  # error energy over signal energy against FP32 on the original operands
    attention: AttentionErrors | None = None  # of attention alone


class _Recorded(_Row):
    schema_version: Literal[4] = SCHEMA
    device: Device
    toolchain: Toolchain
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Limits(_Recorded):
    """What the device can do at most, measured: GB/s (10^9 bytes) and GFLOP/s (10^9 operations,
    a multiply-add is two). None where the device has no such unit, or torch no such product."""

    kind: Literal["limits"] = "limits"
    memory_read: Positive | None = None
    memory_copy: Positive | None = None  # bytes read and bytes written
    cache_read: Positive | None = None  # last-level cache of a CPU, L2 of a GPU
    cache_copy: Positive | None = None
    fp32: Positive | None = None
    bf16: Positive | None = None
    fp4: Positive | None = None
    fp8: Positive | None = None
    int8: Positive | None = None


BANDWIDTHS = ("memory_read", "memory_copy", "cache_read", "cache_copy")  # fields of Limits
PEAKS = ("fp32", "bf16", "fp8", "fp4", "int8")


class _Common(_Recorded):
    policy: Policy
    workload: Workload
    weights: str  # where the weight came from: "synthetic", or a tensor's name
    kernels: str  # hash of the kernels' sources

    @property
    def gemm(self) -> GemmWorkload:
        """The workload, which must be a product."""
        return product(self.workload)

    @property
    def identity(self) -> tuple[Device, Toolchain, Policy, Workload, str]:
        """What must be equal for two rows to speak of the same thing, whatever the kernels."""
        return self.device, self.toolchain, self.policy, self.workload, self.weights


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """As this version has it, with fields that its kernel got since; refused, when a row is read,
    if it could not be built."""
    known = candidate_from_json(values).to_json()
    if set(values) != set(known):
        raise ValueError(f"a candidate has the fields {[*known]}, but got {[*values]}")
    return known


CandidateValues = Annotated[dict[str, Any], pydantic.AfterValidator(_known)]


class _Trial(_Common):
    kind: Literal["trial"] = "trial"
    candidate_values: CandidateValues

    @property
    def candidate(self) -> Candidate:
        return candidate_from_json(self.candidate_values)


class PassedTrial(_Trial):
    """Only what passed the gate has a measurement.

    `beside_default` ranks candidates: the default was sampled in turn with this one, so a machine
    that was slow for a minute does not show in it. None in rows before schema 3.
    """

    status: Literal[Status.OK] = Status.OK
    accuracy: Accuracy
    measurement: Measurement
    beside_default: Positive | None = None


class FailedTrial(_Trial):
    """Why a candidate may not win."""

    status: FailedStatus
    reason: str
    killed: bool = False  # it took its process along; it is not tried again


class Race(_Common):
    """Default, tuned and baselines, measured interleaved; sample i of each belongs together.

    `baselines` holds the reference at least, and the batch-invariant candidate where that was asked
    for; `absent` says why others are not there. A race of attention holds its candidate end to end,
    too.
    """

    kind: Literal["race"] = "race"
    recipe: str
    default_values: CandidateValues
    tuned_values: CandidateValues
    default: Measurement
    tuned: Measurement
    baselines: dict[str, Measurement]
    absent: dict[str, str] = {}
    accuracy: Accuracy

    @pydantic.model_validator(mode="after")
    def _one_race(self) -> Self:
        if {self.default_values["recipe"], self.tuned_values["recipe"]} != {self.recipe}:
            raise ValueError("a race is run within one recipe")
        if self.reference not in self.baselines:
            raise ValueError(f"a race has the baseline {self.reference}")
        everyone = (self.default, self.tuned, *self.baselines.values())
        if len({len(measured.samples_ns) for measured in everyone}) != 1:
            raise ValueError("samples of a race are paired, but their numbers differ")
        return self

    @property
    def reference(self) -> str:
        """torch's own way in bf16, which every race runs beside."""
        return reference_of(self.workload)

    @property
    def baseline(self) -> Measurement:
        return self.baselines[self.reference]

    @property
    def tuned_candidate(self) -> Candidate:
        return candidate_from_json(self.tuned_values)

    @property
    def default_candidate(self) -> Candidate:
        return candidate_from_json(self.default_values)


class FormatAccuracy(_Recorded):
    """What a recipe makes of one tensor: x [M, K] of a GEMM where `data` is `activations`, else w
    [N, K]. No error depends on the device, beyond the rounding of float64 sums."""

    kind: Literal["accuracy"] = "accuracy"
    data: str  # a distribution, `synthetic` (tune's own operands), `weights` or `activations`
    model: str | None  # the folder's name, and the text of activations
    tensor: str | None  # its name, or its layer's, in the model
    m: int = Field(ge=1)
    n: int = Field(ge=1)
    k: int = Field(ge=1)
    seed: int = Field(ge=0)
    format: str
    rule: ScaleRule
    rounding: Rounding
    transform: Transform
    outliers: str | None
    weight_only: bool
    activation: str | None = None  # format of the other operand, where it is another
    bits_per_value: Positive  # every scale counted, and what is kept apart
    relative_mse: float = Field(ge=0)  # error energy over signal energy
    cosine: float = Field(ge=-1, le=1)
    max_error: float = Field(ge=0)  # over the root mean square of the tensor
    format_error_db: float  # of the GEMM with both operands quantized, as in Accuracy

    @property
    def recipe(self) -> str:
        """The format, its rule, and whatever else is not the plain way."""
        rest = (
            (self.rounding, Rounding.NEAREST_EVEN),
            (self.transform, Transform.NONE),
            (self.outliers, None),
            ("w4a16" if self.weight_only else None, None),
            (f"with {self.activation}" if self.activation else None, None),
        )
        return " ".join([self.format, self.rule, *(str(x) for x, plain in rest if x != plain)])

    @property
    def sqnr_db(self) -> float:
        return -decibels(self.relative_mse)

    @property
    def effective_bits(self) -> float:
        return effective_bits(self.relative_mse)


Trial = Annotated[PassedTrial | FailedTrial, Field(discriminator="status")]
Row = Annotated[Trial | Race | Limits | FormatAccuracy, Field(discriminator="kind")]
AnyRow = PassedTrial | FailedTrial | Race | Limits | FormatAccuracy


def reference_of(workload: Workload) -> str:
    """The name of torch's own way in bf16."""
    return REFERENCE if isinstance(workload, GemmWorkload) else SDPA


def to_line(row: pydantic.BaseModel) -> str:
    return row.model_dump_json() + "\n"


def decibels(ratio: float) -> float:
    """Of an energy ratio; a perfect match is reported as -300 dB."""
    return max(10 * math.log10(ratio), -300.0) if ratio > 0 else -300.0


def effective_bits(relative_mse: float) -> float:
    """-1/2 log2 of it: what an ideal code for Gaussian values needs for that error (rate-distortion)."""
    return -decibels(relative_mse) / (20 * math.log10(2))
