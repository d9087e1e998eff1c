"""What a static prediction records. No row of it holds a time that was measured."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import ConfigDict, Field

from fp4bench.errors import BenchError
from fp4bench.proof.rows import Count
from fp4bench.static.footprint import Footprint
from fp4bench.static.model import Prediction
from fp4bench.trials import CandidateValues, Positive
from fp4kernels.devices import Device, Toolchain
from fp4kernels.registry import candidate_from_json
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

SCHEMA: Literal[1] = 1


class PredictedTime(pydantic.BaseModel):
    """How long a candidate would take on a board, by the static model; times in ns, of one call."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA
    kind: Literal["prediction"] = "prediction"
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    board: str  # the name of its description
    device: Device  # as that describes it
    toolchain: Toolchain  # what compiled
    kernels: str  # hash of the kernels' sources
    workload: GemmWorkload
    candidate_values: CandidateValues
    default: bool  # what runs without a table
    predicted_ns: Positive
    limit_ns: Positive  # the roofline at the board's stated figures
    bound_by: str
    bounds_ns: dict[str, float]  # memory, l2, tensor, instructions and latency of the loops
    edge_ns: float
    reduction_ns: float
    launch_ns: float
    registers: Count
    spills: Count
    shared_bytes: Count
    resident: Count  # programs that fit on a core
    waves: Positive
    occupancy: Positive  # share of a core's warps

    @property
    def candidate(self) -> Candidate:
        return candidate_from_json(self.candidate_values)

    @property
    def share_of_limit(self) -> float:
        return self.limit_ns / self.predicted_ns


def fields_of(prediction: Prediction, needs: Footprint) -> dict[str, object]:
    """The fields of a row that the model gives."""
    return {
        "predicted_ns": prediction.seconds * 1e9,
        "limit_ns": prediction.limit_seconds * 1e9,
        "bound_by": prediction.bound_by,
        "bounds_ns": {name: seconds * 1e9 for name, seconds in prediction.bounds.items()},
        "edge_ns": prediction.edge_seconds * 1e9,
        "reduction_ns": prediction.reduction_seconds * 1e9,
        "launch_ns": prediction.launch_seconds * 1e9,
        "registers": needs.registers,
        "shared_bytes": needs.shared_bytes,
        "resident": prediction.resident,
        "waves": prediction.waves,
        "occupancy": prediction.occupancy,
    }


def read(file: Path) -> list[PredictedTime]:
    """The rows of one file. BenchError names a damaged line."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(PredictedTime.model_validate_json(line))
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]["msg"]
            raise BenchError(f"{file}:{number}: no prediction: {first}") from error
    return found
