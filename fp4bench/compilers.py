"""Compiling beside the measuring process: side by side, each with a time limit, none to be feared.

A compiler that is a program of its own is started from a thread. One that is a library (Triton's)
runs in a process that may die, one for each thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import pydantic

from fp4bench.child import ChildDiedError, ChildLateError, serve
from fp4bench.children import Children
from fp4bench.outcomes import Failure
from fp4bench.pace import Pace
from fp4bench.trials import Status
from fp4kernels.attention.workload import Workload
from fp4kernels.devices import Device, Toolchain, usable_cpus
from fp4kernels.errors import BuildError, BuildTimeoutError
from fp4kernels.registry import any_variant, candidate_from_json
from fp4kernels.variants import Candidate

LEAST_SECONDS, MOST_SECONDS = 20.0, 120.0
MOST_PROCESSES = 16


@dataclass(frozen=True)
class Job:
    """What to compile; `candidate` as Candidate.to_json."""

    candidate: dict[str, Any]
    workload: Workload
    device: Device
    toolchain: Toolchain
    seconds: float


_JOB = pydantic.TypeAdapter(Job)
_FAILURE: pydantic.TypeAdapter[Failure | None] = pydantic.TypeAdapter(Failure | None)


class Compilers:
    """Compiles candidates for one device. `module` is what a compiling process runs."""

    def __init__(
        self, device: Device, toolchain: Toolchain, module: str = "fp4bench.compilers"
    ) -> None:
        self._device, self._toolchain = device, toolchain
        self._pace = Pace(LEAST_SECONDS, MOST_SECONDS)
        self._threads = ThreadPoolExecutor(min(max(2, len(usable_cpus())), MOST_PROCESSES))
        self._children = Children(module)

    def compile_all(
        self, workload: Workload, candidates: Sequence[Candidate]
    ) -> list[Failure | None]:
        """Returns when all are compiled, so that nothing compiles while something is timed."""
        return [job.result() for job in self.submit(workload, candidates)]

    def submit(
        self, workload: Workload, candidates: Sequence[Candidate]
    ) -> list[Future[Failure | None]]:
        """For each, why it failed, or None; nothing is to be timed until all have a result."""
        return [self._threads.submit(self._compile, workload, c) for c in candidates]

    def close(self) -> None:
        """Ctrl-C may call this in the middle of a batch: what compiles in processes is killed."""
        self._children.kill()
        self._threads.shutdown(cancel_futures=True)
        self._children.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compile(self, workload: Workload, candidate: Candidate) -> Failure | None:
        seconds, start = self._pace.limit, time.monotonic()
        job = Job(candidate.to_json(), workload, self._device, self._toolchain, seconds)
        failure = (
            self._elsewhere(job) if any_variant(candidate.variant).compiles_inside else run(job)
        )
        if failure is None:
            self._pace.add(time.monotonic() - start)
        return failure

    def _elsewhere(self, job: Job) -> Failure | None:
        try:
            return _FAILURE.validate_json(self._children.ask(_JOB.dump_json(job), job.seconds))
        except ChildDiedError as death:
            return Failure(Status.COMPILE_ERROR, f"the compiler: {death}", killed=True)
        except ChildLateError as late:
            return Failure(Status.TIMEOUT, f"the compiler: {late}", killed=True)


def run(job: Job) -> Failure | None:
    """Compile in this process; why it failed, or None."""
    candidate = candidate_from_json(job.candidate)
    try:
        kernel = any_variant(candidate.variant)
        recipe = kernel.recipe(candidate.recipe)
        kernel.compile(
            candidate.config, recipe, job.workload, job.device, job.toolchain, job.seconds
        )
    except BuildTimeoutError as error:
        return Failure(Status.TIMEOUT, str(error), killed=True)
    except BuildError as error:
        return Failure(Status.COMPILE_ERROR, str(error))
    return None


def main() -> None:
    """Serve until the parent is gone."""
    serve(lambda hello: lambda question: _FAILURE.dump_json(run(_JOB.validate_json(question))))


if __name__ == "__main__":
    main()
