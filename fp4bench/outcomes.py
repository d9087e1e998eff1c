"""What a measuring or compiling process answers."""

from __future__ import annotations

from dataclasses import dataclass

from fp4bench.trials import Accuracy, FailedStatus, Measurement


@dataclass(frozen=True)
class Failure:
    """A candidate that may not be timed, and why. `killed`: it took its process along."""

    status: FailedStatus
    reason: str
    killed: bool = False


@dataclass(frozen=True)
class Success:
    accuracy: Accuracy
    measurement: Measurement
    beside_default: float  # its time over the default's, sampled in turn


@dataclass(frozen=True)
class RaceResult:
    """Paired measurements under one policy: the candidates in the order given, and baselines."""

    candidates: tuple[Measurement, ...]
    baselines: dict[str, Measurement]
