"""Which candidates of a problem are fastest, and what that suggests for the next problem."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fp4bench.trials import FailedTrial, PassedTrial
from fp4kernels.attention.workload import AttentionWorkload, Workload
from fp4kernels.variants import Candidate
from fp4kernels.workloads import GemmWorkload

FINALISTS = 4  # of a recipe, that are raced
HINTS = 3  # for a recipe: what was fastest on like problems


class Ranking:
    """The passed trials, and the fastest of each recipe: by their time over the default's."""

    def __init__(self) -> None:
        self._ratios: dict[Candidate, float] = {}

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._ratios

    def add(self, trial: PassedTrial | FailedTrial) -> None:
        if isinstance(trial, PassedTrial) and trial.beside_default is not None:
            self._ratios[trial.candidate] = trial.beside_default

    def ratio(self, recipe: str) -> float | None:
        return min((r for c, r in self._ratios.items() if c.recipe == recipe), default=None)

    def finalists(self, recipe: str) -> list[Candidate]:
        own = [candidate for candidate in self._ratios if candidate.recipe == recipe]
        return sorted(own, key=self._ratios.__getitem__)[:FINALISTS]


def hints(
    workload: Workload,
    known: Sequence[tuple[Workload, Sequence[Candidate]]],
    recipes: Sequence[str],
) -> list[Candidate]:
    """The fastest of the most alike among the `known` problems, some for every recipe."""

    def unlike(entry: tuple[Workload, Sequence[Candidate]]) -> float:
        return _unlike(entry[0], workload)

    alike = [entry for entry in known if math.isfinite(unlike(entry))]
    near = [one for _, fastest in sorted(alike, key=unlike) for one in fastest[:HINTS]]
    by_recipe = [dict.fromkeys(one for one in near if one.recipe == name) for name in recipes]
    return [candidate for own in by_recipe for candidate in [*own][:HINTS]]


def _unlike(one: Workload, other: Workload) -> float:
    """In log sizes; infinite between operations."""
    if isinstance(one, AttentionWorkload) and isinstance(other, AttentionWorkload):
        return one.unlike(other)
    if isinstance(one, GemmWorkload) and isinstance(other, GemmWorkload):
        ratios = (one.m / other.m, one.n / other.n, one.k / other.k)
        return sum(abs(math.log(ratio)) for ratio in ratios)
    return math.inf
