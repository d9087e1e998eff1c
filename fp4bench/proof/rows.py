"""What the offline proof records: one row for each kernel configuration and architecture."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from fp4bench.errors import BenchError
from fp4bench.proof.targets import ARCHES
from fp4kernels.attention.workload import Workload
from fp4kernels.devices import Toolchain

SCHEMA: Literal[1] = 1

Count = Annotated[int, Field(ge=0)]


class _Row(pydantic.BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoopCode(_Row):
    """One pass of one warp through the loop over K."""

    instructions: dict[str, Count]  # class → how many
    counted: Count  # those for anything but MMA, loads and barriers
    weights: Annotated[int, Field(ge=1)]  # FP4 weights that it multiplies, a lane's share

    @property
    def per_value(self) -> float:
        """Instructions for each FP4 weight."""
        return self.counted / self.weights


class KernelCode(_Row):
    """One compiled kernel. Counts are of the whole code, but those of `loop`."""

    name: str
    registers: Count  # per thread; VGPRs on AMD
    spills: Count  # loads and stores of thread-local memory
    stack_bytes: Count  # per thread
    shared_bytes: Count  # per program
    mma_kinds: tuple[str, ...]  # as PTX names them, or AMD's assembler
    instructions: dict[str, Count]  # class → how many
    loop: LoopCode | None = None  # in SASS, where a loop multiplies; none in older rows


class _Proof(_Row):
    schema_version: Literal[1] = SCHEMA
    kind: Literal["proof"] = "proof"
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))
    arch: str
    toolchain: Toolchain
    kernels: str  # hash of the kernels' sources
    variant: str
    recipe: str
    workload: Workload
    config: dict[str, int]
    default: bool  # what runs without a table
    refused: str | None  # why the variant does not run on that GPU, though it may compile

    @property
    def label(self) -> str:
        return f"{self.arch} {self.recipe} {self.workload.label} {self.variant}"


class BuiltProof(_Proof):
    """Only what compiled has code: the GEMM or the attention, then what is launched after it."""

    status: Literal["OK"] = "OK"
    code: tuple[KernelCode, ...] = Field(min_length=1)
    shared_limit: Count  # bytes that legality counts on, at most

    @property
    def gemm(self) -> KernelCode:
        return self.code[0]

    @property
    def problem(self) -> str | None:
        """Why it may not be launched, or not as a default; None where the variant is refused."""
        board, needed = ARCHES[self.arch], self.gemm.shared_bytes
        if self.refused is not None:
            return None
        if needed > min(self.shared_limit, board.shared_memory):
            return (
                f"needs {needed} bytes of shared memory, but legality counts on "
                f"{self.shared_limit} and {board.name} has {board.shared_memory}"
            )
        most = self.config.get("maxnreg", 0)
        if most and self.gemm.registers > most:
            return f"is held to {most} registers a thread, but has {self.gemm.registers}"
        spills = sum(kernel.spills for kernel in self.code)
        if self.default and spills:
            return f"a default must not spill, but has {spills} accesses to local memory"
        return None


class FailedProof(_Proof):
    """Why there is no code."""

    status: Literal["COMPILE_ERROR", "TIMEOUT"]
    reason: str
    killed: bool = False  # it took the compiling process along

    @property
    def problem(self) -> str | None:
        return None if self.refused is not None else self.reason


Proof = BuiltProof | FailedProof
_PROOF: pydantic.TypeAdapter[Proof] = pydantic.TypeAdapter(
    Annotated[Proof, Field(discriminator="status")]
)


def read(folder: Path) -> list[Proof]:
    """All rows of a folder, in the order of its files' names. BenchError names a damaged line."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                found.append(_PROOF.validate_json(line))
            except pydantic.ValidationError as error:
                first = error.errors(include_url=False)[0]["msg"]
                raise BenchError(f"{file}:{number}: no proof: {first}") from error
    return found
