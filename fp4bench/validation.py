"""Re-proving what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import track

from fp4bench.bench import VALIDATION
from fp4bench.errors import BenchError
from fp4bench.evidence import Evidence
from fp4bench.outcomes import Failure
from fp4bench.summary import summarize
from fp4bench.worker import Setup, Worker
from fp4bench.workloads import Problem, WeightSource
from fp4kernels.attention.workload import Workload
from fp4kernels.tables import Table
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

LIMIT = 120.0  # seconds for one candidate


@dataclass(frozen=True)
class Check:
    """One candidate after the gate; `reason` says why it failed."""

    workload: Workload
    candidate: Candidate
    reason: str | None

    @property
    def label(self) -> str:
        return f"{self.workload.label} {self.candidate.key}"

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload.key,
            "candidate": self.candidate.to_json(),
            "passed": self.reason is None,
            "reason": self.reason,
        }


def from_table(table: Table) -> list[tuple[Workload, Candidate]]:
    products: list[tuple[Workload, Candidate]] = [
        (GemmWorkload(m, n, k), candidate)
        for (_, n, k, _), plan in table.plans.items()
        for m, candidate in plan.buckets
    ]
    return products + [
        (key.workload(batch, keys), candidate)
        for key, chosen in table.attention.items()
        for batch, keys, candidate in chosen.buckets
    ]


def from_results(found: Evidence) -> list[tuple[Workload, Candidate]]:
    return [(line.race.workload, line.chosen) for line in summarize(found.races)]


def validate_all(
    pairs: Sequence[tuple[Workload, Candidate]], setup: Setup, console: Console
) -> list[Check]:
    """Put each candidate through the gate in a measuring process, on fresh inputs."""
    if not pairs:
        raise BenchError("there is nothing to validate: no race is recorded; run tune")
    checks = []
    with Worker(setup) as worker:
        for workload, candidate in track(
            pairs,
            description="validating",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            problem = Problem(workload, WeightSource(), ())
            result = worker.prove(problem, candidate, VALIDATION, LIMIT)
            reason = result.reason if isinstance(result, Failure) else None
            checks.append(Check(workload, candidate, reason))
    return checks
